"""How often what is rare has happened in this process. Rooms below the doors count here, and know nothing of who tells it."""

from __future__ import annotations

import threading

TOKEN_ERRORS = "token_errors"  # by CKR_ name
STORE_ERRORS = "store_errors"  # by what could not be done
KEY_LOADS = "key_loads"  # by level and outcome
KEY_VIEWS_BUILT = "key_views_built"

Counted = tuple[str, tuple[str, ...]]

_lock = threading.Lock()
_numbers: dict[Counted, int] = {}


def count(what: str, *labels: str) -> None:
    """Takes a lock: never on the way of a use that goes well."""
    with _lock:
        _numbers[what, labels] = _numbers.get((what, labels), 0) + 1


def counted() -> dict[Counted, int]:
    """Everything counted since the process began."""
    with _lock:
        return dict(_numbers)
