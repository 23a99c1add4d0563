"""Pure date rules: rotation intervals, deletion windows (SEMANTICS sections 3 and 4, DECISIONS 1 and 2)."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from kmscore.errors import invalid, missing

DAY_SECONDS = 86_400
MIN_ROTATION_SECONDS = 7 * DAY_SECONDS
MAX_ROTATION_SECONDS = 730 * DAY_SECONDS
MIN_DELETION_DAYS = 7
MAX_DELETION_DAYS = 366
LAST_UNIX = 253_402_300_799  # 9999-12-31T23:59:59Z, the last second that a date can tell

_UNITS = {"d": DAY_SECONDS, "h": 3_600, "m": 60, "s": 1}
_INTERVAL = re.compile(r"([0-9]{1,12})([dhms])")


def rotation_seconds(text: str | None) -> int:
    """Seconds of a RotationInterval such as `30d`, `720h` or `2592000s`; 7 to 730 days.

    Raises KmsError MissingParameter or InvalidParameter (RotationInterval).
    """
    if not text:
        raise missing("RotationInterval")
    match = _INTERVAL.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise invalid("RotationInterval", "It is a number and a unit: d, h, m or s.")
    seconds = int(match[1]) * _UNITS[match[2]]
    if not MIN_ROTATION_SECONDS <= seconds <= MAX_ROTATION_SECONDS:
        raise invalid("RotationInterval", "It must be from 7 to 730 days.")
    return seconds


def deletion_instant(now: datetime, window_days: int) -> datetime:
    """When a key scheduled now is destroyed. Raises KmsError InvalidParameter (PendingWindowInDays) outside 7 to 366 days."""
    if not MIN_DELETION_DAYS <= window_days <= MAX_DELETION_DAYS:
        raise invalid("PendingWindowInDays", "It must be from 7 to 366.")
    return now + timedelta(days=window_days)
