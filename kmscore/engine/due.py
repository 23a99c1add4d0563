"""Due work: rotation and deletion on time. The due times live in the store; whoever asks first does the work, exactly once."""

from __future__ import annotations

from collections.abc import Callable

from kmscore.clock import Clock
from kmscore.domain.by import By
from kmscore.domain.key import Key
from kmscore.engine.lifecycle import Lifecycle
from kmscore.errors import KmsError
from kmscore.results import DueReport
from kmscore.store.queries import Queries
from kmscore.store.readmodel import DELETE, DESTRUCTION

PAGE = 100


class NotDue(Exception):
    """Another process has done it already, or the policy changed."""


class DueWork:
    def __init__(self, queries: Queries, lifecycle: Lifecycle, clock: Clock, eviction_wait: float) -> None:
        """`eviction_wait`: how many seconds other processes get, once in a run, to drop session keys of keys that are destroyed."""
        self._queries = queries
        self._lifecycle = lifecycle
        self._clock = clock
        self._eviction_wait = eviction_wait

    def run(self, stop: Callable[[], bool] = lambda: False) -> DueReport:
        """Do everything that is due now, and finish destructions that were started, until `stop` says so.

        One key's failure stops no other, and one process that does not let go is waited for once, not for each key.
        """
        rotated: list[str] = []
        destroyed: list[str] = []
        failed: dict[str, str] = {}

        def destroy(key_id: str) -> None:
            if self._lifecycle.destroy(key_id, 0 if failed else self._eviction_wait):
                destroyed.append(key_id)

        def rotate(key_id: str) -> None:
            if self.rotate(key_id):
                rotated.append(key_id)

        now = self._clock.now()
        after = (-1, "")
        while page := self._queries.due(now, PAGE, after):
            for due_at, key_id, kind in page:
                after = (due_at, key_id)
                if stop():
                    break
                self._attempt(destroy if kind == DELETE else rotate, key_id, failed)
            if stop():
                break
        for intent in self._queries.open_intents():
            if intent.kind == DESTRUCTION and intent.key_id not in failed and not stop():
                self._attempt(destroy, intent.key_id, failed)
        return DueReport(tuple(rotated), tuple(destroyed), tuple(failed.items()))

    def rotate(self, key_id: str) -> bool:
        """Rotate a key if its policy says so now; False when another process has done it already, or the policy changed."""
        try:
            self._lifecycle.rotate(key_id, _still_due)
        except NotDue:
            return False
        return True

    @staticmethod
    def _attempt(work: Callable[[str], None], key_id: str, failed: dict[str, str]) -> None:
        try:
            work(key_id)
        except KmsError as error:
            failed[key_id] = error.code


def _still_due(key: Key, by: By) -> None:
    if not key.rotation_due(by.now):
        raise NotDue
