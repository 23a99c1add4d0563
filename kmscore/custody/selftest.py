"""What every new key must do before an outcome may be recorded: what it is for, and refuse what was changed by one bit.

Nothing of it is kept. Raises KmsError InternalFailure when a key does not do as it should; what the key itself raises passes through.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import cast

from kmscore.custody.port import AeadKey, Loaded, MacKey, MaterialRef, PrivateKey
from kmscore.custody.public import PublicKeyOperations
from kmscore.domain.algorithms import ENCRYPTION, HASH_BYTES, SIGNING, mac_hash
from kmscore.domain.specs import HEADER_BYTES, SPECS, ContentKind, Family, KeyUsage
from kmscore.errors import KmsError

FORMAT_VERSION = 1  # byte 0 of a blob, docs/FORMAT.md
_PURPOSE = b"kmscore self-test"
_PUBLIC = PublicKeyOperations()


def self_test(key: Loaded, ref: MaterialRef, public_key: bytes = b"") -> None:
    """Try a key of `ref`; `public_key` is the public half of an asymmetric one."""
    if SPECS[ref.spec].family is Family.AES:
        _test_aead(cast(AeadKey, key), ref.material_id)
    elif SPECS[ref.spec].family is Family.HMAC:
        _test_mac(cast(MacKey, key), HASH_BYTES[mac_hash(ref.spec)])
    elif ref.usage is KeyUsage.SIGN_VERIFY:
        _test_signing(cast(PrivateKey, key), ref, public_key)
    else:
        _test_decryption(cast(PrivateKey, key), ref, public_key)


def _test_aead(key: AeadKey, material_id: bytes) -> None:
    """Seal and open 32 random bytes, and see three changed blobs refused."""
    header = bytes((FORMAT_VERSION, key.suite, ContentKind.MATERIAL)) + material_id
    aad = header + _PURPOSE
    plaintext = os.urandom(32)
    blob = key.encrypt(header, aad, plaintext)
    _expect(key.decrypt(HEADER_BYTES, aad, blob) == plaintext, "a new key does not open what it sealed")
    for changed in (_flip(blob, -1), _flip(blob, -17), _flip(blob, HEADER_BYTES)):  # tag, ciphertext, nonce
        _expect_refusal(lambda changed=changed: key.decrypt(HEADER_BYTES, aad, changed))  # type: ignore[misc]
    _expect_refusal(lambda: key.decrypt(HEADER_BYTES, aad + b"?", blob))


def _test_mac(key: MacKey, size: int) -> None:
    message = os.urandom(40)
    tag = key.mac(message)
    _expect(len(tag) == size and key.mac(message) == tag, "a new key does not make the same MAC twice")
    _expect(key.mac(_flip(message, 0)) != tag, "a new key makes one MAC for two messages")


def _test_signing(key: PrivateKey, ref: MaterialRef, public_key: bytes) -> None:
    """Sign a random digest by each algorithm of the spec, and see that the public half tells it from another."""
    for facts in SIGNING.values():
        if ref.spec in facts.specs:
            digest = os.urandom(HASH_BYTES[facts.hash])
            signature = key.sign(facts, digest)
            _expect(_PUBLIC.verify(public_key, facts, digest, signature), "the public half does not verify what a new key signed")
            _expect(not _PUBLIC.verify(public_key, facts, _flip(digest, 0), signature), "one signature of a new key fits two messages")


def _test_decryption(key: PrivateKey, ref: MaterialRef, public_key: bytes) -> None:
    for facts in ENCRYPTION.values():
        if ref.spec in facts.specs:
            plaintext = os.urandom(32)
            ciphertext = _PUBLIC.encrypt(public_key, facts, plaintext)
            opened = key.decrypt_secret(facts, ciphertext)
            try:
                _expect(opened.reveal() == plaintext, "a new key does not open what its public half sealed")
            finally:
                opened.close()
            _expect_refusal(lambda: key.decrypt_secret(facts, _flip(ciphertext, -1)).close())  # noqa: B023 - called at once


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise KmsError("InternalFailure", f"self-test: {otherwise}")


def _expect_refusal(call: Callable[[], object]) -> None:
    try:
        call()
    except KmsError as error:
        if error.code == "InvalidParameter":
            return
        raise
    raise KmsError("InternalFailure", "self-test: a new key opens what was changed")


def _flip(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)
