"""The bytes of a ciphertext blob and of the associated data (docs/FORMAT.md). Knows no cryptography."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from kmscore.domain.specs import HEADER_BYTES, MAX_TEXT_BYTES, NONCE_BYTES, TAG_BYTES, ContentKind, Suite
from kmscore.errors import invalid, undecryptable

FORMAT_VERSION = 1
NO_CONTEXT = bytes(4)
MAX_CONTEXT_CHARS = 8192  # SEMANTICS section 8, of the JSON text

_HEADER = struct.Struct(">BBB16s")
_LENGTH = struct.Struct(">I")
_OVERHEAD = {suite: HEADER_BYTES + nonce + TAG_BYTES for suite, nonce in NONCE_BYTES.items()}
_KINDS = {ContentKind.RAW.value: ContentKind.RAW, ContentKind.TEXT.value: ContentKind.TEXT}
_SUITES = {suite.value: suite for suite in NONCE_BYTES}


@dataclass(frozen=True, slots=True)
class Header:
    """What the first 19 bytes of a blob say. All of it is the caller's claim until the tag has been verified."""

    suite: Suite
    content: ContentKind
    version_id: str


def pack_header(suite: Suite, content: ContentKind, version_id: str) -> bytes:
    """The 19 bytes before the nonce."""
    return _HEADER.pack(FORMAT_VERSION, suite, content, UUID(version_id).bytes)


def parse_header(blob: bytes | bytearray | memoryview) -> Header:
    """Read a blob strictly: a wrong version, suite, kind or size is the one opaque error. Touches no key."""
    size = len(blob)
    if size < HEADER_BYTES:
        raise undecryptable()
    version, suite, content, version_id = _HEADER.unpack_from(blob)
    if version != FORMAT_VERSION or suite not in _SUITES or content not in _KINDS:
        raise undecryptable()
    overhead = _OVERHEAD[_SUITES[suite]]
    if not overhead <= size <= overhead + MAX_TEXT_BYTES:
        raise undecryptable()
    return Header(_SUITES[suite], _KINDS[content], str(UUID(bytes=version_id)))


def pack_context(context: Mapping[str, str] | None) -> bytes:
    """The canonical form of an encryption context. Absent and empty are the same.

    Raises KmsError InvalidParameter (EncryptionContext) for anything but a map from string to string, for strings that UTF-8 cannot
    carry, and for more than 8,192 characters in all.
    """
    if not context:
        return NO_CONTEXT
    if type(context) is not dict and not isinstance(context, Mapping):
        raise invalid("EncryptionContext", "It is a map from string to string.")
    pairs = []
    characters = 0
    try:
        for key, value in context.items():
            pairs.append((str.encode(key), str.encode(value)))
            characters += len(key) + len(value)
    except TypeError:
        raise invalid("EncryptionContext", "It is a map from string to string.") from None
    except UnicodeEncodeError:
        raise invalid("EncryptionContext", "It holds a character that UTF-8 cannot carry.") from None
    if characters > MAX_CONTEXT_CHARS:
        raise invalid("EncryptionContext", "It is longer than 8192 characters.")
    pairs.sort()
    parts = [_LENGTH.pack(len(pairs))]
    for name, text in pairs:
        parts += (_LENGTH.pack(len(name)), name, _LENGTH.pack(len(text)), text)
    return b"".join(parts)
