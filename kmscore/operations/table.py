"""Every operation that is offered, once: the command line, the HTTP API and the documents are built from this table."""

from __future__ import annotations

from dataclasses import replace

from kmscore.domain.specs import CALLER_USAGES, KeySpec, Origin, ProtectionLevel
from kmscore.operations import params as p
from kmscore.operations import render
from kmscore.operations.kinds import Kind, Operation, Param, Target
from kmscore.operations.table_crypto import CRYPTOGRAPHY

GROUPS = {
    "key-lifecycle": "Keys",
    "key-version-rotation": "Versions and rotation",
    "import": "Import of key material",
    "alias": "Aliases",
    "tag": "Tags",
    "crypto-symmetric": "Cryptography",
    "crypto-asymmetric": "Asymmetric cryptography",
    "crypto-mac": "Message authentication",
    "policy": "Key policies",
    "service": "Service",
    "instance": "Instances",
}

_KEYS = (
    # --- keys ----------------------------------------------------------------------------------------------------------------------
    Operation(
        "CreateKey",
        "Make a key; it is durable, verified and usable when the answer comes. One of Origin EXTERNAL waits for its material.",
        "key-lifecycle",
        (
            Param("Description", "What the key is for.", maximum=8192),
            Param("ProtectionLevel", "Where the material lives.", choices=tuple(ProtectionLevel), default="SOFTWARE"),
            Param("KeySpec", "The kind of key.", choices=tuple(KeySpec), default="Aliyun_AES_256"),
            Param("KeyUsage", "What the key may do.", choices=CALLER_USAGES, default="what the spec can"),
            Param("Origin", "Where the material comes from.", choices=tuple(Origin), default="Aliyun_KMS"),
            p.ROTATE,
            p.INTERVAL,
            p.TAGS,
            Param("DKMSInstanceId", "The custody that keeps the material, as ListKmsInstances names it."),
            Param("KeyStorageMechanism", "Not offered.", Kind.UNOFFERED, default="HsmInternal"),
            p.KEY_POLICY,
        ),
        render.key_metadata,
        collection="key",
    ),
    Operation("DescribeKey", "Everything about a key but its material.", "key-lifecycle", (p.KEY_OR_ALIAS,), render.key_metadata),
    Operation(
        "ListKeys",
        "Key ids, a page at a time, oldest first.",
        "key-lifecycle",
        (
            Param("Filters", 'JSON: [{"Key":"KeyState","Values":["Enabled"]}].', Kind.FILTERS, maximum=10),
            *p.PAGE,
        ),
        render.keys,
        collection="key",
    ),
    Operation(
        "UpdateKeyDescription",
        "Change the description.",
        "key-lifecycle",
        (p.KEY, Param("Description", "What the key is for.", required=True, maximum=8192, may_be_empty=True)),
        render.nothing,
    ),
    Operation("EnableKey", "Let a disabled key be used again.", "key-lifecycle", (p.KEY,), render.nothing),
    Operation(
        "DisableKey", "Refuse every use of a key, everywhere, from when the answer comes.", "key-lifecycle", (p.KEY,), render.nothing
    ),
    Operation(
        "ScheduleKeyDeletion",
        "Destroy a key after a waiting time, in which it is unusable and can be saved.",
        "key-lifecycle",
        (p.KEY, Param("PendingWindowInDays", "The waiting time.", Kind.INTEGER, required=True, minimum=7, maximum=366)),
        render.nothing,
    ),
    Operation("CancelKeyDeletion", "Save a key that waits for deletion.", "key-lifecycle", (p.KEY,), render.nothing),
    Operation(
        "SetDeletionProtection",
        "Refuse ScheduleKeyDeletion of a key, or allow it again.",
        "key-lifecycle",
        (
            replace(p.KEY, required=False),
            Param("ProtectedResourceArn", "The key's ARN, where KeyId is not given.", target=Target.OWN_ID),
            Param("EnableDeletionProtection", "Protect, or no longer.", Kind.BOOLEAN, required=True),
            Param("DeletionProtectionDescription", "Why; kept while protected."),
            *p.unoffered("KmsInstanceId"),
        ),
        render.nothing,
    ),
    # --- versions and rotation -----------------------------------------------------------------------------------------------------
    Operation(
        "CreateKeyVersion", "Add a version and make it the primary one.", "key-version-rotation", (p.KEY_OR_ALIAS,), render.key_version
    ),
    Operation(
        "DescribeKeyVersion",
        "One version of a key.",
        "key-version-rotation",
        (p.KEY_OR_ALIAS, p.VERSION),
        render.key_version,
    ),
    Operation(
        "ListKeyVersions", "The versions of a key, oldest first.", "key-version-rotation", (p.KEY_OR_ALIAS, *p.PAGE), render.key_versions
    ),
    Operation(
        "UpdateRotationPolicy",
        "Rotate a key by itself, or no longer.",
        "key-version-rotation",
        (p.KEY, replace(p.ROTATE, required=True, default=""), p.INTERVAL),
        render.nothing,
    ),
    Operation(
        "RotateKey",
        "Rotate now, whatever the policy says and however young the last version is.",
        "key-version-rotation",
        (p.KEY_OR_ALIAS,),
        render.key_version,
        extension=True,
        action="CreateKeyVersion",
    ),
    Operation(
        "UpdateExtendedRotationPolicy",
        "UpdateRotationPolicy for asymmetric keys as well.",
        "key-version-rotation",
        (p.KEY, replace(p.ROTATE, required=True, default=""), p.INTERVAL),
        render.nothing,
        extension=True,
        action="UpdateRotationPolicy",
    ),
    # --- import --------------------------------------------------------------------------------------------------------------------
    Operation(
        "GetParametersForImport",
        "A public key to wrap material under, and the token to import it with; both for 24 hours.",
        "import",
        (p.KEY, *p.WRAPPING),
        render.import_parameters,
    ),
    Operation(
        "ImportKeyMaterial",
        "Give a key its material, or the same material again.",
        "import",
        (p.KEY, *p.MATERIAL, p.EXPIRES),
        render.nothing,
    ),
    Operation(
        "ImportNextKeyMaterial",
        "Import the material of a key's next version; from its date on it encrypts, and older versions still decrypt.",
        "import",
        (p.KEY, *p.MATERIAL, p.ACTIVATES, p.EXPIRES),
        render.nothing,
        extension=True,
        action="ImportKeyMaterial",
    ),
    Operation(
        "DeleteKeyMaterial",
        "Destroy the imported material of a key; the same can be imported again.",
        "import",
        (p.KEY,),
        render.nothing,
    ),
    # --- aliases -------------------------------------------------------------------------------------------------------------------
    Operation("CreateAlias", "Give a key one more name.", "alias", (p.KEY, p.ALIAS), render.nothing),
    Operation("UpdateAlias", "Move an alias to another key.", "alias", (p.KEY, p.ALIAS), render.nothing),
    Operation("DeleteAlias", "Take an alias away; its key stays.", "alias", (p.ALIAS,), render.nothing),
    Operation("ListAliases", "Aliases of every key, by name.", "alias", p.PAGE, render.aliases, collection="alias"),
    Operation("ListAliasesByKeyId", "Aliases of one key, by name.", "alias", (p.KEY, *p.PAGE), render.aliases),
    # --- tags ----------------------------------------------------------------------------------------------------------------------
    Operation(
        "TagResource",
        "Set tags on a key.",
        "tag",
        (p.KEY, replace(p.TAGS, required=True), *p.unoffered("SecretName", "CertificateId")),
        render.nothing,
    ),
    Operation(
        "UntagResource",
        "Take tags off a key.",
        "tag",
        (
            p.KEY,
            Param("TagKeys", 'JSON: ["team","env"]; or team,env.', Kind.STRINGS, required=True, maximum=20),
            *p.unoffered("SecretName", "CertificateId"),
        ),
        render.nothing,
    ),
    Operation("ListResourceTags", "The tags of a key.", "tag", (p.KEY,), render.tags),
    Operation(
        "TagResources",
        "Set tags on several keys, all or none.",
        "tag",
        (
            p.RESOURCE_TYPE,
            p.RESOURCES,
            Param("Tag", "Tags, numbered from 1 to 20.", Kind.NUMBERED_TAGS, required=True, maximum=20),
            p.REGION,
        ),
        render.nothing,
    ),
    Operation(
        "UntagResources",
        "Take tags off several keys, all or none.",
        "tag",
        (
            p.RESOURCE_TYPE,
            p.RESOURCES,
            Param("TagKey", "Tag keys, numbered from 1 to 20.", Kind.NUMBERED, maximum=20),
            Param("All", "Every tag; only where no TagKey is given.", Kind.BOOLEAN, default="false"),
            p.REGION,
        ),
        render.nothing,
    ),
    Operation(
        "ListTagResources",
        "Tags of keys, 200 rows a page.",
        "tag",
        (
            p.RESOURCE_TYPE,
            replace(p.RESOURCES, required=False),
            Param("Tag", "Tags that a key must bear, numbered from 1 to 20.", Kind.NUMBERED_TAG_FILTERS, maximum=20),
            Param("NextToken", "The NextToken of the page before."),
            p.REGION,
        ),
        render.tag_resources,
        collection="key",
    ),
    # --- policies --------------------------------------------------------------------------------------------------------------------
    Operation("GetKeyPolicy", "Who may use a key.", "policy", (p.KEY, p.POLICY_NAME), render.key_policy),
    Operation(
        "SetKeyPolicy",
        "Say who may use a key; in effect everywhere when the answer comes.",
        "policy",
        (p.KEY, replace(p.KEY_POLICY, required=True), p.POLICY_NAME),
        render.nothing,
    ),
    # --- the service -----------------------------------------------------------------------------------------------------------------
    Operation("DescribeRegions", "The region of this service.", "service", (), render.regions),
    Operation("DescribeAccountKmsStatus", "Enabled, always.", "service", (), render.account_status),
    Operation("OpenKmsService", "Answers Forbidden.Opened: the service is open.", "service", (), render.nothing),
    Operation(
        "ListKmsInstances",
        "The custodies: one for each protection level.",
        "instance",
        (*p.unoffered("Filters"), p.PAGE[0], replace(p.PAGE[1], default="20")),
        render.instances,
    ),
    Operation(
        "GetKmsInstance",
        "One custody: whether it answers, and how many keys it holds.",
        "instance",
        (Param("KmsInstanceId", "As ListKmsInstances names it.", required=True),),
        render.instance,
    ),
    Operation("GetDefaultKmsInstance", "The custody that CreateKey uses where nothing is said.", "instance", (), render.default_instance),
)

OPERATIONS: dict[str, Operation] = {operation.name: operation for operation in (*_KEYS, *CRYPTOGRAPHY)}

SECRETS = frozenset(param.name for operation in OPERATIONS.values() for param in operation.params if param.secret) | {"SecretData"}
"""Names of the parameters whose values no error and no log holds; also that of the secrets that are not offered."""

# Of the API, and not of this service: secrets, dedicated instances and their networks, enclaves.
UNOFFERED = frozenset(
    "BatchGetSecretValue ConnectKmsInstance CreateApplicationAccessPoint CreateClientKey CreateNetworkRule CreatePolicy CreateSecret"
    " DeleteApplicationAccessPoint DeleteClientKey DeleteNetworkRule DeletePolicy DeleteSecret DescribeApplicationAccessPoint"
    " DescribeNetworkRule DescribePolicy DescribeSecret GetChallenge GetClientKey GetKmsInstanceQuotaInfos GetManagedDataKey"
    " GetRandomPassword GetSecretPolicy GetSecretValue ListApplicationAccessPoints ListClientKeys ListManagedDataKeyVersions"
    " ListNetworkRules ListPolicies ListSecretVersionIds ListSecrets PutSecretValue ReleaseKmsInstance RestoreSecret RotateSecret"
    " SetSecretPolicy UpdateApplicationAccessPoint UpdateKmsInstanceBindVpc UpdateNetworkRule UpdatePolicy UpdateSecret"
    " UpdateSecretRotationPolicy UpdateSecretVersionStage".split()
)
