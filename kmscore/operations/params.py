"""Parameters that several operations share, once. Data only."""

from __future__ import annotations

from dataclasses import replace

from kmscore.domain.algorithms import EncryptionAlgorithm, WrappingAlgorithm, WrappingKeySpec
from kmscore.domain.schedule import LAST_UNIX
from kmscore.operations.kinds import Kind, Param, Target

KEY = Param("KeyId", "The key's id or ARN.", required=True, target=Target.OWN_ID)
KEY_OR_ALIAS = replace(KEY, help="The key's id, ARN or alias/NAME.", target=Target.KEY)
VERSION = Param("KeyVersionId", "The version's id.", required=True)
ALIAS = Param("AliasName", "alias/ and a name: letters, digits, '_', '-', '/', '.'.", required=True, maximum=255, target=Target.ALIAS)
PAGE = (
    Param("PageNumber", "Which page, from 1.", Kind.INTEGER, minimum=1, default="1"),
    Param("PageSize", "Rows of a page.", Kind.INTEGER, minimum=1, maximum=100, default="10"),
)
ROTATE = Param("EnableAutomaticRotation", "Rotate the key by itself.", Kind.BOOLEAN, default="false")
INTERVAL = Param("RotationInterval", "How often: a number and d, h, m or s, from 7 to 730 days. Needed to rotate.")
TAGS = Param("Tags", 'JSON: [{"TagKey":"team","TagValue":"a"}].', Kind.TAGS, maximum=20)
RESOURCE_TYPE = Param("ResourceType", "What is tagged.", required=True, choices=("key", "secret"))
RESOURCES = Param("ResourceId", "Key ids, numbered from 1 to 50.", Kind.NUMBERED, required=True, maximum=50, target=Target.OWN_ID)
REGION = Param("RegionId", "The region; any value.", required=True)

CONTEXT = Param("EncryptionContext", 'JSON object of strings, bound to the ciphertext: {"table":"orders"}.', Kind.CONTEXT, maximum=8192)
BLOB = Param("CiphertextBlob", "What Encrypt or GenerateDataKey answered, in base64.", Kind.BLOB, required=True, target=Target.BLOB)
DATA_KEY = (
    KEY_OR_ALIAS,
    Param("KeySpec", "The size of the data key.", choices=("AES_256", "AES_128"), default="AES_256"),
    Param("NumberOfBytes", "The size in bytes; wins over KeySpec; 0 is as if absent.", Kind.INTEGER, minimum=0, maximum=1024),
    CONTEXT,
)
EXPORT = (
    Param("PublicKeyBlob", "The RSA public key to export under: SubjectPublicKeyInfo in DER, in base64.", Kind.BYTES, required=True),
    Param("WrappingAlgorithm", "How to encrypt under it.", required=True, choices=tuple(EncryptionAlgorithm)),
    Param("WrappingKeySpec", "The size of that key.", required=True, choices=tuple(WrappingKeySpec)),
)

WRAPPING = (
    Param("WrappingAlgorithm", "How the material will come wrapped.", required=True, choices=tuple(WrappingAlgorithm)),
    Param("WrappingKeySpec", "The key to wrap it under.", required=True, choices=tuple(WrappingKeySpec)),
)
MATERIAL = (
    Param("EncryptedKeyMaterial", "The material, wrapped under the public key, in base64.", Kind.BYTES, required=True, secret=True),
    Param("ImportToken", "The import token that came with that public key.", Kind.BYTES, required=True, secret=True),
)
EXPIRES = Param(
    "KeyMaterialExpireUnix",
    "Unix seconds, from when on the material is not used, and destroyed; 0 is as if absent: never.",
    Kind.INTEGER,
    minimum=0,
    maximum=LAST_UNIX,
    default="0",
)
ACTIVATES = replace(EXPIRES, name="KeyMaterialActivateUnix", help="Unix seconds, from when on it encrypts; 0 is as if absent: now.")

DRY_RUN = Param("DryRun", "Check only: answers DryRunOperationError where the call would succeed.", Kind.DRY_RUN, default="false")
KEY_POLICY = Param("Policy", "Who may use the key, as JSON (Authorization).", maximum=32768)
POLICY_NAME = Param("PolicyName", "Only default.", default="default")


def unoffered(*names: str) -> tuple[Param, ...]:
    return tuple(Param(name, "Not offered.", Kind.UNOFFERED) for name in names)
