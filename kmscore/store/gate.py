"""Freshness on one home: a generation counter in a mapped file that all its processes share.

A writer commits, then bumps the generation, then acknowledges. A reader compares the generation with the one its views were built at
before each use: nanoseconds. Each process publishes, in a slot of its own, the generation whose changes it has taken in and whose
session keys it has dropped: destruction waits for all of them.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from kmscore.errors import KmsError, SetupError
from kmscore.process import Process, boot_id, start_time, this_process
from kmscore.store._gate import SIZE, SLOTS, Gate
from kmscore.store.freshness import Freshness, Point

POLL_SECONDS = 0.002  # while waiting for slots


class SharedGate(Freshness):
    def __init__(self, directory: Path) -> None:
        """Join under the home lock: create the file where it is missing, and take a slot that no live process holds.

        One file a boot: what a power cut left of an older one, half-written perhaps, is nobody's, and is cleared away.
        """
        path = directory / f"gate-{boot_id()}"
        for old in directory.glob("gate*"):
            if old != path:
                old.unlink(missing_ok=True)
        self.gate = make_gate(path)
        me = this_process()
        self.owner = str(me)
        self._slot = next((slot for slot in range(SLOTS) if not self._live(slot)), None)
        if self._slot is None:
            raise SetupError(f"{SLOTS} processes have this home open already")
        self.gate.claim(self._slot, me.pid, me.start_time)

    def begin(self) -> Point:
        return Point(self.gate.generation)

    def taken_in(self, point: Point, settled: bool) -> bool:
        if settled:
            self.settle(point)
        return True

    def settle(self, point: Point) -> None:
        self.gate.publish(point.generation)

    def announce(self) -> None:
        self.gate.bump()

    def wait_until_taken_in(self, point: Point) -> None:
        """From the bump on, every use in every process looks again first."""

    def wait_until_settled(self, point: Point, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        behind = range(SLOTS)
        while True:
            behind = [slot for slot in behind if self._behind(slot, point.generation)]  # type: ignore[assignment]
            if not behind:
                return
            if time.monotonic() >= deadline:
                pids = ", ".join(str(self.gate.read(slot)[0]) for slot in behind)
                raise KmsError("ServiceUnavailableTemporary", f"process {pids} has not yet let go of the key")
            time.sleep(POLL_SECONDS)

    def works(self, owner: str) -> bool:
        return "/" in owner and Process.parse(owner).alive()  # else it worked on a shared store, from which this one was moved

    def lease_age(self) -> float | None:
        return None

    def start(self) -> None:
        pass

    def close(self) -> None:
        self.gate.release()
        self.gate.close()

    def _behind(self, slot: int, generation: int) -> bool:
        return self.gate.read(slot)[2] < generation and self._live(slot)

    def _live(self, slot: int) -> bool:
        pid, started, _ = self.gate.read(slot)
        return pid != 0 and start_time(pid) == started


def live_processes(directory: Path) -> list[int]:
    """The processes that have this home's own database open; the caller holds the home lock."""
    path = directory / f"gate-{boot_id()}"
    if not path.exists():
        return []
    gate = make_gate(path)
    try:
        slots = [gate.read(slot) for slot in range(SLOTS)]
    finally:
        gate.close()
    return [pid for pid, started, _ in slots if pid and start_time(pid) == started]


def make_gate(path: Path) -> Gate:
    with open(os.open(path, os.O_CREAT | os.O_RDWR, 0o600), "r+b") as file:
        if os.fstat(file.fileno()).st_size != SIZE:  # new, or its maker was killed
            file.truncate(SIZE)
    return Gate(str(path))
