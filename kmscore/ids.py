"""Where identifiers come from. Random, so that two processes, or two attempts, never meet."""

from __future__ import annotations

import os
import secrets
import uuid
from typing import Protocol

_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
KEY_ID_RANDOM_CHARS = 22  # 22 * log2(36) = 113 bits


class Ids(Protocol):
    """The source of every identifier the engine gives out; a test may inject a repeatable one."""

    def key_id(self) -> str: ...
    def version_id(self) -> str: ...
    def material_id(self) -> bytes: ...
    def command_id(self) -> str: ...


class RandomIds:
    def key_id(self) -> str:
        """`key-` and 22 lower-case letters or digits."""
        return "key-" + "".join(secrets.choice(_ALPHABET) for _ in range(KEY_ID_RANDOM_CHARS))

    def version_id(self) -> str:
        return str(uuid.uuid4())

    def material_id(self) -> bytes:
        """16 random bytes: CKA_ID of one attempt."""
        return secrets.token_bytes(16)

    def command_id(self) -> str:
        """Names one command, so that an ambiguous commit can be looked for (RELIABILITY 3.2)."""
        return secrets.token_hex(8)


def new_request_id() -> str:
    """A random UUID (version 4) as text; several times quicker than the uuid module's."""
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{'89ab'[int(digits[16], 16) & 3]}{digits[17:20]}-{digits[20:]}"
