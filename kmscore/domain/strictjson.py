"""JSON as callers pass it inside parameters: what could be read in two ways is refused."""

from __future__ import annotations

import json
from typing import Any


def loads(text: str) -> Any:
    """Raises ValueError for what is not JSON, an object with a name twice, NaN and the like, or nesting beyond the interpreter's depth."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
