"""Results -> the wire's JSON, literally as SEMANTICS sections 8 to 11 of the API facts show it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from kmscore.domain.specs import ContentKind
from kmscore.errors import KmsError
from kmscore.operations import render
from kmscore.results import (
    Alias,
    AsymmetricDecrypted,
    AsymmetricEncrypted,
    DataKey,
    Decrypted,
    Encrypted,
    ExportedDataKey,
    ImportParameters,
    KeyItem,
    KeyMetadata,
    KeyVersion,
    Mac,
    MacVerified,
    Page,
    PublicKey,
    Signature,
    Tag,
    TagPage,
    Verified,
)

BORN = datetime(2026, 1, 2, 3, 4, 5, 999_999, UTC)


def metadata(**more: object) -> KeyMetadata:
    return KeyMetadata(
        **{  # type: ignore[arg-type]
            "key_id": "key-hzz0123456789abcdefgh",
            "arn": "acs:kms:cn-hangzhou:1234567890123456:key/key-hzz0123456789abcdefgh",
            "creator": "1234567890123456",
            "creation_date": BORN,
            "key_state": "Enabled",
            "key_spec": "Aliyun_AES_256",
            "key_usage": "ENCRYPT/DECRYPT",
            "protection_level": "SOFTWARE",
            "origin": "Aliyun_KMS",
            "description": "",
            "automatic_rotation": "Disabled",
            "last_rotation_date": BORN,
            "primary_key_version": "2ab1a983-7072-4bbc-a582-584b5bd80000",
            "deletion_protection": "Disabled",
            **more,
        }
    )


DESCRIBED = {
    "Arn": "acs:kms:cn-hangzhou:1234567890123456:key/key-hzz0123456789abcdefgh",
    "AutomaticRotation": "Disabled",
    "CreationDate": "2026-01-02T03:04:05Z",
    "Creator": "1234567890123456",
    "DeleteDate": "",
    "DeletionProtection": "Disabled",
    "Description": "",
    "KeyId": "key-hzz0123456789abcdefgh",
    "KeySpec": "Aliyun_AES_256",
    "KeyState": "Enabled",
    "KeyUsage": "ENCRYPT/DECRYPT",
    "LastRotationDate": "2026-01-02T03:04:05Z",
    "MaterialExpireTime": "",
    "Origin": "Aliyun_KMS",
    "PrimaryKeyVersion": "2ab1a983-7072-4bbc-a582-584b5bd80000",
    "ProtectionLevel": "SOFTWARE",
}


def test_describe_key_is_the_documented_example() -> None:
    answer = render.key_metadata(metadata())
    assert answer == {"KeyMetadata": DESCRIBED}
    assert list(answer["KeyMetadata"]) == sorted(DESCRIBED)


def test_create_key_has_no_deletion_protection() -> None:
    shown = render.key_metadata(metadata(deletion_protection=None))["KeyMetadata"]
    assert shown == {name: value for name, value in DESCRIBED.items() if name != "DeletionProtection"}


def test_what_is_shown_only_when_it_is_there() -> None:
    shown = render.key_metadata(
        metadata(
            automatic_rotation="Suspended",
            rotation_interval="31536000s",
            next_rotation_date=BORN + timedelta(days=365),
            delete_date=BORN + timedelta(days=7),
            material_expire_time=BORN + timedelta(days=1),
            deletion_protection="Enabled",
            deletion_protection_description="payroll",
            primary_key_version=None,
            dkms_instance_id="kst-1",
        )
    )["KeyMetadata"]
    assert shown == {
        **{name: value for name, value in DESCRIBED.items() if name != "PrimaryKeyVersion"},
        "AutomaticRotation": "Suspended",
        "RotationInterval": "31536000s",
        "NextRotationDate": "2027-01-02T03:04:05Z",
        "DeleteDate": "2026-01-09T03:04:05Z",
        "MaterialExpireTime": "2026-01-03T03:04:05Z",
        "DeletionProtection": "Enabled",
        "DeletionProtectionDescription": "payroll",
        "DKMSInstanceId": "kst-1",
    }


def test_dates_are_utc_without_a_fraction() -> None:
    assert render.date(datetime(2026, 1, 2, 3, 4, 5, 1, timezone(timedelta(hours=8)))) == "2026-01-01T19:04:05Z"
    assert render.date(None) == ""


def test_empty_lists_keep_their_wrappers() -> None:
    page = {"PageNumber": 3, "PageSize": 10, "TotalCount": 7}
    empty: Page[object] = Page((), 3, 10, 7)
    assert render.keys(empty) == {"Keys": {"Key": []}, **page}  # type: ignore[arg-type]
    assert render.aliases(empty) == {"Aliases": {"Alias": []}, **page}  # type: ignore[arg-type]
    assert render.key_versions(empty) == {"KeyVersions": {"KeyVersion": []}, **page}  # type: ignore[arg-type]
    assert render.tags(()) == {"Tags": {"Tag": []}}
    assert render.tag_resources(TagPage((), "")) == {"TagResources": {"TagResource": []}, "NextToken": ""}


def test_rows_of_lists() -> None:
    assert render.keys(Page((KeyItem("k", "acs:k"),), 1, 10, 1))["Keys"] == {"Key": [{"KeyId": "k", "KeyArn": "acs:k"}]}
    assert render.aliases(Page((Alias("k", "alias/a", "acs:a"),), 1, 10, 1))["Aliases"] == {
        "Alias": [{"KeyId": "k", "AliasName": "alias/a", "AliasArn": "acs:a"}]
    }
    version = {"KeyId": "k", "KeyVersionId": "v", "CreationDate": "2026-01-02T03:04:05Z"}
    assert render.key_versions(Page((KeyVersion("k", "v", BORN),), 1, 10, 1))["KeyVersions"] == {"KeyVersion": [version]}
    assert render.key_version(KeyVersion("k", "v", BORN)) == {"KeyVersion": version}
    assert render.tags((Tag("k", "a", ""),)) == {"Tags": {"Tag": [{"KeyId": "k", "TagKey": "a", "TagValue": ""}]}}
    assert render.tag_resources(TagPage((Tag("k", "a", "b"),), "more")) == {
        "TagResources": {"TagResource": [{"ResourceId": "k", "ResourceType": "key", "TagKey": "a", "TagValue": "b"}]},
        "NextToken": "more",
    }


def test_cryptography() -> None:
    assert render.encrypted(Encrypted(b"\xff\x00", "k", "v")) == {"CiphertextBlob": "/wA=", "KeyId": "k", "KeyVersionId": "v"}
    assert render.data_key(DataKey(b"c", "k", "v", b"p")) == {
        "CiphertextBlob": "Yw==",
        "KeyId": "k",
        "KeyVersionId": "v",
        "Plaintext": "cA==",
    }
    assert "Plaintext" not in render.data_key(DataKey(b"c", "k", "v"))
    assert render.ciphertext_blobs([b"a", b""]) == {"CiphertextBlobs": ["YQ==", ""]}
    assert render.plaintexts([b"a"]) == {"Plaintexts": ["YQ=="]}


def test_exported_data_keys() -> None:
    exported = {"ExportedDataKey": "ZQ==", "KeyId": "k", "KeyVersionId": "v"}
    assert render.exported_data_key(ExportedDataKey("k", "v", b"e")) == exported
    assert render.exported_data_key(ExportedDataKey("k", "v", b"e", b"c")) == {**exported, "CiphertextBlob": "Yw=="}


def test_parameters_for_import() -> None:
    assert render.import_parameters(ImportParameters("k", b"t", b"\x30", BORN)) == {
        "ImportToken": "dA==",
        "KeyId": "k",
        "PublicKey": "MA==",
        "TokenExpireTime": "2026-01-02T03:04:05Z",
    }


def test_asymmetric_cryptography_and_macs() -> None:
    names = {"KeyId": "k", "KeyVersionId": "v"}
    assert render.signature(Signature("k", "v", b"s")) == {**names, "Value": "cw=="}
    assert render.verified(Verified("k", "v", False)) == {**names, "Value": False}
    assert render.verified(Verified("k", "v", True))["Value"] is True
    assert render.encrypted(AsymmetricEncrypted("k", "v", b"c")) == {**names, "CiphertextBlob": "Yw=="}
    assert render.asymmetric_decrypted(AsymmetricDecrypted(b"\xff", "k", "v")) == {**names, "Plaintext": "/w=="}
    pem = "-----BEGIN PUBLIC KEY-----\nMA==\n-----END PUBLIC KEY-----\n"
    assert render.public_key(PublicKey("k", "v", pem)) == {**names, "PublicKey": pem}
    assert render.mac(Mac("k", "HMAC_SHA_256", b"m")) == {"KeyId": "k", "Algorithm": "HMAC_SHA_256", "Mac": "bQ=="}
    assert render.mac_verified(MacVerified("k", "HMAC_SHA_256", True)) == {"KeyId": "k", "Algorithm": "HMAC_SHA_256", "Value": True}


def test_decrypt_answers_text_as_it_was_and_bytes_in_base64() -> None:
    assert render.decrypted(Decrypted("é=".encode(), "k", "v", ContentKind.TEXT))["Plaintext"] == "é="
    assert render.decrypted(Decrypted(b"\xc3\xa9=", "k", "v", ContentKind.RAW))["Plaintext"] == "w6k9"


def test_text_that_is_none_is_not_shown() -> None:
    with pytest.raises(KmsError) as caught:
        render.decrypted(Decrypted(b"\xff", "k", "v", ContentKind.TEXT))
    assert caught.value.code == "InvalidParameter"
    assert caught.value.__context__ is None or caught.value.__suppress_context__
