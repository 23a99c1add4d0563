"""Every operation that is offered, once: the command line, the HTTP API and the documents are built from this table."""

from __future__ import annotations

from dataclasses import replace

from kmscore.domain.specs import MAX_TEXT_BYTES, ContentKind, KeySpec, KeyUsage, Origin, ProtectionLevel
from kmscore.operations import render
from kmscore.operations.kinds import Kind, Operation, Param

GROUPS = {
    "key-lifecycle": "Keys",
    "key-version-rotation": "Versions and rotation",
    "alias": "Aliases",
    "tag": "Tags",
    "crypto-symmetric": "Cryptography",
}

# --- parameters that several operations share ------------------------------------------------------------------------------------

_KEY = Param("KeyId", "The key's id or ARN.", required=True)
_KEY_OR_ALIAS = replace(_KEY, help="The key's id, ARN or alias/NAME.")
_ALIAS = Param("AliasName", "alias/ and a name: letters, digits, '_', '-', '/', '.'.", required=True, maximum=255)
_PAGE = (
    Param("PageNumber", "Which page, from 1.", Kind.INTEGER, minimum=1, default="1"),
    Param("PageSize", "Rows of a page.", Kind.INTEGER, minimum=1, maximum=100, default="10"),
)
_ROTATE = Param("EnableAutomaticRotation", "Rotate the key by itself.", Kind.BOOLEAN, default="false")
_INTERVAL = Param("RotationInterval", "How often: a number and d, h, m or s, from 7 to 730 days. Needed to rotate.")
_TAGS = Param("Tags", 'JSON: [{"TagKey":"team","TagValue":"a"}].', Kind.TAGS, maximum=20)
_CONTEXT = Param("EncryptionContext", 'JSON object of strings, bound to the ciphertext: {"table":"orders"}.', Kind.CONTEXT, maximum=8192)
_BLOB = Param("CiphertextBlob", "What Encrypt or GenerateDataKey answered, in base64.", Kind.BLOB, required=True)
_DATA_KEY = (
    _KEY_OR_ALIAS,
    Param("KeySpec", "The size of the data key.", choices=("AES_256", "AES_128"), default="AES_256"),
    Param("NumberOfBytes", "The size in bytes; wins over KeySpec; 0 is as if absent.", Kind.INTEGER, minimum=0, maximum=1024),
    _CONTEXT,
)
# A caller whose DryRun is not understood must not be surprised by a real effect.
_DRY_RUN = Param("DryRun", "Not offered.", Kind.UNOFFERED, default="false")
_RESOURCE_TYPE = Param("ResourceType", "What is tagged.", required=True, choices=("key", "secret"))
_REGION = Param("RegionId", "The region; any value.", required=True)
_RESOURCES = Param("ResourceId", "Key ids, numbered from 1 to 50.", Kind.NUMBERED, required=True, maximum=50)


def _unoffered(*names: str) -> tuple[Param, ...]:
    return tuple(Param(name, "Not offered.", Kind.UNOFFERED) for name in names)


_ALL = (
    # --- keys ----------------------------------------------------------------------------------------------------------------------
    Operation(
        "CreateKey",
        "Make a key; it is durable, verified and usable when the answer comes.",
        "key-lifecycle",
        (
            Param("Description", "What the key is for.", maximum=8192),
            Param("ProtectionLevel", "Where the material lives.", choices=tuple(ProtectionLevel), default="SOFTWARE"),
            Param("KeySpec", "The kind of key.", choices=tuple(KeySpec), default="Aliyun_AES_256"),
            Param("KeyUsage", "What the key may do.", choices=tuple(KeyUsage), default="what the spec can"),
            Param("Origin", "Where the material comes from.", choices=tuple(Origin), default="Aliyun_KMS"),
            _ROTATE,
            _INTERVAL,
            _TAGS,
            Param("DKMSInstanceId", "A dedicated instance; there is none here."),
            Param("KeyStorageMechanism", "Not offered.", Kind.UNOFFERED, default="HsmInternal"),
            *_unoffered("Policy"),
        ),
        render.key_metadata,
    ),
    Operation("DescribeKey", "Everything about a key but its material.", "key-lifecycle", (_KEY_OR_ALIAS,), render.key_metadata),
    Operation(
        "ListKeys",
        "Key ids, a page at a time, oldest first.",
        "key-lifecycle",
        (
            Param("Filters", 'JSON: [{"Key":"KeyState","Values":["Enabled"]}].', Kind.FILTERS, maximum=10),
            *_PAGE,
        ),
        render.keys,
    ),
    Operation(
        "UpdateKeyDescription",
        "Change the description.",
        "key-lifecycle",
        (_KEY, Param("Description", "What the key is for.", required=True, maximum=8192, may_be_empty=True)),
        render.nothing,
    ),
    Operation("EnableKey", "Let a disabled key be used again.", "key-lifecycle", (_KEY,), render.nothing),
    Operation("DisableKey", "Refuse every use of a key, everywhere, from when the answer comes.", "key-lifecycle", (_KEY,), render.nothing),
    Operation(
        "ScheduleKeyDeletion",
        "Destroy a key after a waiting time, in which it is unusable and can be saved.",
        "key-lifecycle",
        (_KEY, Param("PendingWindowInDays", "The waiting time.", Kind.INTEGER, required=True, minimum=7, maximum=366)),
        render.nothing,
    ),
    Operation("CancelKeyDeletion", "Save a key that waits for deletion.", "key-lifecycle", (_KEY,), render.nothing),
    Operation(
        "SetDeletionProtection",
        "Refuse ScheduleKeyDeletion of a key, or allow it again.",
        "key-lifecycle",
        (
            replace(_KEY, required=False),
            Param("ProtectedResourceArn", "The key's ARN, where KeyId is not given."),
            Param("EnableDeletionProtection", "Protect, or no longer.", Kind.BOOLEAN, required=True),
            Param("DeletionProtectionDescription", "Why; kept while protected."),
            *_unoffered("KmsInstanceId"),
        ),
        render.nothing,
    ),
    # --- versions and rotation -----------------------------------------------------------------------------------------------------
    Operation(
        "CreateKeyVersion", "Add a version and make it the primary one.", "key-version-rotation", (_KEY_OR_ALIAS,), render.key_version
    ),
    Operation(
        "DescribeKeyVersion",
        "One version of a key.",
        "key-version-rotation",
        (_KEY_OR_ALIAS, Param("KeyVersionId", "The version's id.", required=True)),
        render.key_version,
    ),
    Operation(
        "ListKeyVersions", "The versions of a key, oldest first.", "key-version-rotation", (_KEY_OR_ALIAS, *_PAGE), render.key_versions
    ),
    Operation(
        "UpdateRotationPolicy",
        "Rotate a key by itself, or no longer.",
        "key-version-rotation",
        (_KEY, replace(_ROTATE, required=True, default=""), _INTERVAL),
        render.nothing,
    ),
    Operation(
        "RotateKey",
        "Rotate now, whatever the policy says and however young the last version is.",
        "key-version-rotation",
        (_KEY_OR_ALIAS,),
        render.key_version,
        extension=True,
    ),
    # --- aliases -------------------------------------------------------------------------------------------------------------------
    Operation("CreateAlias", "Give a key one more name.", "alias", (_KEY, _ALIAS), render.nothing),
    Operation("UpdateAlias", "Move an alias to another key.", "alias", (_KEY, _ALIAS), render.nothing),
    Operation("DeleteAlias", "Take an alias away; its key stays.", "alias", (_ALIAS,), render.nothing),
    Operation("ListAliases", "Aliases of every key, by name.", "alias", _PAGE, render.aliases),
    Operation("ListAliasesByKeyId", "Aliases of one key, by name.", "alias", (_KEY, *_PAGE), render.aliases),
    # --- tags ----------------------------------------------------------------------------------------------------------------------
    Operation(
        "TagResource",
        "Set tags on a key.",
        "tag",
        (_KEY, replace(_TAGS, required=True), *_unoffered("SecretName", "CertificateId")),
        render.nothing,
    ),
    Operation(
        "UntagResource",
        "Take tags off a key.",
        "tag",
        (
            _KEY,
            Param("TagKeys", 'JSON: ["team","env"]; or team,env.', Kind.STRINGS, required=True, maximum=20),
            *_unoffered("SecretName", "CertificateId"),
        ),
        render.nothing,
    ),
    Operation("ListResourceTags", "The tags of a key.", "tag", (_KEY,), render.tags),
    Operation(
        "TagResources",
        "Set tags on several keys, all or none.",
        "tag",
        (
            _RESOURCE_TYPE,
            _RESOURCES,
            Param("Tag", "Tags, numbered from 1 to 20.", Kind.NUMBERED_TAGS, required=True, maximum=20),
            _REGION,
        ),
        render.nothing,
    ),
    Operation(
        "UntagResources",
        "Take tags off several keys, all or none.",
        "tag",
        (
            _RESOURCE_TYPE,
            _RESOURCES,
            Param("TagKey", "Tag keys, numbered from 1 to 20.", Kind.NUMBERED, maximum=20),
            Param("All", "Every tag; only where no TagKey is given.", Kind.BOOLEAN, default="false"),
            _REGION,
        ),
        render.nothing,
    ),
    Operation(
        "ListTagResources",
        "Tags of keys, 200 rows a page.",
        "tag",
        (
            _RESOURCE_TYPE,
            replace(_RESOURCES, required=False),
            Param("Tag", "Tags that a key must bear, numbered from 1 to 20.", Kind.NUMBERED_TAG_FILTERS, maximum=20),
            Param("NextToken", "The NextToken of the page before."),
            _REGION,
        ),
        render.tag_resources,
    ),
    # --- cryptography --------------------------------------------------------------------------------------------------------------
    Operation(
        "Encrypt",
        "Encrypt a short string under the primary version.",
        "crypto-symmetric",
        (
            _KEY_OR_ALIAS,
            Param(
                "Plaintext",
                "The string, by convention base64; Decrypt answers it as it is.",
                Kind.TEXT,
                required=True,
                maximum=MAX_TEXT_BYTES,
            ),
            _CONTEXT,
            _DRY_RUN,
        ),
        render.encrypted,
        fixed={"content": ContentKind.TEXT},
    ),
    Operation(
        "Decrypt",
        "The string that was encrypted, or the base64 of a data key.",
        "crypto-symmetric",
        (_BLOB, _CONTEXT, *_unoffered("Recipient"), _DRY_RUN),
        render.decrypted,
    ),
    Operation(
        "ReEncrypt",
        "Encrypt the content of a ciphertext anew. Answers key and version of the source.",
        "crypto-symmetric",
        (
            _BLOB,
            replace(_KEY_OR_ALIAS, name="DestinationKeyId"),
            replace(_CONTEXT, name="SourceEncryptionContext", help="The context of the source, as JSON."),
            replace(_CONTEXT, name="DestinationEncryptionContext", help="The context of the new ciphertext, as JSON."),
            *_unoffered("SourceKeyId", "SourceKeyVersionId", "SourceEncryptionAlgorithm"),
            _DRY_RUN,
        ),
        render.encrypted,
    ),
    Operation(
        "GenerateDataKey",
        "A new data key, in clear and encrypted.",
        "crypto-symmetric",
        (*_DATA_KEY, *_unoffered("Recipient"), _DRY_RUN),
        render.data_key,
    ),
    Operation(
        "GenerateDataKeyWithoutPlaintext", "A new data key, encrypted only.", "crypto-symmetric", (*_DATA_KEY, _DRY_RUN), render.data_key
    ),
    Operation(
        "EncryptBatch",
        "Encrypt several byte strings in one go, all or none.",
        "crypto-symmetric",
        (
            _KEY_OR_ALIAS,
            Param("Plaintexts", 'JSON array of base64: ["aGVsbG8="].', Kind.BLOBS, required=True, maximum=1000),
            _CONTEXT,
        ),
        render.ciphertext_blobs,
        extension=True,
    ),
    Operation(
        "DecryptBatch",
        "Decrypt several ciphertexts in one go, all or none.",
        "crypto-symmetric",
        (
            Param("CiphertextBlobs", "JSON array of base64.", Kind.BLOBS, required=True, maximum=1000),
            _CONTEXT,
        ),
        render.plaintexts,
        extension=True,
    ),
)

OPERATIONS: dict[str, Operation] = {operation.name: operation for operation in _ALL}
