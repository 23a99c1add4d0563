"""Key specs, usages, protection levels and suites: the tables everything else reads (SEMANTICS section 2, docs/FORMAT.md)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum


class KeySpec(StrEnum):
    AES_256 = "Aliyun_AES_256"
    AES_192 = "Aliyun_AES_192"
    AES_128 = "Aliyun_AES_128"


class KeyUsage(StrEnum):
    ENCRYPT_DECRYPT = "ENCRYPT/DECRYPT"
    SIGN_VERIFY = "SIGN/VERIFY"


class Origin(StrEnum):
    KMS = "Aliyun_KMS"
    EXTERNAL = "EXTERNAL"


class ProtectionLevel(StrEnum):
    SOFTWARE = "SOFTWARE"
    HSM = "HSM"


class Suite(IntEnum):
    """Algorithm suite of a ciphertext; the number is byte 1 of the blob."""

    XAES_256_GCM = 1
    AES_GCM = 2


class ContentKind(IntEnum):
    """What a plaintext is; the number is byte 2 of the blob."""

    RAW = 0
    TEXT = 1
    MATERIAL = 2  # wrapped software material at rest; no API accepts it


@dataclass(frozen=True, slots=True)
class SpecFacts:
    """Facts of a key spec. `material_bytes` is the size of the key material."""

    material_bytes: int
    usages: tuple[KeyUsage, ...]
    rotates: bool


SPECS: dict[KeySpec, SpecFacts] = {
    KeySpec.AES_256: SpecFacts(32, (KeyUsage.ENCRYPT_DECRYPT,), rotates=True),
    KeySpec.AES_192: SpecFacts(24, (KeyUsage.ENCRYPT_DECRYPT,), rotates=True),
    KeySpec.AES_128: SpecFacts(16, (KeyUsage.ENCRYPT_DECRYPT,), rotates=True),
}

# Sizes in bytes.
HEADER_BYTES = 19
TAG_BYTES = 16
NONCE_BYTES: dict[Suite, int] = {Suite.XAES_256_GCM: 24, Suite.AES_GCM: 12}
MAX_PLAINTEXT_BYTES = 6144  # raw bytes at the engine
MAX_TEXT_BYTES = 8192  # a wire Plaintext: what 6,144 bytes make in base64 (DECISIONS 6)
