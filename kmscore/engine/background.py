"""The threads of an open engine: the watcher keeps the views fresh, the ticker does due work. Both only save time: correctness rests on
the checks before each use and on optimistic concurrency.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from kmscore.engine.keyring import KeyRing
from kmscore.logs import log_fault
from kmscore.store._gate import Gate
from kmscore.tracing import root

FIRST_TICK_SECONDS = 2.0
RETRY_SECONDS = 0.3  # after the watcher could not look


class Watcher(threading.Thread):
    """Takes changes in as they are announced, so that no destruction waits for an idle process; reads the
    store behind it now and then, for changes that a dying writer did not announce and to renew a lease; drops idle session keys."""

    def __init__(self, ring: KeyRing, gate: Gate, poll_seconds: float, idle_seconds: float) -> None:
        super().__init__(name="kmscore-watcher", daemon=True)
        self._ring = ring
        self._gate = gate
        self._poll = poll_seconds
        self._idle = idle_seconds
        self._stop_asked = False

    def run(self) -> None:
        seen = self._gate.generation
        idle_at = time.monotonic() + self._idle
        poll_at = time.monotonic() + self._poll
        while not self._stop_asked:
            generation = self._gate.wait(seen, max(0.0, poll_at - time.monotonic()))
            if self._stop_asked:
                return
            try:
                if generation != seen or time.monotonic() >= poll_at:
                    poll_at = time.monotonic() + self._poll
                    self._ring.refresh()
                    seen = generation
                if time.monotonic() >= idle_at:
                    idle_at = time.monotonic() + self._idle
                    self._ring.drop_idle()
            except Exception as error:  # a thread of ours outlives whatever happens to it
                # A process that cannot reach the store refuses rather than guess: the next use looks for itself, and says why not.
                self._ring.doubt()
                log_fault("cannot look for changes", error)
                time.sleep(RETRY_SECONDS)

    def stop(self) -> None:
        self._stop_asked = True
        self._gate.bump()  # wakes it
        self.join()


class Ticker(threading.Thread):
    """Runs due work soon and then every `period` seconds; recovery of interrupted work with it."""

    def __init__(self, work: Callable[[Callable[[], bool]], object], period: float) -> None:
        """`work` is given a function that says whether to stop."""
        super().__init__(name="kmscore-ticker", daemon=True)
        self._work = work
        self._period = period
        self._stop_asked = threading.Event()

    def run(self) -> None:
        # A short-lived program is not kept waiting by work that a longer-lived one does.
        delay = min(FIRST_TICK_SECONDS, self._period)
        while not self._stop_asked.wait(delay):
            delay = self._period
            try:
                with root("tick"):
                    self._work(self._stop_asked.is_set)
            except Exception as error:
                log_fault("due work is postponed", error)

    def stop(self) -> None:
        self._stop_asked.set()
        self.join()
