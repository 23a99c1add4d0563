"""What bench_core.py compares: one function per variant and case, each doing the same work on the same messages.

The work: a blob as docs/FORMAT.md has it, header, fresh random nonce, ciphertext and tag; or the plaintext of one. Associated data is
the header and the empty encryption context.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from p11_helpers import AAD, HEADER, ROOT, Rig
from paired import Variant, Work
from pkcs11 import GCMParams, Mechanism

from kmscore.custody._p11 import Secret, soft_key

BATCH = 64


class CLoop:
    """benchmarks/cloop.c on a session of its own."""

    def __init__(self, rig: Rig, directory: Path) -> None:
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if compiler is None:
            pytest.skip("no C compiler for the C loop")
        library = directory / "cloop.so"
        source = Path(__file__).with_name("cloop.c")
        subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", f"-I{ROOT / 'ext'}", "-o", library, source], check=True)
        self._loops = ctypes.CDLL(str(library))
        self._list = ctypes.c_void_p(rig.module.function_list)
        self._session = ctypes.c_ulong(rig.raw.open())
        self._out = ctypes.create_string_buffer(1 << 16)

    def encrypt(self, handle: int, prefix: bytes, texts: list[bytes]) -> Work:
        key, size, n = ctypes.c_ulong(handle), ctypes.c_ulong(len(texts[0])), ctypes.c_ulong(len(texts))
        joined, sizes = b"".join(texts), [ctypes.c_ulong(len(part)) for part in (prefix, AAD)]
        loop = self._loops.cloop_encrypt

        def work() -> None:
            assert loop(self._list, self._session, key, prefix, sizes[0], AAD, sizes[1], joined, size, n, self._out) == 0

        return work

    def decrypt(self, handle: int, prefix_size: int, blobs: list[bytes]) -> Work:
        key, size, n = ctypes.c_ulong(handle), ctypes.c_ulong(len(blobs[0])), ctypes.c_ulong(len(blobs))
        joined, prefix_len, aad_len = b"".join(blobs), ctypes.c_ulong(prefix_size), ctypes.c_ulong(len(AAD))
        loop = self._loops.cloop_decrypt

        def work() -> None:
            assert loop(self._list, self._session, key, prefix_len, AAD, aad_len, joined, size, n, self._out) == 0

        return work


def variants(rig: Rig, cloop: CLoop, operation: str, size: int) -> list[Variant]:
    """Every variant of one case; the C loop first, on the very derived key that the core uses."""
    key = rig.token.xaes_key(rig.key())
    soft = soft_key(Secret.random(32), 1)
    aesgcm = AESGCM(os.urandom(32))
    resident_handle = rig.key(derives=False)
    resident = next(thing for thing in rig.objects if thing.handle == resident_handle)
    texts = [os.urandom(size) for _ in range(BATCH)]
    blobs = [blob for blob in key.encrypt_batch(HEADER, AAD, texts) if isinstance(blob, bytes)]
    soft_blobs = [blob for blob in soft.encrypt_batch(HEADER, AAD, texts) if isinstance(blob, bytes)]
    prefix = blobs[0][:31]
    derived = key.derive_subkey_for_test(blobs[0][19:43])
    iv = os.urandom(12)
    aesgcm_blobs = [HEADER + iv + aesgcm.encrypt(iv, text, AAD) for text in texts]
    some = texts[:16]

    def param(iv: bytes) -> GCMParams:
        return GCMParams(iv, AAD, 128)

    resident_blobs = [HEADER + iv + resident.encrypt(text, mechanism=Mechanism.AES_GCM, mechanism_param=param(iv)) for text in some]

    def one_by_one_encrypt() -> None:
        for text in texts:
            key.encrypt(HEADER, AAD, text)

    def one_by_one_decrypt() -> None:
        for blob in blobs:
            key.decrypt(19, AAD, blob)

    def soft_encrypt() -> None:
        for text in texts:
            soft.encrypt(HEADER, AAD, text)

    def soft_decrypt() -> None:
        for blob in soft_blobs:
            soft.decrypt(19, AAD, blob)

    def aesgcm_encrypt() -> None:
        for text in texts:
            iv = os.urandom(12)
            HEADER + iv + aesgcm.encrypt(iv, text, AAD)

    def aesgcm_decrypt() -> None:
        for blob in aesgcm_blobs:
            aesgcm.decrypt(blob[19:31], blob[31:], AAD)

    def pkcs11_encrypt() -> None:
        for text in some:
            iv = os.urandom(12)
            HEADER + iv + resident.encrypt(text, mechanism=Mechanism.AES_GCM, mechanism_param=param(iv))

    def pkcs11_decrypt() -> None:
        for blob in resident_blobs:
            resident.decrypt(blob[31:], mechanism=Mechanism.AES_GCM, mechanism_param=param(blob[19:31]))

    if operation == "encrypt":
        return [
            Variant("C loop", BATCH, cloop.encrypt(derived, prefix, texts)),
            Variant("core batch 64", BATCH, lambda: key.encrypt_batch(HEADER, AAD, texts)),
            Variant("core single", BATCH, one_by_one_encrypt),
            Variant("python-pkcs11, resident key", len(some), pkcs11_encrypt),
            Variant("core software batch 64", BATCH, lambda: soft.encrypt_batch(HEADER, AAD, texts)),
            Variant("core software single", BATCH, soft_encrypt),
            Variant("cryptography AESGCM", BATCH, aesgcm_encrypt),
        ]
    return [
        Variant("C loop", BATCH, cloop.decrypt(derived, 31, blobs)),
        Variant("core batch 64", BATCH, lambda: key.decrypt_batch(19, AAD, blobs)),
        Variant("core single", BATCH, one_by_one_decrypt),
        Variant("python-pkcs11, resident key", len(some), pkcs11_decrypt),
        Variant("core software batch 64", BATCH, lambda: soft.decrypt_batch(19, AAD, soft_blobs)),
        Variant("core software single", BATCH, soft_decrypt),
        Variant("cryptography AESGCM", BATCH, aesgcm_decrypt),
    ]
