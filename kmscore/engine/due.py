"""Due work: rotation, deletion and the expiry of imported material on time.

The due times live in the store; whoever asks first does the work, exactly once.
"""

from __future__ import annotations

from collections.abc import Callable

from kmscore.clock import Clock
from kmscore.domain.by import By
from kmscore.domain.key import Key
from kmscore.domain.names import IMPORT_PREFIX
from kmscore.engine.lifecycle import Lifecycle
from kmscore.errors import KmsError
from kmscore.results import DueReport
from kmscore.store.queries import Queries
from kmscore.store.readmodel import DELETE, DESTRUCTION, EXPIRE, NOTE_PRIMARY, ROTATE

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
        done: dict[str, list[str]] = {ROTATE: [], DELETE: [], EXPIRE: [], NOTE_PRIMARY: []}
        failed: dict[str, str] = {}

        def attempt(kind: str, work: Callable[[str], bool], key_id: str) -> None:
            try:
                if work(key_id) and not key_id.startswith(IMPORT_PREFIX):
                    done[kind].append(key_id)
            except KmsError as error:
                failed[key_id] = error.code

        def wait() -> float:
            return 0 if failed else self._eviction_wait

        work: dict[str, Callable[[str], bool]] = {
            ROTATE: self.rotate,
            DELETE: lambda key_id: self._lifecycle.destroy(key_id, wait()),
            EXPIRE: lambda key_id: self._lifecycle.remove_material(key_id, Key.expire_material, wait()),
            NOTE_PRIMARY: self._note_primary,
        }
        now = self._clock.now()
        after = (-1, "", "")
        while (page := self._queries.due(now, PAGE, after)) and not stop():
            for due_at, key_id, kind in page:
                after = (due_at, key_id, kind)
                if not stop():
                    attempt(kind, work[kind], key_id)
        for intent in self._queries.open_intents():
            if intent.kind == DESTRUCTION and intent.key_id not in failed and not stop():
                attempt(DELETE, lambda key_id: self._lifecycle.finish(key_id, wait()), intent.key_id)
        return DueReport(tuple(done[ROTATE]), tuple(done[DELETE]), tuple(failed.items()), tuple(done[EXPIRE]))

    def rotate(self, key_id: str) -> bool:
        """Rotate a key if its policy says so now; False when another process has done it already, or the policy changed."""
        try:
            self._lifecycle.rotate(key_id, _still_due)
        except NotDue:
            return False
        return True

    def _note_primary(self, key_id: str) -> bool:
        self._lifecycle.change((key_id,), Key.note_primary)
        return True


def _still_due(key: Key, by: By) -> None:
    if not key.rotation_due(by.now):
        raise NotDue
