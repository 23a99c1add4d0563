"""Algorithms of asymmetric, MAC and import operations, under the names of the API, and which keys they fit (SEMANTICS section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from kmscore.domain.specs import SPECS, Family, KeySpec
from kmscore.errors import invalid

HASH_BYTES = {"SHA-1": 20, "SHA-256": 32, "SHA-384": 48, "SHA-512": 64}


class SigningAlgorithm(StrEnum):
    RSA_PSS_SHA_256 = "RSA_PSS_SHA_256"
    RSA_PKCS1_SHA_256 = "RSA_PKCS1_SHA_256"
    ECDSA_SHA_256 = "ECDSA_SHA_256"
    ECDSA_SHA_384 = "ECDSA_SHA_384"  # extensions, for EC_P384 and EC_P521
    ECDSA_SHA_512 = "ECDSA_SHA_512"


class EncryptionAlgorithm(StrEnum):
    RSAES_OAEP_SHA_256 = "RSAES_OAEP_SHA_256"
    RSAES_OAEP_SHA_1 = "RSAES_OAEP_SHA_1"


class MacAlgorithm(StrEnum):
    HMAC_SHA_256 = "HMAC_SHA_256"
    HMAC_SHA_384 = "HMAC_SHA_384"
    HMAC_SHA_512 = "HMAC_SHA_512"


class WrappingAlgorithm(StrEnum):
    """How material comes wrapped. The last two, extensions, wrap it with AES-KWP (RFC 5649) under an AES-256 key that comes wrapped with
    RSAES-OAEP in front of it; private keys (PKCS#8) can only come so."""

    RSAES_PKCS1_V1_5 = "RSAES_PKCS1_V1_5"
    RSAES_OAEP_SHA_1 = "RSAES_OAEP_SHA_1"
    RSAES_OAEP_SHA_256 = "RSAES_OAEP_SHA_256"
    RSA_AES_KEY_WRAP_SHA_1 = "RSA_AES_KEY_WRAP_SHA_1"
    RSA_AES_KEY_WRAP_SHA_256 = "RSA_AES_KEY_WRAP_SHA_256"

    @property
    def hash(self) -> str:
        """Of RSAES-OAEP and its MGF1; empty for PKCS #1 v1.5."""
        if self is WrappingAlgorithm.RSAES_PKCS1_V1_5:
            return ""
        return "SHA-1" if self.value.endswith("SHA_1") else "SHA-256"

    @property
    def two_step(self) -> bool:
        return self.value.startswith("RSA_AES_KEY_WRAP")


class WrappingKeySpec(StrEnum):
    RSA_2048 = "RSA_2048"
    RSA_3072 = "RSA_3072"  # extensions
    RSA_4096 = "RSA_4096"


@dataclass(frozen=True, slots=True)
class AlgorithmFacts:
    """`scheme` is the padding or primitive; `specs` the keys it fits."""

    scheme: str
    hash: str
    specs: frozenset[KeySpec]


_RSA = frozenset(spec for spec, facts in SPECS.items() if facts.family is Family.RSA)

SIGNING: dict[SigningAlgorithm, AlgorithmFacts] = {
    SigningAlgorithm.RSA_PSS_SHA_256: AlgorithmFacts("PSS", "SHA-256", _RSA),
    SigningAlgorithm.RSA_PKCS1_SHA_256: AlgorithmFacts("PKCS1", "SHA-256", _RSA),
    SigningAlgorithm.ECDSA_SHA_256: AlgorithmFacts("ECDSA", "SHA-256", frozenset({KeySpec.EC_P256, KeySpec.EC_P256K})),
    SigningAlgorithm.ECDSA_SHA_384: AlgorithmFacts("ECDSA", "SHA-384", frozenset({KeySpec.EC_P384})),
    SigningAlgorithm.ECDSA_SHA_512: AlgorithmFacts("ECDSA", "SHA-512", frozenset({KeySpec.EC_P521})),
}
ENCRYPTION: dict[EncryptionAlgorithm, AlgorithmFacts] = {
    EncryptionAlgorithm.RSAES_OAEP_SHA_256: AlgorithmFacts("OAEP", "SHA-256", _RSA),
    EncryptionAlgorithm.RSAES_OAEP_SHA_1: AlgorithmFacts("OAEP", "SHA-1", _RSA),
}
MAC: dict[MacAlgorithm, AlgorithmFacts] = {
    MacAlgorithm.HMAC_SHA_256: AlgorithmFacts("HMAC", "SHA-256", frozenset({KeySpec.HMAC_256})),
    MacAlgorithm.HMAC_SHA_384: AlgorithmFacts("HMAC", "SHA-384", frozenset({KeySpec.HMAC_384})),
    MacAlgorithm.HMAC_SHA_512: AlgorithmFacts("HMAC", "SHA-512", frozenset({KeySpec.HMAC_512})),
}


def check_fits(spec: KeySpec, facts: AlgorithmFacts) -> None:
    """Raise KmsError InvalidParameter (Algorithm) unless the algorithm is one for keys of `spec`."""
    if spec not in facts.specs:
        raise invalid("Algorithm", f"It does not fit {spec.value} keys.")


def mac_hash(spec: KeySpec) -> str:
    """The hash of a MAC key: each has one."""
    return next(facts.hash for facts in MAC.values() if spec in facts.specs)


def signing_facts(spec: KeySpec) -> AlgorithmFacts:
    """One algorithm that a key of `spec` signs with, for its self-test."""
    return next(facts for facts in SIGNING.values() if spec in facts.specs)


def max_oaep_bytes(modulus_bytes: int, hash_name: str) -> int:
    """The longest message of RSAES-OAEP (RFC 8017 section 7.1.1)."""
    return modulus_bytes - 2 * HASH_BYTES[hash_name] - 2
