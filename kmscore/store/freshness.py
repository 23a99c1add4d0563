"""Are my views fresh, and has everyone seen that change? What a point in the log is, and the two ways to agree on it.

One home: gate.py, a counter in a mapped file. A store that several nodes share: lease.py, a lease in the store (DESIGN rule 3, section 9).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from kmscore.store._gate import Gate


class Point(NamedTuple):
    """How far a process has read: `generation` as its gate counts, `position` as the log does. `at`: nanoseconds of the boot-time clock,
    before the log was read."""

    generation: int
    position: int = 0
    at: int = 0


class Freshness(ABC):
    gate: Gate
    """Of this process. Views are fresh while its `fresh` is the generation that they were built at."""
    owner: str
    """What stands beside the intents that this process opens."""

    @abstractmethod
    def begin(self) -> Point:
        """Before the log is read. Raises KmsError ServiceUnavailableTemporary when the store cannot be reached."""

    @abstractmethod
    def taken_in(self, point: Point, settled: bool) -> bool:
        """The views are those of `point`, and, if `settled`, no session key is left that it forbids. False: begin again.

        Raises as `begin` does; the views must not be used then.
        """

    def failed(self) -> None:
        """The log could not be read, or what was read not be told."""
        return

    @abstractmethod
    def settle(self, point: Point) -> None:
        """No session key is left that `point` forbids."""

    @abstractmethod
    def announce(self) -> None:
        """Something was committed: let every process look."""

    @abstractmethod
    def wait_until_taken_in(self, point: Point) -> None:
        """Return when no process can act on views older than `point`. Raises as `begin` does; the change stands all the same."""

    @abstractmethod
    def wait_until_settled(self, point: Point, timeout: float) -> None:
        """Return when every live process has said that `point` is settled.

        Raises KmsError ServiceUnavailableTemporary after `timeout` seconds; nothing was undone then, ask again.
        """

    @abstractmethod
    def works(self, owner: str) -> bool:
        """Whether the process that opened an intent, not this one, may be at work on it still."""

    @abstractmethod
    def lease_age(self) -> float | None:
        """Seconds since this process last knew that its views are fresh; None where no lease is needed."""

    @abstractmethod
    def start(self) -> None:
        """Start the threads that this needs."""

    @abstractmethod
    def close(self) -> None: ...
