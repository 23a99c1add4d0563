"""Key specs, usages, protection levels and suites: the tables everything else reads (SEMANTICS section 2, docs/FORMAT.md)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum, StrEnum, auto


class KeySpec(StrEnum):
    AES_256 = "Aliyun_AES_256"
    AES_192 = "Aliyun_AES_192"
    AES_128 = "Aliyun_AES_128"
    RSA_2048 = "RSA_2048"
    RSA_3072 = "RSA_3072"
    RSA_4096 = "RSA_4096"
    EC_P256 = "EC_P256"
    EC_P256K = "EC_P256K"  # secp256k1
    EC_P384 = "EC_P384"  # from here on extensions: not part of the API of Alibaba Cloud
    EC_P521 = "EC_P521"
    HMAC_256 = "HMAC_256"
    HMAC_384 = "HMAC_384"
    HMAC_512 = "HMAC_512"


class Family(Enum):
    AES = auto()
    RSA = auto()
    EC = auto()
    HMAC = auto()


class KeyUsage(StrEnum):
    ENCRYPT_DECRYPT = "ENCRYPT/DECRYPT"
    SIGN_VERIFY = "SIGN/VERIFY"
    GENERATE_VERIFY_MAC = "GENERATE_VERIFY_MAC"  # an extension
    UNWRAP = "UNWRAP"  # pairs that import offers are made of: no spec lists it, so no caller can ask for it


class Origin(StrEnum):
    KMS = "Aliyun_KMS"
    EXTERNAL = "EXTERNAL"


class ProtectionLevel(StrEnum):
    SOFTWARE = "SOFTWARE"
    HSM = "HSM"


class Suite(IntEnum):
    """Algorithm suite of a ciphertext; the number is byte 1 of the blob. NONE: the key makes no blobs of ours."""

    NONE = 0
    XAES_256_GCM = 1
    AES_GCM = 2


class ContentKind(IntEnum):
    """What a plaintext is; the number is byte 2 of the blob."""

    RAW = 0
    TEXT = 1
    MATERIAL = 2  # wrapped software material at rest; no API accepts it
    IMPORT_TOKEN = 3  # the inside of an import token; only ImportKeyMaterial accepts it
    ACCESS_SECRET = 4  # the secret of an access key at rest; no API accepts it


@dataclass(frozen=True, slots=True)
class SpecFacts:
    """Facts of a key spec. `bits` is the size of an AES or HMAC key, of an RSA modulus, or of the order of a curve.

    `usages` begins with the default. `new_versions`: CreateKeyVersion and RotateKey add some. `importable`: Origin EXTERNAL is offered.
    """

    family: Family
    bits: int
    usages: tuple[KeyUsage, ...]
    new_versions: bool = True
    importable: bool = False

    @property
    def bytes(self) -> int:
        """`bits` in whole bytes."""
        return (self.bits + 7) // 8

    @property
    def is_asymmetric(self) -> bool:
        return self.family in (Family.RSA, Family.EC)


_CRYPT = (KeyUsage.ENCRYPT_DECRYPT,)
_SIGN = (KeyUsage.SIGN_VERIFY,)
_MAC = (KeyUsage.GENERATE_VERIFY_MAC,)
_EITHER = (KeyUsage.SIGN_VERIFY, KeyUsage.ENCRYPT_DECRYPT)  # DECISIONS 15: what can sign signs unless asked otherwise

SPECS: dict[KeySpec, SpecFacts] = {
    KeySpec.AES_256: SpecFacts(Family.AES, 256, _CRYPT, importable=True),
    KeySpec.AES_192: SpecFacts(Family.AES, 192, _CRYPT),
    KeySpec.AES_128: SpecFacts(Family.AES, 128, _CRYPT),
    KeySpec.RSA_2048: SpecFacts(Family.RSA, 2048, _EITHER, importable=True),
    KeySpec.RSA_3072: SpecFacts(Family.RSA, 3072, _EITHER, importable=True),
    KeySpec.RSA_4096: SpecFacts(Family.RSA, 4096, _EITHER, importable=True),
    KeySpec.EC_P256: SpecFacts(Family.EC, 256, _SIGN, importable=True),
    KeySpec.EC_P256K: SpecFacts(Family.EC, 256, _SIGN, importable=True),
    KeySpec.EC_P384: SpecFacts(Family.EC, 384, _SIGN, importable=True),
    KeySpec.EC_P521: SpecFacts(Family.EC, 521, _SIGN, importable=True),
    # A new version would change the MAC of every message, and a MAC names no version: these keys keep their one.
    KeySpec.HMAC_256: SpecFacts(Family.HMAC, 256, _MAC, new_versions=False),
    KeySpec.HMAC_384: SpecFacts(Family.HMAC, 384, _MAC, new_versions=False),
    KeySpec.HMAC_512: SpecFacts(Family.HMAC, 512, _MAC, new_versions=False),
}
CALLER_USAGES = tuple(usage for usage in KeyUsage if usage is not KeyUsage.UNWRAP)

# Sizes in bytes.
HEADER_BYTES = 19
TAG_BYTES = 16
NONCE_BYTES: dict[Suite, int] = {Suite.XAES_256_GCM: 24, Suite.AES_GCM: 12}
MAX_PLAINTEXT_BYTES = 6144  # raw bytes at the engine
MAX_TEXT_BYTES = 8192  # a wire Plaintext: what 6,144 bytes make in base64 (DECISIONS 6)
