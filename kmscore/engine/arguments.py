"""Checks of what a caller passed, before anything is looked up. Each raises KmsError MissingParameter or InvalidParameter by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, TypeVar

from kmscore.custody.port import Buffer
from kmscore.domain.names import ALIAS_PREFIX, Place, check_alias
from kmscore.errors import KmsError, invalid, missing

MAX_PAGE_SIZE = 100
MAX_FILTERS = 10

Choice = TypeVar("Choice", bound=Enum)


def choice(kind: type[Choice], value: str | Choice, parameter: str) -> Choice:
    try:
        return kind(value)
    except ValueError:
        raise invalid(parameter, f"It is one of {', '.join(str(member.value) for member in kind)}.") from None


def required(value: str | None, parameter: str) -> str:
    if value is None or value == "":
        raise missing(parameter)
    if not isinstance(value, str) or not value.isprintable():  # no lone surrogates, no control characters
        raise invalid(parameter, "It is a string of printable characters.")
    return value


def flag(value: bool, parameter: str) -> bool:
    if not isinstance(value, bool):
        raise invalid(parameter, "It is true or false.")
    return value


def whole(value: int, parameter: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise invalid(parameter, f"It must be from {low} to {high}.")
    return value


def string_map(value: Mapping[str, str] | None, parameter: str) -> Mapping[str, str]:
    if not value:
        raise missing(parameter)
    if not isinstance(value, Mapping):
        raise invalid(parameter, "It is a map from string to string.")
    return value


def strings(value: Sequence[str] | None, parameter: str, most: int) -> tuple[str, ...]:
    """1 to `most` strings."""
    if not value:
        raise missing(parameter)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or len(value) > most:
        raise invalid(parameter, f"It is a list of 1 to {most} strings.")
    return tuple(required(item, parameter) for item in value)


def filter_map(value: Mapping[str, Sequence[str]] | None) -> dict[str, tuple[str, ...]]:
    """ListKeys filters: at most 10 names with 1 to 10 values each (SEMANTICS section 11)."""
    if not value:
        return {}
    if not isinstance(value, Mapping) or len(value) > MAX_FILTERS:
        raise invalid("Filters", f"It is at most {MAX_FILTERS} names with their values.")
    return {required(name, "Filters"): strings(values, "Filters", MAX_FILTERS) for name, values in value.items()}


def buffer(value: Buffer, parameter: str, *, may_be_empty: bool = False) -> bytes:
    """Bytes that lie side by side. Raises KmsError MissingParameter for nothing, InvalidParameter for what is not bytes."""
    if type(value) is not bytes:
        if not isinstance(value, bytes | bytearray | memoryview):
            raise invalid(parameter, "It is bytes.")
        if isinstance(value, memoryview) and not (value.c_contiguous and value.itemsize == value.ndim == 1):
            raise invalid(parameter, "It is bytes that lie side by side.")
        value = bytes(value)
    if not value and not may_be_empty:
        raise missing(parameter)
    return value


def items(value: Sequence[Any], parameter: str) -> Sequence[Any]:
    """The items of a batch."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray | memoryview):
        raise invalid(parameter, "It is a list.")
    return value


def key_id_only(reference: str | None, place: Place, parameter: str = "KeyId") -> str:
    """A key id where the API takes no alias; a key's ARN will do. Raises KmsError Unsupported.Alias for an alias (DECISIONS 42)."""
    name = place.strip(required(reference, parameter))
    if name.startswith(ALIAS_PREFIX):
        check_alias(name, create=False)
        raise KmsError("Unsupported.Alias", "This operation takes a key id, not an alias.")
    return name


def page_bounds(page_number: int, page_size: int) -> tuple[int, int]:
    """(limit, offset) of a page; page size 1 to 100 (SEMANTICS section 11, DECISIONS 14)."""
    return whole(page_size, "PageSize", 1, MAX_PAGE_SIZE), (whole(page_number, "PageNumber", 1, 1 << 32) - 1) * page_size
