"""Key pairs for the tests of signing and RSA, in this process and in tokens, and NSS softoken as a second token beside SoftHSM.

Key material goes into tokens by C_CreateObject, which the product never calls.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key
from p11_helpers import Raw, Rig

from kmscore.custody import _p11
from kmscore.custody._p11 import Module, Secret, SoftPrivateKey, Token, soft_generate_pair, soft_private_key
from kmscore.errors import KmsError

NSS_MODULES = (
    "/usr/lib/x86_64-linux-gnu/nss/libsoftokn3.so",
    "/usr/lib/x86_64-linux-gnu/libsoftokn3.so",
    "/usr/lib/aarch64-linux-gnu/nss/libsoftokn3.so",
    "/usr/lib/aarch64-linux-gnu/libsoftokn3.so",
    "/usr/lib64/libsoftokn3.so",
)
NSS_LABEL = "NSS Certificate DB"
OPAQUE = 'InvalidParameter: The specified parameter "CiphertextBlob" is not valid.'
RSA_KINDS = ("RSA_2048", "RSA_3072", "RSA_4096")
EC_KINDS = ("EC_P256", "EC_P256K", "EC_P384", "EC_P521")
CURVES: dict[str, tuple[ec.EllipticCurve, bytes]] = {
    "EC_P256": (ec.SECP256R1(), bytes.fromhex("06082a8648ce3d030107")),
    "EC_P256K": (ec.SECP256K1(), bytes.fromhex("06052b8104000a")),
    "EC_P384": (ec.SECP384R1(), bytes.fromhex("06052b81040022")),
    "EC_P521": (ec.SECP521R1(), bytes.fromhex("06052b81040023")),
}
HASHES: dict[str, hashes.HashAlgorithm] = {
    "SHA-1": hashes.SHA1(),
    "SHA-256": hashes.SHA256(),
    "SHA-384": hashes.SHA384(),
    "SHA-512": hashes.SHA512(),
}


@lru_cache
def pair(kind: str) -> tuple[bytes, bytes]:
    """One (PKCS#8, SubjectPublicKeyInfo) of each kind for the whole run: RSA takes its time."""
    private, public = soft_generate_pair(kind)
    return private.reveal(), public


def private_key(kind: str) -> Any:
    """The private key of `pair`, as `cryptography` has it."""
    return load_der_private_key(pair(kind)[0], None)


def soft(kind: str) -> SoftPrivateKey:
    """The private key of `pair`, as the core has it in memory."""
    return soft_private_key(Secret.copy_of(pair(kind)[0]), known_good=True)


def spki(public: Any) -> bytes:
    return bytes(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def refused(call: Callable[[], object]) -> None:
    """The one answer to every ciphertext that does not decrypt."""
    with pytest.raises(KmsError) as caught:
        call()
    assert type(caught.value) is KmsError
    assert str(caught.value) == OPAQUE


def leaves_no_secret() -> Iterator[None]:
    """For a fixture: what a test made must be wiped when it ends."""
    gc.collect()
    before = _p11.live_secrets()
    yield
    gc.collect()
    assert _p11.live_secrets() == before


def oaep(hash_name: str) -> padding.OAEP:
    return padding.OAEP(padding.MGF1(HASHES[hash_name]), HASHES[hash_name], None)


def verify(public: Any, scheme: str, hash_name: str, signature: bytes, digest: bytes) -> bool:
    """What `cryptography` says of a signature; ECDSA in DER."""
    algorithm = HASHES[hash_name]
    prehashed = utils.Prehashed(algorithm)
    try:
        if scheme == "ECDSA":
            public.verify(signature, digest, ec.ECDSA(prehashed))
        elif scheme == "PSS":
            public.verify(signature, digest, padding.PSS(padding.MGF1(algorithm), algorithm.digest_size), prehashed)
        else:
            public.verify(signature, digest, padding.PKCS1v15(), prehashed)
    except InvalidSignature:
        return False
    return True


def ecdsa_der(signature: bytes) -> bytes:
    """r || s, as PKCS#11 has it, in DER."""
    half = len(signature) // 2
    return utils.encode_dss_signature(int.from_bytes(signature[:half]), int.from_bytes(signature[half:]))


@dataclass
class Bench:
    """A token with a session of our own that session objects live in."""

    token: Token
    raw: Raw
    session: int
    name: str

    def private(self, key: Any, *, sign: bool = False, decrypt: bool = False) -> int:
        """Handle of a private session key."""
        attributes: dict[int, bytes | int | bool] = {
            0x0: 3,  # CKA_CLASS: CKO_PRIVATE_KEY
            0x1: False,  # CKA_TOKEN
            0x2: True,  # CKA_PRIVATE
            0x103: True,  # CKA_SENSITIVE
            0x162: False,  # CKA_EXTRACTABLE
            0x108: sign,  # CKA_SIGN
            0x105: decrypt,  # CKA_DECRYPT
            0x107: False,  # CKA_UNWRAP
            0x102: b"id",
        }
        numbers = key.private_numbers()
        if isinstance(key, rsa.RSAPrivateKey):
            n, e = numbers.public_numbers.n, numbers.public_numbers.e
            parts = (n, e, numbers.d, numbers.p, numbers.q, numbers.dmp1, numbers.dmq1, numbers.iqmp)
            values = [part.to_bytes((part.bit_length() + 7) // 8) for part in parts]
            attributes |= {0x100: 0} | dict(zip((0x120, 0x122, 0x123, 0x124, 0x125, 0x126, 0x127, 0x128), values, strict=True))
        else:
            size = (key.curve.key_size + 7) // 8
            (params,) = (params for curve, params in CURVES.values() if curve.name == key.curve.name)
            attributes |= {0x100: 3, 0x180: params, 0x11: numbers.private_value.to_bytes(size)}
            if self.name == "NSS":
                public = numbers.public_numbers
                attributes[0xD5A0DB00] = b"\x04" + public.x.to_bytes(size) + public.y.to_bytes(size)  # CKA_NSS_DB
        return self.raw.create(self.session, attributes)

    def key(self, value: bytes | None = None, *, derives: bool = True) -> int:
        """Handle of an AES key (random if no value): one that only derives, or one that only encrypts and decrypts. As Rig.key."""
        usage = {"derive": True} if derives else {"encrypt": True, "decrypt": True}
        return self.secret(os.urandom(32) if value is None else value, key_type=0x1F, **usage)

    def secret(self, value: bytes, *, key_type: int = 0x10, **usage: bool) -> int:
        """Handle of a secret session key: generic (0x10) or AES (0x1F), with sign, derives, encrypts."""
        known = {"sign": 0x108, "derive": 0x10C, "encrypt": 0x104, "decrypt": 0x105}
        return self.raw.create(
            self.session,
            {0x0: 4, 0x100: key_type, 0x1: False, 0x2: True, 0x103: True, 0x162: False, 0x11: value}
            | {attribute: usage.get(name, False) for name, attribute in known.items()},
        )


@contextmanager
def bench_of(rig: Rig) -> Iterator[Bench]:
    session = rig.raw.open(6)
    try:
        yield Bench(rig.token, rig.raw, session, "SoftHSM")
    finally:
        rig.raw.close(session)


def nss_module() -> str:
    """Path of NSS softoken; skips the test where there is none."""
    for path in NSS_MODULES:
        if Path(path).exists():
            return path
    pytest.skip("NSS softoken is not installed")


@contextmanager
def open_nss(directory: Path, *, path: str | None = None, pin: bytes = b"user-pin-123") -> Iterator[Bench]:
    """NSS softoken with a new database, logged in; finalised at the end."""
    module = Module(path or nss_module())
    module.initialize(f"configdir='sql:{directory}' certPrefix='' keyPrefix='' secmod='secmod.db' flags=")
    try:
        (slot,) = (slot for slot in module.slots() if module.token_info(slot)["label"] == NSS_LABEL)
        raw = Raw(module.function_list, slot)
        session = raw.open(6)
        # What certutil -N does: the security officer of a database without a password has none either.
        assert raw.call("C_Login", session, 0, b"", 0) == 0
        assert raw.call("C_InitPIN", session, pin, len(pin)) == 0
        raw.close(session)
        token = module.open(slot)
        token.login(Secret.copy_of(pin))
        session = raw.open(6)
        yield Bench(token, raw, session, "NSS")
        raw.close(session)
        token.close()
    finally:
        module.finalize()
