"""Public keys: verifying, encrypting, and their encodings. Needs no token, no store and no secret."""

from __future__ import annotations

from functools import lru_cache
from typing import cast

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from kmscore.custody import _p11
from kmscore.custody.port import Buffer, Secret
from kmscore.domain.algorithms import AlgorithmFacts
from kmscore.domain.specs import KeySpec

Key = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

CURVES: dict[KeySpec, ec.EllipticCurve] = {
    KeySpec.EC_P256: ec.SECP256R1(),
    KeySpec.EC_P256K: ec.SECP256K1(),
    KeySpec.EC_P384: ec.SECP384R1(),
    KeySpec.EC_P521: ec.SECP521R1(),
}
_HASHES: dict[str, hashes.HashAlgorithm] = {
    "SHA-1": hashes.SHA1(),  # noqa: S303 - for OAEP only
    "SHA-256": hashes.SHA256(),
    "SHA-384": hashes.SHA384(),
    "SHA-512": hashes.SHA512(),
}
_LEAST_EXPONENT, _MOST_EXPONENT_BITS = 65537, 256  # FIPS 186-5 appendix A.1.1
_MOST_SPKI_BYTES = 1024  # of RSA-4096 with the longest exponent: 582
_RSA_BITS = range(2048, 4096 + 1)
# Parsed keys by their DER: parsing takes longer than verifying with P-256.
_PARSED_KEYS = 1024


class PublicKeyOperations:
    """Implements port.PublicKeys."""

    def verify(self, public_key: bytes, facts: AlgorithmFacts, digest: bytes, signature: bytes) -> bool:
        """Whether `signature` is one of `digest`. False for every other bytes: malformed, another length, another key, another algorithm.

        PSS: a salt exactly as long as the hash. ECDSA: strict DER.
        """
        key, hashed = parse(public_key), Prehashed(_HASHES[facts.hash])
        if len(digest) != hashed.digest_size:
            return False
        try:
            if isinstance(key, ec.EllipticCurvePublicKey) and facts.scheme == "ECDSA":
                key.verify(signature, digest, ec.ECDSA(hashed))
            elif isinstance(key, rsa.RSAPublicKey) and facts.scheme == "PSS":
                salted = padding.PSS(padding.MGF1(_HASHES[facts.hash]), hashed.digest_size)
                key.verify(signature, digest, salted, hashed)
            elif isinstance(key, rsa.RSAPublicKey) and facts.scheme == "PKCS1":
                key.verify(signature, digest, padding.PKCS1v15(), hashed)
            else:
                return False
        except (InvalidSignature, ValueError):
            return False
        return True

    def encrypt(self, public_key: bytes, facts: AlgorithmFacts, plaintext: Buffer | Secret) -> bytes:
        """RSAES-OAEP of at most `max_oaep_bytes`; see port.PublicKeys. Raises ValueError for more, and for a key that is not RSA."""
        return _p11.oaep_encrypt(public_key, facts.hash, cast(Buffer | _p11.Secret, plaintext))

    def rsa_bits(self, public_key: bytes) -> int:
        """Modulus bits of a caller's RSA key; 0 for bytes that are no RSA public key of 2,048 to 4,096 bits.

        Strict, and not remembered: they may be anything. The numbers are in the range of FIPS 186-5 appendix A.1.1.
        """
        if len(public_key) > _MOST_SPKI_BYTES:
            return 0
        try:
            key = _parse(public_key)
        except (ValueError, UnsupportedAlgorithm):
            return 0
        if not isinstance(key, rsa.RSAPublicKey) or key.key_size not in _RSA_BITS or _spki(key) != public_key:
            return 0
        numbers = key.public_numbers()
        sound = numbers.n % 2 and numbers.e % 2 and _LEAST_EXPONENT <= numbers.e < 1 << _MOST_EXPONENT_BITS
        return key.key_size if sound else 0

    def pem(self, public_key: bytes) -> str:
        """The key as PEM (RFC 7468)."""
        return parse(public_key).public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def _parse(public_key: bytes) -> Key:
    """The key in a SubjectPublicKeyInfo (DER). Raises ValueError or UnsupportedAlgorithm for anything else."""
    key = serialization.load_der_public_key(public_key)
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise ValueError("neither RSA nor EC")
    return key


parse = lru_cache(_PARSED_KEYS)(_parse)
"""As _parse, of keys that are our own: they come again and again."""


def rsa_spki(modulus: bytes, exponent: bytes) -> bytes:
    """SubjectPublicKeyInfo (DER) of a modulus and an exponent, big-endian. Raises ValueError for numbers that are no RSA key."""
    return _spki(rsa.RSAPublicNumbers(int.from_bytes(exponent), int.from_bytes(modulus)).public_key())


def ec_spki(spec: KeySpec, point: bytes) -> bytes:
    """SubjectPublicKeyInfo (DER) of a point, uncompressed, with or without the OCTET STRING that CKA_EC_POINT puts round it.

    Raises ValueError for bytes that are no point of the curve.
    """
    curve = CURVES[spec]
    size = 1 + 2 * ((curve.key_size + 7) // 8)
    return _spki(ec.EllipticCurvePublicKey.from_encoded_point(curve, point[-size:]))


def fits(public_key: bytes, spec: KeySpec) -> bool:
    """Whether this is a public key of the spec: the size of the modulus with an exponent of 65537 or more, or the curve."""
    key = parse(public_key)
    if isinstance(key, rsa.RSAPublicKey):
        return spec.value == f"RSA_{key.key_size}" and key.public_numbers().e >= _LEAST_EXPONENT
    return spec in CURVES and key.curve.name == CURVES[spec].name


def _spki(key: Key) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
