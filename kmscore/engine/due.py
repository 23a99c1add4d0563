"""Due work: rotation and deletion on time. The due times live in the store; whoever asks first does the work, exactly once."""

from __future__ import annotations

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
    def __init__(self, queries: Queries, lifecycle: Lifecycle, clock: Clock) -> None:
        self._queries = queries
        self._lifecycle = lifecycle
        self._clock = clock

    def run(self) -> DueReport:
        """Do everything that is due now, and finish destructions that were started. One key's failure stops no other."""
        rotated: list[str] = []
        destroyed: list[str] = []
        failed: list[tuple[str, str]] = []
        now = self._clock.now()
        after = (-1, "")
        while page := self._queries.due(now, PAGE, after):
            for due_at, key_id, kind in page:
                after = (due_at, key_id)
                try:
                    if kind == DELETE:
                        if self._lifecycle.destroy(key_id):
                            destroyed.append(key_id)
                    else:
                        self._lifecycle.rotate(key_id, _still_due)
                        rotated.append(key_id)
                except NotDue:
                    continue
                except KmsError as error:
                    failed.append((key_id, error.code))
        attempted = {key_id for key_id, _ in failed}
        for intent in self._queries.open_intents():
            if intent.kind != DESTRUCTION or intent.key_id in attempted:
                continue
            try:
                if self._lifecycle.destroy(intent.key_id):
                    destroyed.append(intent.key_id)
            except KmsError as error:
                failed.append((intent.key_id, error.code))
        return DueReport(tuple(rotated), tuple(destroyed), tuple(failed))


def _still_due(key: Key, by: By) -> None:
    if not key.rotation_due(by.now):
        raise NotDue
