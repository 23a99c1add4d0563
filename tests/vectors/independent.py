"""A second decoder of kmscore's blobs, written from docs/FORMAT.md alone. Imports nothing of kmscore."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

Blocks = Callable[[bytes], bytes]
"""AES-ECB under the key: whole blocks in, as many out."""


def aes_blocks(key: bytes) -> Blocks:
    def run(data: bytes) -> bytes:
        encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
        return encryptor.update(data) + encryptor.finalize()

    return run


def canonical(context: Mapping[str, str]) -> bytes:
    def sized(data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + data

    pairs = sorted((k.encode(), v.encode()) for k, v in context.items())
    return len(pairs).to_bytes(4, "big") + b"".join(sized(k) + sized(v) for k, v in pairs)


def xaes_subkey(blocks: Blocks, nonce: bytes) -> bytes:
    lead = int.from_bytes(blocks(bytes(16)), "big")
    k1 = (lead << 1) & ((1 << 128) - 1)
    if lead >> 127:
        k1 ^= 0x87
    halves = []
    for counter in (b"\x00\x01", b"\x00\x02"):
        m = int.from_bytes(counter + b"\x58\x00" + nonce[:12], "big")
        halves.append((m ^ k1).to_bytes(16, "big"))
    return blocks(b"".join(halves))


def decode(blob: bytes, key: bytes | Blocks, tail: bytes) -> bytes:
    """The plaintext of a blob under `key` (bytes, or for suite 1 just the AES of it); `tail` is what follows the header in the associated
    data. Raises ValueError or cryptography's InvalidTag."""
    if len(blob) < 19 or blob[0] != 1 or blob[1] not in (1, 2) or blob[2] not in (0, 1, 2):
        raise ValueError("not a blob of format version 1")
    header, suite = blob[:19], blob[1]
    size = 24 if suite == 1 else 12
    nonce, rest = blob[19 : 19 + size], blob[19 + size :]
    if len(rest) < 16:
        raise ValueError("too short")
    if suite == 1:
        subkey = xaes_subkey(key if callable(key) else aes_blocks(key), nonce)
        return AESGCM(subkey).decrypt(nonce[12:], rest, header + tail)
    assert isinstance(key, bytes)
    return AESGCM(key).decrypt(nonce, rest, header + tail)
