"""Parameters as they come, strings by name, -> arguments of an engine's method. Strict: what is not understood is refused by its name.

Ranges and choices are those of the table. What needs the state of a key, or is a rule of the engine's own, is left to the engine.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kmscore.domain import strictjson
from kmscore.errors import KmsError, invalid, missing
from kmscore.operations.kinds import REPEATED, Kind, Operation, Param

_INTEGER = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_NUMBERED = re.compile(r"([A-Za-z]+)\.([1-9][0-9]{0,3})(?:\.(Key|Value))?", re.ASCII)

Parts = dict[tuple[int, str], str]  # a repeated parameter: (its number, "" or "Key" or "Value") -> value


def wants_dry_run(operation: Operation, params: Mapping[str, str]) -> bool:
    """Raises KmsError InvalidParameter when it is neither true nor false."""
    value = params.get("DryRun")
    return bool(value) and "DryRun" in operation.known and _boolean(operation.known["DryRun"], str(value))


def arguments(operation: Operation, params: Mapping[str, str]) -> dict[str, Any]:
    """Keyword arguments for `operation.method`. An empty value is as if absent, unless it may be empty.

    Raises KmsError MissingParameter or InvalidParameter with the parameter's name, UnsupportedOperation for one that is not offered.
    """
    given, parts = _sort_out(operation, params)
    present = [p for p in operation.params if given.get(p.name) or parts.get(p.name) or (p.may_be_empty and p.name in given)]
    for param in operation.params:
        if param.required and param not in present:
            raise missing(param.name)
    found = dict(operation.fixed)
    for param in present:
        if param.kind is Kind.UNOFFERED:
            _refuse_unoffered(param, given[param.name])
        elif param.kind is Kind.DRY_RUN:
            continue
        elif param.kind in REPEATED:
            found[param.argument] = _PART_READERS[param.kind](param, parts[param.name])
        else:
            found[param.argument] = _READERS[param.kind](param, given[param.name])
    return found


def _sort_out(operation: Operation, params: Mapping[str, str]) -> tuple[dict[str, str], dict[str, Parts]]:
    """Plain values by name, and the parts of repeated ones by name and number."""
    known = operation.known
    given: dict[str, str] = {}
    parts: dict[str, Parts] = {}
    maps: dict[str, dict[str, str]] = {}  # a map that is sent as one parameter for each entry, as the old SDK for Node.js does
    for name, value in params.items():
        _encodable(name, name + value)
        if name in known and known[name].kind not in REPEATED:
            given[name] = value
            continue
        head, dot, entry = name.partition(".")
        if dot and head in known and known[head].kind is Kind.CONTEXT:
            maps.setdefault(head, {})[entry] = value
            continue
        match = _NUMBERED.fullmatch(name)
        param = known.get(match[1]) if match else None
        if match is None or param is None or param.kind not in REPEATED or (param.kind is Kind.NUMBERED) is not (match[3] is None):
            raise invalid(name, f"{operation.name} has no such parameter.")
        if value or match[3] == "Value":
            parts.setdefault(param.name, {})[int(match[2]), match[3] or ""] = value
    for name, entries in maps.items():
        if name in given:
            raise invalid(name, "It is given in two ways.")
        given[name] = json.dumps(entries, ensure_ascii=False, separators=(",", ":"))
    return given, parts


def _refuse_unoffered(param: Param, value: str) -> None:
    if value.lower() != param.default.lower():
        raise KmsError("UnsupportedOperation", f'The parameter "{param.name}" is not offered here.')


# --- plain values ------------------------------------------------------------------------------------------------------------------


def _string(param: Param, value: str) -> str:
    if param.choices and value not in param.choices:
        raise invalid(param.name, f"It is one of {', '.join(param.choices)}.")
    if param.maximum is not None and len(value) > param.maximum:
        raise invalid(param.name, f"It is at most {param.maximum} characters.")
    return value


def _integer(param: Param, value: str) -> int:
    number = int(value) if _INTEGER.fullmatch(value) else None
    low, high = param.minimum, param.maximum
    if number is None or (low is not None and number < low) or (high is not None and number > high):
        bounds = f" from {low}" * (low is not None) + f" to {high}" * (high is not None)
        raise invalid(param.name, f"It is a whole number{bounds}.")
    return number


def _boolean(param: Param, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise invalid(param.name, "It is true or false.")
    return value.lower() == "true"


def _text(param: Param, value: str) -> bytes:
    data = value.encode()
    if param.maximum is not None and len(data) > param.maximum:
        raise invalid(param.name, f"It is at most {param.maximum} bytes; use a data key for more.")
    return data


def _blob(param: Param, value: str) -> bytes:
    """The error is the same as for a blob that does not decrypt: a caller learns nothing from it."""
    if (data := _unbase64(value)) is None:
        raise invalid(param.name)
    return data


def _bytes(param: Param, value: str) -> bytes:
    if (data := _unbase64(value)) is None:
        raise invalid(param.name, "It is base64.")
    return data


def _unbase64(value: str) -> bytes | None:
    """Canonical base64 only; None for anything else."""
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if base64.b64encode(data).decode() == value else None


# --- JSON --------------------------------------------------------------------------------------------------------------------------


def _context(param: Param, value: str) -> dict[str, str] | None:
    """None for the empty context."""
    if param.maximum is not None and len(value) > param.maximum:
        raise invalid(param.name, f"It is at most {param.maximum} characters.")
    context = _json(param, value)
    if not isinstance(context, dict) or not all(isinstance(item, str) for item in context.values()):
        raise invalid(param.name, "It is a JSON object from string to string.")
    for name, item in context.items():
        _encodable(param.name, name + item)
    return context or None


def _tags(param: Param, value: str) -> dict[str, str]:
    pairs = []
    for item in _array(param, value, dict):
        if item.keys() - {"TagKey", "TagValue"}:
            raise invalid(param.name, 'It is a JSON array of {"TagKey":…,"TagValue":…}.')
        pairs.append((item.get("TagKey"), item.get("TagValue", "")))
    return _tag_map(pairs)


def _tag_map(pairs: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    tags: dict[str, Any] = {}
    for key, value in pairs:
        if not isinstance(key, str) or not key:
            raise KmsError("InvalidParameter.TagKey", "The specified tag key is not valid.")
        if not isinstance(value, str | None):
            raise KmsError("InvalidParameter.TagValue", "The specified tag value is not valid.")
        if key in tags:
            raise KmsError("Duplicate.TagKey", f"The tag key {key!r} is given twice.")
        tags[key] = value
    return tags


def _strings(param: Param, value: str) -> list[str]:
    if value.lstrip().startswith("["):
        return _array(param, value, str)
    return [item.strip() for item in value.split(",")]


def _blobs(param: Param, value: str) -> list[bytes]:
    return [_blob(param, item) for item in _array(param, value, str)]


def _filters(param: Param, value: str) -> dict[str, list[str]]:
    """A filter that is named twice is one with the values of both; keyId is documented with a small k, and KeyId does as well."""
    filters: dict[str, list[str]] = {}
    for item in _array(param, value, dict):
        name, values = item.pop("Key", None), item.pop("Values", None)
        if item or not isinstance(name, str) or not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise invalid(param.name, 'It is a JSON array of {"Key":…,"Values":[…]}.')
        for each in values:
            _encodable(param.name, each)
        filters.setdefault("keyId" if name == "KeyId" else name, []).extend(values)
    return filters


def _array(param: Param, value: str, of: type) -> list[Any]:
    items = _json(param, value)
    if not isinstance(items, list) or not all(isinstance(item, of) for item in items):
        raise invalid(param.name, "It is a JSON array" + (" of strings." if of is str else " of objects."))
    if param.maximum is not None and len(items) > param.maximum:
        raise invalid(param.name, f"It has at most {param.maximum} items.")
    if not items and param.required:
        raise missing(param.name)
    return items


def _json(param: Param, value: str) -> Any:
    try:
        return strictjson.loads(value)
    except ValueError:
        raise invalid(param.name, "It is not valid JSON, or a name occurs twice in it.") from None


def _encodable(name: str, value: str) -> None:
    """Strings that UTF-8 cannot carry (lone surrogates) go no further."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise invalid(name.encode(errors="replace").decode(), "It holds a character that UTF-8 cannot carry.") from None


# --- numbered values ---------------------------------------------------------------------------------------------------------------


def _numbered(param: Param, parts: Parts) -> list[str]:
    if param.maximum is not None and len(parts) > param.maximum:
        raise invalid(param.name, f"There are at most {param.maximum}.")
    return [parts[number] for number in sorted(parts)]


def _numbered_tags(param: Param, parts: Parts, absent: str | None = "") -> dict[str, Any]:
    numbers = sorted({number for number, _ in parts})
    if param.maximum is not None and len(numbers) > param.maximum:
        raise invalid(param.name, f"There are at most {param.maximum}.")
    return _tag_map((parts.get((number, "Key")), parts.get((number, "Value"), absent)) for number in numbers)


def _numbered_tag_filters(param: Param, parts: Parts) -> dict[str, Any]:
    return _numbered_tags(param, parts, absent=None)


_READERS: dict[Kind, Callable[[Param, str], Any]] = {
    Kind.STRING: _string,
    Kind.INTEGER: _integer,
    Kind.BOOLEAN: _boolean,
    Kind.TEXT: _text,
    Kind.BLOB: _blob,
    Kind.BYTES: _bytes,
    Kind.BLOBS: _blobs,
    Kind.CONTEXT: _context,
    Kind.TAGS: _tags,
    Kind.STRINGS: _strings,
    Kind.FILTERS: _filters,
}
_PART_READERS: dict[Kind, Callable[[Param, Parts], Any]] = {
    Kind.NUMBERED: _numbered,
    Kind.NUMBERED_TAGS: _numbered_tags,
    Kind.NUMBERED_TAG_FILTERS: _numbered_tag_filters,
}
