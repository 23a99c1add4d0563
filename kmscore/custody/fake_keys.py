"""The keys of the fake keeper, by `cryptography`, with a written-out XAES that owes nothing to the C core."""

from __future__ import annotations

import hmac
import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, keywrap, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kmscore.custody import _p11
from kmscore.custody.port import Buffer, Secret
from kmscore.custody.public import CURVES
from kmscore.domain.algorithms import AlgorithmFacts, WrappingAlgorithm, mac_hash
from kmscore.domain.specs import NONCE_BYTES, SPECS, TAG_BYTES, Family, KeySpec, Suite
from kmscore.errors import KmsError, bad_material, undecryptable

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

_HASHES: dict[str, hashes.HashAlgorithm] = {"SHA-1": hashes.SHA1(), "SHA-256": hashes.SHA256()}  # noqa: S303 - for OAEP
_DIGESTS: dict[str, hashes.HashAlgorithm] = {"SHA-256": hashes.SHA256(), "SHA-384": hashes.SHA384(), "SHA-512": hashes.SHA512()}
# Making RSA keys is slow, and no test of ours is one of the generator: these many of each size take turns.
_RSA_KEYS = 4
_rsa_keys: dict[int, Iterator[rsa.RSAPrivateKey]] = {}
_rsa_lock = threading.Lock()


class Home(Protocol):
    """The keeper of a key."""

    def check_open(self) -> object: ...
    def busy(self, material_id: bytes) -> bool: ...


class FakeLoaded:
    """What all keys of the fake have: usable until retire(), or until the keeper is closed."""

    def __init__(self, keeper: Home, material_id: bytes, value: bytes) -> None:
        self._keeper = keeper
        self._id = material_id
        self._held: bytes | None = value

    @property
    def _value(self) -> bytes:
        self._keeper.check_open()
        if self._held is None:
            raise KmsError("Rejected.Unavailable", "The key material is no longer available here.")
        return self._held

    def retire(self) -> bool:
        self._held = None
        return not self._keeper.busy(self._id)


class FakeKey(FakeLoaded):
    """Implements port.AeadKey."""

    def __init__(self, keeper: Home, material_id: bytes, value: bytes, suite: Suite) -> None:
        super().__init__(keeper, material_id, value)
        self.suite: int = suite
        self._derived: set[bytes] = set()

    @property
    def live(self) -> int:
        return len(self._derived)

    def encrypt(self, header: bytes, aad: bytes, plaintext: Buffer | Secret) -> bytes:
        nonce = os.urandom(NONCE_BYTES[Suite(self.suite)])
        return header + nonce + self._aead(nonce).encrypt(nonce[-12:], _bytes(plaintext), aad)

    def encrypt_batch(self, header: bytes, aad: bytes, plaintexts: Sequence[Buffer | Secret]) -> list[bytes | Exception]:
        return [self.encrypt(header, aad, plaintext) for plaintext in plaintexts]

    def decrypt(self, header_size: int, aad: bytes, blob: Buffer) -> bytes:
        data = bytes(blob)
        start = header_size + NONCE_BYTES[Suite(self.suite)]
        if len(data) < start + TAG_BYTES:
            raise undecryptable()
        nonce = data[header_size:start]
        try:
            return self._aead(nonce).decrypt(nonce[-12:], data[start:], aad)
        except InvalidTag:
            raise undecryptable() from None

    def decrypt_secret(self, header_size: int, aad: bytes, blob: Buffer) -> Secret:
        return _secret(self.decrypt(header_size, aad, blob))

    def decrypt_batch(self, header_size: int, aad: bytes, blobs: Sequence[Buffer]) -> list[bytes | Exception]:
        results: list[bytes | Exception] = []
        for blob in blobs:
            try:
                results.append(self.decrypt(header_size, aad, blob))
            except KmsError as error:
                results.append(error)
        return results

    def retire(self) -> bool:
        gone = super().retire()
        if gone:
            self._derived.clear()
        return gone

    def _aead(self, nonce: bytes) -> AESGCM:
        if self.suite == Suite.AES_GCM:
            return AESGCM(self._value)
        subkey = xaes_subkey(self._value, nonce)
        self._derived.add(nonce[:12])
        return AESGCM(subkey)


class FakePrivateKey(FakeLoaded):
    """Implements port.PrivateKey; its value is PKCS#8 in DER."""

    def sign(self, facts: AlgorithmFacts, digest: bytes) -> bytes:
        key, hashed = parse_private(self._value), Prehashed(_DIGESTS[facts.hash])
        if isinstance(key, ec.EllipticCurvePrivateKey):
            return key.sign(digest, ec.ECDSA(hashed))
        pss = padding.PSS(padding.MGF1(_DIGESTS[facts.hash]), hashed.digest_size)
        return key.sign(digest, pss if facts.scheme == "PSS" else padding.PKCS1v15(), hashed)

    def decrypt_secret(self, facts: AlgorithmFacts, ciphertext: Buffer) -> Secret:
        try:
            return _secret(oaep_open(self._value, facts.hash, bytes(ciphertext)))
        except ValueError:
            raise undecryptable() from None


class FakeMacKey(FakeLoaded):
    """Implements port.MacKey."""

    def __init__(self, keeper: Home, material_id: bytes, value: bytes, spec: KeySpec) -> None:
        super().__init__(keeper, material_id, value)
        self._hash = mac_hash(spec).replace("-", "").lower()

    def mac(self, message: Buffer) -> bytes:
        return hmac.digest(self._value, bytes(message), self._hash)


def generate(spec: KeySpec) -> bytes:
    """Fresh material: random bytes, or PKCS#8."""
    facts = SPECS[spec]
    if facts.family is Family.RSA:
        return _pkcs8(_next_rsa_key(facts.bits))
    return _pkcs8(ec.generate_private_key(CURVES[spec])) if facts.family is Family.EC else os.urandom(facts.bytes)


def _next_rsa_key(bits: int) -> rsa.RSAPrivateKey:
    with _rsa_lock:
        if bits not in _rsa_keys:
            made = (rsa.generate_private_key(65537, bits) for _ in range(_RSA_KEYS))
            _rsa_keys[bits] = itertools.cycle(made)
        return next(_rsa_keys[bits])


def unwrapped(pair: bytes, algorithm: WrappingAlgorithm, wrapped: bytes, modulus_bytes: int) -> bytes:
    """What came wrapped under the public half of `pair` (PKCS#8). Raises InvalidKeyMaterial."""
    try:
        if not algorithm.hash:
            key = parse_private(pair)
            assert isinstance(key, rsa.RSAPrivateKey)
            return key.decrypt(wrapped, padding.PKCS1v15())
        if not algorithm.two_step:
            return oaep_open(pair, algorithm.hash, wrapped)
        kek = oaep_open(pair, algorithm.hash, wrapped[:modulus_bytes])
        return keywrap.aes_key_unwrap_with_padding(kek, wrapped[modulus_bytes:])
    except (ValueError, keywrap.InvalidUnwrap):
        raise bad_material() from None


def oaep_open(pkcs8: bytes, hash_name: str, ciphertext: bytes) -> bytes:
    key = parse_private(pkcs8)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key.decrypt(ciphertext, padding.OAEP(padding.MGF1(_HASHES[hash_name]), _HASHES[hash_name], None))


def parse_private(pkcs8: bytes, *, known_good: bool = True) -> PrivateKey:
    """Raises ValueError for bytes that are no RSA or EC key. Whether an RSA key is consistent takes up to seconds to see."""
    key = serialization.load_der_private_key(pkcs8, None, unsafe_skip_rsa_key_validation=known_good)
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise ValueError("neither RSA nor EC")
    return key


def public_of(pkcs8: bytes, *, known_good: bool = True) -> bytes:
    """SubjectPublicKeyInfo, DER."""
    return (
        parse_private(pkcs8, known_good=known_good)
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def aes_block(key: bytes, data: bytes) -> bytes:
    ecb = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - blocks of a KDF, no message
    return ecb.update(data)


def xaes_subkey(key: bytes, nonce: bytes) -> bytes:
    """Kx of C2SP XAES-256-GCM for a 32-byte key and a 24-byte nonce; the message is then sealed under nonce[12:24]."""
    top = int.from_bytes(aes_block(key, bytes(16)))
    k1 = ((top << 1) & ((1 << 128) - 1)) ^ (0x87 if top >> 127 else 0)
    blocks = (int.from_bytes(bytes((0, counter, 0x58, 0)) + nonce[:12]) ^ k1 for counter in (1, 2))
    return aes_block(key, b"".join(block.to_bytes(16) for block in blocks))


def _pkcs8(key: PrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


class _Nothing:
    """A Secret of no bytes, which the core makes none of from outside."""

    size = 0

    def reveal(self) -> bytes:
        return b""

    def close(self) -> None:
        pass


def _secret(data: bytes) -> Secret:
    return _p11.Secret.copy_of(data) if data else _Nothing()


def _bytes(data: Buffer | Secret) -> bytes:
    return bytes(data) if isinstance(data, bytes | bytearray | memoryview) else data.reveal()
