"""Are my views fresh, and has everyone seen that change? On one machine: a generation counter in a mapped file of the home.

A writer commits, then bumps the generation, then acknowledges. A reader compares the generation with the one its views were built at
before each use: nanoseconds. Each process publishes, in a slot of its own, the generation whose changes it has taken in and whose
session keys it has dropped: destruction waits for all of them (DESIGN rule 3 and section 9).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from kmscore.errors import KmsError, SetupError
from kmscore.process import boot_id, start_time, this_process
from kmscore.store._gate import SIZE, SLOTS, Gate

POLL_SECONDS = 0.002  # while waiting for slots


class Freshness:
    def __init__(self, directory: Path) -> None:
        """Join under the home lock: create the file where it is missing, and take a slot that no live process holds.

        One file a boot: what a power cut left of an older one, half-written perhaps, is nobody's, and is cleared away.
        """
        path = directory / f"gate-{boot_id()}"
        for old in directory.glob("gate*"):
            if old != path:
                old.unlink(missing_ok=True)
        with open(os.open(path, os.O_CREAT | os.O_RDWR, 0o600), "r+b") as file:
            if os.fstat(file.fileno()).st_size != SIZE:  # new, or its maker was killed
                file.truncate(SIZE)
        self.gate = Gate(str(path))
        me = this_process()
        self._slot = next((slot for slot in range(SLOTS) if not self._live(slot)), None)
        if self._slot is None:
            raise SetupError(f"{SLOTS} processes have this home open already")
        self.gate.claim(self._slot, me.pid, me.start_time)

    def announce(self) -> int:
        """Tell every process that something was committed; answers the generation that says so."""
        return self.gate.bump()

    def publish(self, generation: int) -> None:
        """This process has taken in everything up to `generation` and holds no session key that it forbids."""
        self.gate.publish(generation)

    def wait_until_seen(self, generation: int, timeout: float) -> None:
        """Return when every live process has published `generation` or more.

        Raises KmsError ServiceUnavailableTemporary after `timeout` seconds; nothing was undone then, ask again.
        """
        deadline = time.monotonic() + timeout
        behind = range(SLOTS)
        while True:
            behind = [slot for slot in behind if self._behind(slot, generation)]  # type: ignore[assignment]
            if not behind:
                return
            if time.monotonic() >= deadline:
                pids = ", ".join(str(self.gate.read(slot)[0]) for slot in behind)
                raise KmsError("ServiceUnavailableTemporary", f"process {pids} has not yet let go of the key")
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        self.gate.release()
        self.gate.close()

    def _behind(self, slot: int, generation: int) -> bool:
        return self.gate.read(slot)[2] < generation and self._live(slot)

    def _live(self, slot: int) -> bool:
        pid, started, _ = self.gate.read(slot)
        return pid != 0 and start_time(pid) == started
