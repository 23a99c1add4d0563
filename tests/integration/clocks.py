"""Clocks of tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


class ShiftedClock:
    """The system's time and an offset; not injected, so that the ticker runs."""

    injected = False

    def __init__(self) -> None:
        self.offset = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.offset
