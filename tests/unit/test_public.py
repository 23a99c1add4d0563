"""Public keys: what is read from them, what is no key, and the key that a signature gives away."""

from __future__ import annotations

import os

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature

from kmscore.custody.curves import CURVES as FIELDS
from kmscore.custody.curves import recover
from kmscore.custody.public import CURVES, PublicKeyOperations, ec_spki, fits, rsa_spki
from kmscore.domain.algorithms import ENCRYPTION, SIGNING, EncryptionAlgorithm, SigningAlgorithm, max_oaep_bytes
from kmscore.domain.specs import KeySpec

PUBLIC = PublicKeyOperations()
DER, SPKI = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo


def spki(key: object) -> bytes:
    return key.public_key().public_bytes(DER, SPKI)  # type: ignore[attr-defined, no-any-return]


RSA = {bits: rsa.generate_private_key(65537, bits) for bits in (1024, 2048, 2056)}
EC = {spec: ec.generate_private_key(curve) for spec, curve in CURVES.items()}


def test_rsa_bits() -> None:
    assert PUBLIC.rsa_bits(spki(RSA[2048])) == 2048
    assert PUBLIC.rsa_bits(spki(RSA[2056])) == 2056
    for other in (
        *(spki(RSA[1024]), spki(EC[KeySpec.EC_P256]), spki(ed25519.Ed25519PrivateKey.generate()), spki(dsa.generate_private_key(1024))),
        *(b"", b"x", bytes(300), spki(RSA[2048])[:-1], spki(RSA[2048]) + b"\0", spki(RSA[2048]).hex().encode()),
    ):
        assert PUBLIC.rsa_bits(other) == 0


def test_pem_is_the_same_key() -> None:
    for key in (RSA[2048], *EC.values()):
        pem = PUBLIC.pem(spki(key))
        assert pem.startswith("-----BEGIN PUBLIC KEY-----\n")
        assert serialization.load_pem_public_key(pem.encode()).public_bytes(DER, SPKI) == spki(key)


def test_keys_from_what_a_token_tells() -> None:
    numbers = RSA[2048].public_key().public_numbers()
    assert rsa_spki(numbers.n.to_bytes(256), b"\1\0\1") == rsa_spki(b"\0" + numbers.n.to_bytes(256), b"\0\1\0\1") == spki(RSA[2048])
    for spec, key in EC.items():
        point = key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
        short = bytes((4, len(point))) if len(point) < 128 else bytes((4, 0x81, len(point)))
        assert ec_spki(spec, point) == ec_spki(spec, short + point) == spki(key)
        assert [other for other in CURVES if fits(spki(key), other)] == [spec]
        with pytest.raises(ValueError, match="EC key"):
            ec_spki(spec, point[:-1] + bytes([point[-1] ^ 1]))
    assert [spec for spec in KeySpec if fits(spki(RSA[2048]), spec)] == [KeySpec.RSA_2048]
    assert [spec for spec in KeySpec if fits(spki(RSA[2056]), spec)] == []
    small = rsa.RSAPublicNumbers(3, numbers.n).public_key().public_bytes(DER, SPKI)
    assert [spec for spec in KeySpec if fits(small, spec)] == []


@pytest.mark.parametrize("spec", CURVES)
def test_the_key_that_made_a_signature_is_among_those_recovered(spec: KeySpec) -> None:
    curve, key = FIELDS[spec], EC[spec]
    assert curve.p % 4 == 3
    assert curve.times(curve.n, (curve.x, curve.y)) is None
    point = key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    size = (CURVES[spec].key_size + 7) // 8
    for algorithm in (hashes.SHA256(), hashes.SHA512()):
        digest = os.urandom(algorithm.digest_size)
        r, s = decode_dss_signature(key.sign(digest, ec.ECDSA(Prehashed(algorithm))))
        found = recover(spec, digest, r.to_bytes(size) + s.to_bytes(size))
        assert point in found
        assert len(found) in (2, 4)
    for r, s in ((0, 1), (1, 0), (curve.n, 1), (1, curve.n)):
        assert recover(spec, digest, r.to_bytes(size) + s.to_bytes(size)) == []


def test_a_signature_of_another_kind_of_key_is_false() -> None:
    ecdsa, pss = SIGNING[SigningAlgorithm.ECDSA_SHA_256], SIGNING[SigningAlgorithm.RSA_PSS_SHA_256]
    digest = bytes(32)
    signature = EC[KeySpec.EC_P256].sign(digest, ec.ECDSA(Prehashed(hashes.SHA256())))
    assert PUBLIC.verify(spki(EC[KeySpec.EC_P256]), ecdsa, digest, signature)
    assert not PUBLIC.verify(spki(EC[KeySpec.EC_P256]), pss, digest, signature)
    assert not PUBLIC.verify(spki(RSA[2048]), ecdsa, digest, signature)
    assert not PUBLIC.verify(spki(EC[KeySpec.EC_P256]), ecdsa, digest[:-1], signature)
    assert not PUBLIC.verify(spki(EC[KeySpec.EC_P256]), ecdsa, digest, signature + b"\0")
    # BER that is not DER: a length in the long form.
    assert not PUBLIC.verify(spki(EC[KeySpec.EC_P256]), ecdsa, digest, signature[:1] + b"\x81" + signature[1:])


def test_encrypt_says_what_is_too_long() -> None:
    facts = ENCRYPTION[EncryptionAlgorithm.RSAES_OAEP_SHA_256]
    most = max_oaep_bytes(256, facts.hash)
    assert len(PUBLIC.encrypt(spki(RSA[2048]), facts, bytes(most))) == 256
    for key, size in ((RSA[2048], most + 1), (RSA[1024], 1), (EC[KeySpec.EC_P256], 1)):
        with pytest.raises(ValueError, match=r"."):
            PUBLIC.encrypt(spki(key), facts, bytes(size))
