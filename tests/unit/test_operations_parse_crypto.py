"""Parameters of import, asymmetric cryptography and MACs -> arguments of the engine's methods."""

from __future__ import annotations

import pytest
from test_operations_parse import parsed, refused

from kmscore.operations import OPERATIONS


@pytest.mark.parametrize("value", ["QQ", "QQ==\n", "QR==", "Q_8=", "not base64"])
@pytest.mark.parametrize(
    ("operation", "name"),
    [
        ("ImportKeyMaterial", "EncryptedKeyMaterial"),
        ("ImportKeyMaterial", "ImportToken"),
        ("AsymmetricSign", "Digest"),
        ("AsymmetricVerify", "Value"),
        ("AsymmetricEncrypt", "Plaintext"),
        ("GenerateMac", "Message"),
        ("VerifyMac", "Mac"),
        ("ExportDataKey", "PublicKeyBlob"),
    ],
)
def test_other_base64_is_as_strict_and_told_by_name(operation: str, name: str, value: str) -> None:
    given = {p.name: p.choices[0] if p.choices else "QQ==" for p in OPERATIONS[operation].params if p.required}
    assert refused(operation, {**given, name: value}) == (
        "InvalidParameter",
        f'The specified parameter "{name}" is not valid. It is base64.',
    )


def test_what_decrypts_under_a_private_key_has_the_one_refusal() -> None:
    given = {"KeyId": "k", "KeyVersionId": "v", "Algorithm": "RSAES_OAEP_SHA_256", "CiphertextBlob": "Q"}
    assert refused("AsymmetricDecrypt", given)[1] == 'The specified parameter "CiphertextBlob" is not valid.'


def test_a_message_may_be_empty_and_nothing_else() -> None:
    given = {"KeyId": "k", "Algorithm": "HMAC_SHA_256"}
    assert parsed("GenerateMac", **given, Message="") == {"key_id": "k", "algorithm": "HMAC_SHA_256", "message": b""}
    assert refused("GenerateMac", given) == ("MissingParameter", 'The parameter "Message" is needed but not provided.')
    assert refused("VerifyMac", {**given, "Message": "", "Mac": ""})[1] == 'The parameter "Mac" is needed but not provided.'


@pytest.mark.parametrize(
    ("operation", "name", "value"),
    [
        ("CreateKey", "KeySpec", "EC_SM2"),
        ("CreateKey", "KeySpec", "Aliyun_SM4"),
        ("CreateKey", "KeyUsage", "UNWRAP"),
        ("GetParametersForImport", "WrappingAlgorithm", "SM2PKE"),
        ("GetParametersForImport", "WrappingKeySpec", "EC_SM2"),
        ("AsymmetricSign", "Algorithm", "SM2DSA"),
        ("AsymmetricDecrypt", "Algorithm", "SM2PKE"),
        ("GenerateMac", "Algorithm", "HMAC_SM3"),
        ("GenerateMac", "Algorithm", "HMAC_SHA_224"),
        ("ReEncrypt", "SourceEncryptionAlgorithm", "SM2PKE"),
        ("ExportDataKey", "WrappingAlgorithm", "RSAES_PKCS1_V1_5"),
    ],
)
def test_algorithms_that_are_not_offered_are_invalid_by_name(operation: str, name: str, value: str) -> None:
    given = {p.name: p.choices[0] if p.choices else "QQ==" for p in OPERATIONS[operation].params if p.required}
    code, message = refused(operation, {**given, name: value})
    assert (code, f'"{name}"' in message, "UNWRAP" in message) == ("InvalidParameter", True, False)


def test_a_whole_import() -> None:
    given = {"KeyId": "k", "EncryptedKeyMaterial": "QQ==", "ImportToken": "Qg=="}
    found = {"key_id": "k", "encrypted_key_material": b"A", "import_token": b"B"}
    assert parsed("ImportKeyMaterial", **given) == found
    assert parsed("ImportKeyMaterial", **given, KeyMaterialExpireUnix="") == found
    assert parsed("ImportKeyMaterial", **given, KeyMaterialExpireUnix="0") == {**found, "key_material_expire_unix": 0}
    last = {"key_material_expire_unix": 253402300799, "key_material_activate_unix": 1}
    assert parsed("ImportNextKeyMaterial", **given, KeyMaterialExpireUnix="253402300799", KeyMaterialActivateUnix="1") == found | last
    for value in ("253402300800", "-1", "1.5", "2030-01-01"):
        assert refused("ImportKeyMaterial", {**given, "KeyMaterialExpireUnix": value})[0] == "InvalidParameter"


def test_a_source_of_re_encrypt_that_an_asymmetric_key_made() -> None:
    assert parsed(
        "ReEncrypt",
        CiphertextBlob="QQ==",
        DestinationKeyId="d",
        SourceKeyId="alias/s",
        SourceKeyVersionId="v",
        SourceEncryptionAlgorithm="RSAES_OAEP_SHA_1",
    ) == {
        "ciphertext_blob": b"A",
        "destination_key_id": "d",
        "source_key_id": "alias/s",
        "source_key_version_id": "v",
        "source_encryption_algorithm": "RSAES_OAEP_SHA_1",
    }
