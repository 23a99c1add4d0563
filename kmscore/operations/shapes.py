"""The shapes of answers, by the function in render.py that makes them: JSON types by field; `?` behind a name says it may be absent."""

from __future__ import annotations

from typing import Any

_PAGE = {"PageNumber": "integer", "PageSize": "integer", "TotalCount": "integer"}
_VERSION = {"CreationDate": "string", "KeyId": "string", "KeyVersionId": "string"}
_USED = {"KeyId": "string", "KeyVersionId": "string"}
_KEY = {
    **dict.fromkeys(
        "Arn AutomaticRotation CreationDate Creator DeleteDate Description KeyId KeySpec KeyState KeyUsage LastRotationDate"
        " MaterialExpireTime Origin ProtectionLevel".split(),
        "string",
    ),
    **dict.fromkeys(
        "DKMSInstanceId? DeletionProtection? DeletionProtectionDescription? NextRotationDate? PrimaryKeyVersion? RotationInterval?".split(),
        "string",
    ),
}
_INSTANCE = {
    **dict.fromkeys(
        "CaCertificateChainPem CreateTime EndDate InstanceId InstanceName ProductType ProductVersion SecretNum StartDate Status".split(),
        "string",
    ),
    "KeyNum": "integer",
    "Spec": "integer",
}

SHAPES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "key_metadata": {"KeyMetadata": _KEY},
    "keys": {"Keys": {"Key": [{"KeyArn": "string", "KeyId": "string"}]}, **_PAGE},
    "key_version": {"KeyVersion": _VERSION},
    "key_versions": {"KeyVersions": {"KeyVersion": [_VERSION]}, **_PAGE},
    "aliases": {"Aliases": {"Alias": [{"AliasArn": "string", "AliasName": "string", "KeyId": "string"}]}, **_PAGE},
    "tags": {"Tags": {"Tag": [{"KeyId": "string", "TagKey": "string", "TagValue": "string"}]}},
    "tag_resources": {
        "NextToken": "string",
        "TagResources": {"TagResource": [{"ResourceId": "string", "ResourceType": "string", "TagKey": "string", "TagValue": "string"}]},
    },
    "import_parameters": {"ImportToken": "string", "KeyId": "string", "PublicKey": "string", "TokenExpireTime": "string"},
    "encrypted": {"CiphertextBlob": "string", **_USED},
    "decrypted": {"Plaintext": "string", **_USED},
    "data_key": {"CiphertextBlob": "string", **_USED, "Plaintext?": "string"},
    "exported_data_key": {"ExportedDataKey": "string", **_USED, "CiphertextBlob?": "string"},
    "ciphertext_blobs": {"CiphertextBlobs": ["string"]},
    "plaintexts": {"Plaintexts": ["string"]},
    "asymmetric_decrypted": {"Plaintext": "string", **_USED},
    "signature": {"Value": "string", **_USED},
    "verified": {"Value": "boolean", **_USED},
    "public_key": {"PublicKey": "string", **_USED},
    "mac": {"Algorithm": "string", "KeyId": "string", "Mac": "string"},
    "mac_verified": {"Algorithm": "string", "KeyId": "string", "Value": "boolean"},
    "key_policy": {"Policy": "string"},
    "regions": {"Regions": {"Region": [{"RegionId": "string"}]}},
    "account_status": {"AccountStatus": "string"},
    "instances": {"KmsInstances": {"KmsInstance": [{"KmsInstanceArn": "string", "KmsInstanceId": "string"}]}, **_PAGE},
    "instance": {"KmsInstance": _INSTANCE},
    "default_instance": {"DefaultKmsInstanceId": "string"},
}
