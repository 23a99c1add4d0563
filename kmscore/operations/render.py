"""Results of the engine -> the wire's JSON: one function for each shape of answer (SEMANTICS sections 10 and 11). Fields by name."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kmscore.domain.specs import ContentKind
from kmscore.errors import invalid

if TYPE_CHECKING:  # a dozen classes that `kms --help` need not make
    from kmscore.results import (
        Alias,
        AsymmetricDecrypted,
        AsymmetricEncrypted,
        DataKey,
        Decrypted,
        Encrypted,
        ExportedDataKey,
        ImportParameters,
        Instance,
        InstanceItem,
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

Json = dict[str, Any]


def nothing(_: None) -> Json:
    return {}


def key_metadata(key: KeyMetadata) -> Json:
    """DescribeKey's shape; CreateKey's is the same without what the result leaves out."""
    always: Json = {
        "Arn": key.arn,
        "AutomaticRotation": key.automatic_rotation,
        "CreationDate": date(key.creation_date),
        "Creator": key.creator,
        "DeleteDate": date(key.delete_date),
        "Description": key.description,
        "KeyId": key.key_id,
        "KeySpec": key.key_spec,
        "KeyState": key.key_state,
        "KeyUsage": key.key_usage,
        "LastRotationDate": date(key.last_rotation_date),
        "MaterialExpireTime": date(key.material_expire_time),
        "Origin": key.origin,
        "ProtectionLevel": key.protection_level,
    }
    when_there = {
        "DKMSInstanceId": key.dkms_instance_id,
        "DeletionProtection": key.deletion_protection,
        "DeletionProtectionDescription": key.deletion_protection_description,
        "NextRotationDate": date(key.next_rotation_date) or None,
        "PrimaryKeyVersion": key.primary_key_version,
        "RotationInterval": key.rotation_interval,
    }
    return {"KeyMetadata": dict(sorted((always | {k: v for k, v in when_there.items() if v is not None}).items()))}


def keys(page: Page[KeyItem]) -> Json:
    return {"Keys": {"Key": [{"KeyArn": item.key_arn, "KeyId": item.key_id} for item in page.items]}, **_page(page)}


def key_version(version: KeyVersion) -> Json:
    return {"KeyVersion": _version(version)}


def key_versions(page: Page[KeyVersion]) -> Json:
    return {"KeyVersions": {"KeyVersion": [_version(item) for item in page.items]}, **_page(page)}


def aliases(page: Page[Alias]) -> Json:
    rows = [{"AliasArn": item.alias_arn, "AliasName": item.alias_name, "KeyId": item.key_id} for item in page.items]
    return {"Aliases": {"Alias": rows}, **_page(page)}


def tags(items: Sequence[Tag]) -> Json:
    return {"Tags": {"Tag": [{"KeyId": item.key_id, "TagKey": item.tag_key, "TagValue": item.tag_value} for item in items]}}


def tag_resources(page: TagPage) -> Json:
    rows = [{"ResourceId": item.key_id, "ResourceType": "key", "TagKey": item.tag_key, "TagValue": item.tag_value} for item in page.items]
    return {"NextToken": page.next_token, "TagResources": {"TagResource": rows}}


def import_parameters(answer: ImportParameters) -> Json:
    return {
        "ImportToken": _base64(answer.import_token),
        "KeyId": answer.key_id,
        "PublicKey": _base64(answer.public_key),
        "TokenExpireTime": date(answer.token_expire_time),
    }


def encrypted(answer: Encrypted | AsymmetricEncrypted) -> Json:
    return {"CiphertextBlob": _base64(answer.ciphertext_blob), "KeyId": answer.key_id, "KeyVersionId": answer.key_version_id}


def decrypted(answer: Decrypted) -> Json:
    """Text as it was given to Encrypt, raw bytes in base64 (docs/FORMAT.md)."""
    if answer.content is ContentKind.TEXT:
        try:
            plaintext = answer.plaintext.decode()
        except UnicodeDecodeError:  # an embedded caller said text of what is none
            raise invalid("CiphertextBlob") from None
    else:
        plaintext = _base64(answer.plaintext)
    return {"KeyId": answer.key_id, "KeyVersionId": answer.key_version_id, "Plaintext": plaintext}


def data_key(answer: DataKey) -> Json:
    told: Json = {"CiphertextBlob": _base64(answer.ciphertext_blob), "KeyId": answer.key_id, "KeyVersionId": answer.key_version_id}
    if answer.plaintext is not None:
        told["Plaintext"] = _base64(answer.plaintext)
    return told


def exported_data_key(answer: ExportedDataKey) -> Json:
    told: Json = {"ExportedDataKey": _base64(answer.exported_data_key), "KeyId": answer.key_id, "KeyVersionId": answer.key_version_id}
    if answer.ciphertext_blob is not None:
        told["CiphertextBlob"] = _base64(answer.ciphertext_blob)
    return told


def ciphertext_blobs(blobs: Sequence[bytes]) -> Json:
    return {"CiphertextBlobs": [_base64(blob) for blob in blobs]}


def plaintexts(items: Sequence[bytes]) -> Json:
    return {"Plaintexts": [_base64(item) for item in items]}


def asymmetric_decrypted(answer: AsymmetricDecrypted) -> Json:
    return {"KeyId": answer.key_id, "KeyVersionId": answer.key_version_id, "Plaintext": _base64(answer.plaintext)}


def signature(answer: Signature) -> Json:
    return {"KeyId": answer.key_id, "KeyVersionId": answer.key_version_id, "Value": _base64(answer.value)}


def verified(answer: Verified) -> Json:
    """A signature that does not fit is an answer, not an error."""
    return {"KeyId": answer.key_id, "KeyVersionId": answer.key_version_id, "Value": answer.value}


def public_key(answer: PublicKey) -> Json:
    return {"KeyId": answer.key_id, "KeyVersionId": answer.key_version_id, "PublicKey": answer.public_key}


def mac(answer: Mac) -> Json:
    return {"Algorithm": answer.algorithm, "KeyId": answer.key_id, "Mac": _base64(answer.mac)}


def mac_verified(answer: MacVerified) -> Json:
    return {"Algorithm": answer.algorithm, "KeyId": answer.key_id, "Value": answer.value}


def key_policy(text: str) -> Json:
    return {"Policy": text}


def regions(ids: Sequence[str]) -> Json:
    return {"Regions": {"Region": [{"RegionId": region} for region in ids]}}


def account_status(status: str) -> Json:
    return {"AccountStatus": status}


def instances(page: Page[InstanceItem]) -> Json:
    rows = [{"KmsInstanceArn": item.kms_instance_arn, "KmsInstanceId": item.kms_instance_id} for item in page.items]
    return {"KmsInstances": {"KmsInstance": rows}, **_page(page)}


def instance(found: Instance) -> Json:
    """Of the many fields of a dedicated instance, those that mean something here."""
    return {
        "KmsInstance": {
            "CaCertificateChainPem": found.ca_certificate_chain_pem,
            "CreateTime": date(found.create_time),
            "EndDate": "",
            "InstanceId": found.instance_id,
            "InstanceName": found.instance_name,
            "KeyNum": found.key_num,
            "ProductType": found.product_type,
            "ProductVersion": found.product_version,
            "SecretNum": "0",
            "Spec": 0,
            "StartDate": date(found.create_time),
            "Status": found.status,
        }
    }


def default_instance(instance_id: str) -> Json:
    return {"DefaultKmsInstanceId": instance_id}


def date(instant: datetime | None) -> str:
    """UTC without a fraction; empty where there is no such date."""
    return "" if instant is None else instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _version(version: KeyVersion) -> Json:
    return {"CreationDate": date(version.creation_date), "KeyId": version.key_id, "KeyVersionId": version.key_version_id}


def _page(page: Page[Any]) -> Json:
    return {"PageNumber": page.page_number, "PageSize": page.page_size, "TotalCount": page.total_count}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
