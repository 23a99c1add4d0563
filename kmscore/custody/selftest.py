"""What every new key must do before an outcome may be recorded: open what it sealed, and refuse it when one bit is changed."""

from __future__ import annotations

import os

from kmscore.custody.port import AeadKey
from kmscore.domain.specs import HEADER_BYTES, ContentKind
from kmscore.errors import KmsError

FORMAT_VERSION = 1  # byte 0 of a blob, docs/FORMAT.md
_PURPOSE = b"kmscore self-test"


def self_test(key: AeadKey, material_id: bytes) -> None:
    """Seal and open 32 random bytes with `key`, and see three changed blobs refused. Nothing of it is kept.

    Raises KmsError InternalFailure when the key does not do as it should; what the key itself raises passes through.
    """
    header = bytes((FORMAT_VERSION, key.suite, ContentKind.MATERIAL)) + material_id
    aad = header + _PURPOSE
    plaintext = os.urandom(32)
    blob = key.encrypt(header, aad, plaintext)
    if key.decrypt(HEADER_BYTES, aad, blob) != plaintext:
        raise KmsError("InternalFailure", "self-test: a new key does not open what it sealed")
    for changed in (_flip(blob, -1), _flip(blob, -17), _flip(blob, HEADER_BYTES)):  # tag, ciphertext, nonce
        _expect_refusal(key, aad, changed)
    _expect_refusal(key, aad + b"?", blob)


def _expect_refusal(key: AeadKey, aad: bytes, blob: bytes) -> None:
    try:
        key.decrypt(HEADER_BYTES, aad, blob)
    except KmsError as error:
        if error.code == "InvalidParameter":
            return
        raise
    raise KmsError("InternalFailure", "self-test: a new key opens a blob that was changed")


def _flip(blob: bytes, at: int) -> bytes:
    changed = bytearray(blob)
    changed[at] ^= 1
    return bytes(changed)
