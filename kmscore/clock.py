"""Business time. Leases, time-outs and back-off never use it: they follow the boot-time clock (time.monotonic)."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from kmscore.errors import KmsError


class Clock(Protocol):
    injected: bool
    """True when a person or a test drives time: no ticker runs by itself then."""

    def now(self) -> datetime:
        """The present instant, timezone-aware, UTC."""
        ...


def wall_seconds() -> float:
    """Seconds since 1970 by the machine's clock, whatever business time is: for the stamps of requests, which clients take from theirs."""
    return time.time()


def boot_seconds() -> float:
    """Seconds since some instant, which no one sets back: for time-outs."""
    return time.monotonic()


class SystemClock:
    injected = False

    def now(self) -> datetime:
        return datetime.now(UTC)


class FixedClock:
    """A clock that moves only when told to. The whole engine, scheduler included, follows it."""

    injected = True

    def __init__(self, instant: datetime) -> None:
        self._now = _utc(instant)

    def now(self) -> datetime:
        return self._now

    def advance(self, step: timedelta) -> None:
        self._now += step

    def set(self, instant: datetime) -> None:
        self._now = _utc(instant)


class FileClock:
    """Business time read from a file that holds one ISO 8601 instant; read at each call, so one file drives several processes."""

    injected = True

    def __init__(self, path: Path) -> None:
        self._path = path

    def now(self) -> datetime:
        try:
            return _utc(datetime.fromisoformat(self._path.read_text().strip()))
        except (OSError, ValueError) as error:
            raise KmsError("ServiceUnavailableTemporary", f"the clock file {self._path} does not tell the time: {error}") from None


def clock_of(clock_file: str) -> SystemClock | FileClock:
    """The clock that the setting of this name asks for; empty: the system's."""
    return FileClock(Path(clock_file)) if clock_file else SystemClock()


def _utc(instant: datetime) -> datetime:
    if instant.tzinfo is None:
        raise ValueError("a clock needs a timezone-aware datetime")
    return instant.astimezone(UTC)
