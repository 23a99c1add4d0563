"""Due work: rotation, deletion and the expiry of imported material on time.

The due times live in the store, and so does what is known of attempts (store/attempts.py). The ticker of a process, `run_due` and the
scheduler's workers are handed work out of the same table; whoever does a piece of it, it is done exactly once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from random import SystemRandom
from typing import Any

from kmscore.clock import Clock, wall_seconds
from kmscore.domain.by import By
from kmscore.domain.key import Key
from kmscore.domain.names import IMPORT_PREFIX
from kmscore.engine.lifecycle import Lifecycle
from kmscore.errors import KmsError
from kmscore.results import DueReport
from kmscore.store.attempts import Attempts, Work
from kmscore.store.queries import Queries
from kmscore.store.readmodel import DELETE, DESTRUCTION, EXPIRE, NOTE_PRIMARY, ROTATE

log = logging.getLogger("kmscore")

PAGE = 100
_RANDOM = SystemRandom()
NOT_DUE = "NotDue"  # the code of work that the store calls due and the key does not: a clock was set back, or the row is wrong


class NotDue(Exception):
    """Another process has done it already, or the policy changed."""


@dataclass(frozen=True, slots=True)
class Pace:
    """When due work is taken up. Durations are seconds."""

    claim_seconds: float
    eviction_wait: float  # how long other processes get, once in a run, to drop session keys of keys that are destroyed
    spread_seconds: int = 0  # the jitter window of rotations
    late_seconds: float = 0.0  # the ticker leaves what is overdue by less to the scheduler


class DueWork:
    def __init__(
        self,
        queries: Queries,
        attempts: Attempts,
        lifecycle: Lifecycle,
        clock: Clock,
        pace: Pace,
        wall: Callable[[], float] = wall_seconds,
        jitter: Callable[[], float] = _RANDOM.random,
    ) -> None:
        """`wall` is the machine's clock, which holds and back-off follow; `jitter` answers from 0 to 1."""
        self._queries = queries
        self._attempts = attempts
        self._lifecycle = lifecycle
        self._clock = clock
        self._pace = pace
        self._wall = wall
        self._jitter = jitter

    # --- all of it ---------------------------------------------------------------------------------------------------------------

    def run(self, stop: Callable[[], bool] = lambda: False, *, everything: bool = False) -> DueReport:
        """Do what is due now, and finish destructions that were started, until `stop` says so. `everything`: also what is held, waits for
        its turn in the jitter window, or is left to the scheduler; never what is parked.

        Nothing is tried twice. One key's failure stops no other, and one process that does not let go is waited for once, not for each key.
        """
        done: dict[str, list[str]] = {ROTATE: [], DELETE: [], EXPIRE: [], NOTE_PRIMARY: []}
        failed: dict[str, str] = {}

        def attempt(kind: str, work: Callable[[str, float], bool], key_id: str) -> None:
            try:
                if work(key_id, 0 if failed else self._pace.eviction_wait) and not key_id.startswith(IMPORT_PREFIX):
                    done[kind].append(key_id)
            except KmsError as error:
                failed[key_id] = error.code

        begun = self._wall()
        if everything:
            self._attempts.let_go(begun)
        while not stop() and (page := self._page(begun, everything)):
            while page and not stop():
                kind, key_id = page.pop(0)
                attempt(kind, partial(self._work, kind), key_id)
            if page:
                self._attempts.let_go(begun, page)
        for intent in self._queries.open_intents():
            if intent.kind == DESTRUCTION and intent.key_id not in failed and not stop():
                attempt(DELETE, self._lifecycle.finish, intent.key_id)
        return DueReport(tuple(done[ROTATE]), tuple(done[DELETE]), tuple(failed.items()), tuple(done[EXPIRE]))

    def _page(self, begun: float, everything: bool) -> list[Work]:
        """What a run has not been handed out yet: whatever it begins is held, or waits, until after `begun`."""
        pace = Pace(self._pace.claim_seconds, self._pace.eviction_wait) if everything else self._pace
        return self._take(PAGE, pace.spread_seconds, late_seconds=pace.late_seconds, free_before=begun)

    def _take(self, limit: int, spread_seconds: int, **more: Any) -> list[Work]:
        return self._attempts.hand_out(
            self._clock.now(), self._wall(), claim_seconds=self._pace.claim_seconds, limit=limit, spread_seconds=spread_seconds, **more
        )

    # --- piece by piece, for the scheduler ---------------------------------------------------------------------------------------

    def hand_out(self, shard: int | None, limit: int) -> list[Work]:
        """Work for whoever asks, which is held for a while: do it with `work`, or give it back."""
        return self._take(limit, self._pace.spread_seconds, shard=shard)

    def give_back(self, work: list[Work]) -> None:
        self._attempts.let_go(self._wall(), work)

    def work(self, kind: str, key_id: str) -> bool:
        """Do one piece of work that was handed out; False when there is nothing to do (any more), or it is parked.

        Raises KmsError when it failed. It is tried again later then, or parked.
        """
        return self._work(kind, key_id, self._pace.eviction_wait)

    def _work(self, kind: str, key_id: str, eviction_wait: float) -> bool:
        if not self._attempts.begin(kind, key_id, self._wall(), self._pace.claim_seconds):
            return False
        try:
            done = self._do(kind, key_id, eviction_wait)
        except KmsError as error:
            # A fault of ours, or of the machine, may pass as well (no file descriptors left); one that does not is parked in the end.
            self._failed(kind, key_id, error.code, retryable=error.retryable or error.status >= 500)
            raise
        except Exception as error:
            log.error("due work: %s of %s", kind, key_id, exc_info=error)
            self._failed(kind, key_id, "InternalFailure", retryable=True)
            raise KmsError("InternalFailure", f"{kind} of {key_id} failed: {type(error).__name__}") from error
        if not done:
            self._failed(kind, key_id, NOT_DUE, retryable=True)
        return done

    def _do(self, kind: str, key_id: str, eviction_wait: float) -> bool:
        work: dict[str, Callable[[], bool]] = {
            ROTATE: lambda: self.rotate(key_id),
            DELETE: lambda: self._lifecycle.destroy(key_id, eviction_wait),
            EXPIRE: lambda: self._lifecycle.remove_material(key_id, Key.expire_material, eviction_wait),
            NOTE_PRIMARY: lambda: bool(self._lifecycle.change((key_id,), Key.note_primary)),
        }
        return work[kind]()

    def _failed(self, kind: str, key_id: str, code: str, *, retryable: bool) -> None:
        with suppress(KmsError):  # the store cannot be written: it stays held, and is offered again after that
            self._attempts.failed(kind, key_id, code, self._wall(), retryable=retryable, jitter=self._jitter())

    def rotate(self, key_id: str) -> bool:
        """Rotate a key if its policy says so now; False when another process has done it already, or the policy changed."""
        try:
            self._lifecycle.rotate(key_id, _still_due)
        except NotDue:
            return False
        return True


def _still_due(key: Key, by: By) -> None:
    if not key.rotation_due(by.now):
        raise NotDue
