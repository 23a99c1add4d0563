"""The hash chain of the event log: one chain per stream, one over the store. Pure functions; verification is the evidence room's.

    stream hash = SHA-256("kmscore stream v1" || fields(previous stream hash, stream id, version, topic, state))
    log hash    = SHA-256("kmscore log v1" || fields(previous log hash, position, stream hash))

Each field is preceded by its length in bytes (4 bytes, big-endian); numbers are 8 bytes, big-endian; the first predecessor is 32 zero
bytes. Length prefixes make the encoding injective, the leading word separates the two uses.
"""

from __future__ import annotations

import hashlib

GENESIS = bytes(32)


def stream_hash(previous: bytes, stream: str, version: int, topic: str, state: bytes) -> bytes:
    """The 32-byte hash of one event in its stream."""
    return _digest(b"kmscore stream v1", previous, stream.encode(), version.to_bytes(8, "big"), topic.encode(), state)


def log_hash(previous: bytes, position: int, event_hash: bytes) -> bytes:
    """The 32-byte hash of one event in the log."""
    return _digest(b"kmscore log v1", previous, position.to_bytes(8, "big"), event_hash)


def _digest(word: bytes, *fields: bytes) -> bytes:
    digest = hashlib.sha256(word)
    for field in fields:
        digest.update(len(field).to_bytes(4, "big"))
        digest.update(field)
    return digest.digest()
