"""SoftHSM 2.6's object files, read only: is `token.object` whole, and which object files did a killed call leave behind?

Layout (SoftHSMv2 2.6.1, src/lib/object_store/ObjectFile.cpp), all integers 8 bytes, big-endian:

    generation || for each attribute: type || kind || value
    kind 1: boolean, 1 byte    2: integer, 8 bytes    3: bytes, length || data    4: nested attributes, length || data
    kind 5: mechanisms, count || count * 8 bytes

Values of private objects are encrypted; booleans, integers and the token's own attributes are in clear.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# The token's own attributes (SoftHSMv2 2.6.1, src/lib/object_store/OSAttributes.h).
_TOKEN_LABEL, _TOKEN_SERIAL, _TOKEN_FLAGS, _SO_PIN, _USER_PIN = range(0x80005349, 0x8000534E)
_CKF_USER_PIN_INITIALIZED = 0x8
_CKA_CLASS, _CKA_TOKEN, _CKA_LABEL, _CKA_ID = 0x0, 0x1, 0x3, 0x102
_KEYS = (2, 3, 4)  # CKO_PUBLIC_KEY, CKO_PRIVATE_KEY, CKO_SECRET_KEY
_MATERIAL = (0x11, 0x120, 0x181)  # CKA_VALUE, CKA_MODULUS, CKA_EC_POINT
_LAST = 0x40000600  # CKA_ALLOWED_MECHANISMS: every key has it, and no attribute has a higher number

Value = bool | int | bytes


@dataclass(frozen=True, slots=True)
class TokenObject:
    """What a whole `token.object` says of its token. `label` and `serial` are stripped of padding."""

    label: str
    serial: str


def parse(data: bytes) -> dict[int, Value] | None:
    """Attributes of an object file by type, or None when it is cut short or malformed. Eight bytes and no attribute is well-formed."""
    try:
        return dict(_attributes(data))
    except ValueError:
        return None


def _attributes(data: bytes) -> Iterator[tuple[int, Value]]:
    """The attributes in the order of the file. Raises ValueError where it is cut short or malformed."""
    if len(data) < 8:
        raise ValueError("cut short")
    at = 8
    try:
        while at < len(data):
            type_of, kind = struct.unpack_from(">QQ", data, at)
            value, at = _value(data, at + 16, kind)
            yield type_of, value
    except struct.error:
        raise ValueError("cut short") from None


def _value(data: bytes, at: int, kind: int) -> tuple[Value, int]:
    if kind == 1:
        return bool(struct.unpack_from(">B", data, at)[0]), at + 1
    number = int(struct.unpack_from(">Q", data, at)[0])
    if kind == 2:
        return number, at + 8
    size = number * 8 if kind == 5 else number
    if kind not in (3, 4, 5) or size > len(data) - at - 8:
        raise ValueError("not an object file")
    return data[at + 8 : at + 8 + size], at + 8 + size


def parse_token(data: bytes) -> TokenObject | None:
    """What `token.object` says, or None unless it is whole: every attribute there and the user's PIN set."""
    attributes = parse(data)
    if attributes is None:
        return None
    label, serial, flags, so_pin, user_pin = (
        attributes.get(kind) for kind in (_TOKEN_LABEL, _TOKEN_SERIAL, _TOKEN_FLAGS, _SO_PIN, _USER_PIN)
    )
    if not (isinstance(label, bytes) and isinstance(serial, bytes) and isinstance(so_pin, bytes) and isinstance(user_pin, bytes)):
        return None
    if not isinstance(flags, int) or not flags & _CKF_USER_PIN_INITIALIZED:
        return None
    if not so_pin or not user_pin:  # the token's master key, wrapped under each PIN: 72 bytes in 2.6.1
        return None
    return TokenObject(label.decode("utf-8", "replace").rstrip(), serial.decode("utf-8", "replace").rstrip())


def read_token(path: Path) -> TokenObject | None:
    """As parse_token, of a file; None also when there is none."""
    try:
        return parse_token(path.read_bytes())
    except FileNotFoundError:
        return None


def is_whole(path: Path) -> bool:
    """Whether an object file holds a finished object, or is gone (its maker destroyed it)."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return True
    attributes = parse(data)
    if attributes is None or (attributes.get(_CKA_CLASS) in _KEYS and _LAST not in attributes):
        return False  # cut short, in the middle of an attribute or between two
    # SoftHSM writes the value in a last step, behind the whole template.
    return bool(attributes.get(_CKA_ID)) and any(attributes.get(kind) for kind in _MATERIAL)


def is_fragment(data: bytes) -> bool:
    """True of the file of an object whose making died before its template was applied (RELIABILITY 1.1 facts 7-9).

    SoftHSM first writes class and type, then every default (among them CKA_TOKEN false, no id, no label, no value), and then the whole
    template in one write: until that, the object has neither a name nor a value. An object with an id or a label is never a fragment,
    nor is one whose file cannot be read to the end: that was no death in the middle, and a person must look.
    """
    if not data:
        return True
    return _lacks(data, (_CKA_TOKEN, _CKA_LABEL, _CKA_ID))


def is_nameless(data: bytes) -> bool:
    """True of an object file, finished or not, that has neither CKA_ID nor CKA_LABEL."""
    return _lacks(data, (_CKA_LABEL, _CKA_ID))


def has_id(data: bytes) -> bool:
    """True of an object file with a CKA_ID (whose value is encrypted in a private object)."""
    attributes = parse(data)
    return attributes is not None and bool(attributes.get(_CKA_ID))


def _lacks(data: bytes, types: tuple[int, ...]) -> bool:
    """Whether a file is well-formed and has none of these attributes with a value. Stops at the first it finds: CKA_TOKEN comes early."""
    try:
        return not any(type_of in types and value for type_of, value in _attributes(data))
    except ValueError:
        return False
