"""Due work, as its callers see it: all of it at once for a person, piece by piece for the scheduler, and how it stands."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from kmscore.engine.engine import Engine
from kmscore.results import DueReport, DueStatus, ReconcileReport, SchedulerWorker


class DueOperations(Engine):
    def run_due(self) -> DueReport:
        """Rotate and destroy whatever is due now, also what waits after a failure; not what is parked."""
        return self._s.due.run(everything=True)

    def release_parked(self) -> int:
        """Let what was given up be tried again: after what made it fail was seen to. Answers how many pieces of work."""
        return self._s.attempts.release()

    def due_status(self) -> DueStatus:
        return self._s.scheduling.status()

    def scheduler_workers(self) -> tuple[SchedulerWorker, ...]:
        """Every process of the scheduler that was heard of in the last minutes."""
        return self._s.scheduling.workers()

    # --- for the scheduler ---------------------------------------------------------------------------------------------------------

    def hand_out_due(self, shard: int | None = None, limit: int = 500) -> list[tuple[str, str]]:
        """(kind, key id) of work that is due, of one shard of 16 or of all: held for `claim_seconds`, then handed out again unless done."""
        return self._s.due.hand_out(shard, limit)

    def give_back_due(self, work: Sequence[tuple[str, str]]) -> None:
        """Hold work that could not be passed on no longer."""
        self._s.due.give_back(list(work))

    def do_due(self, kind: str, key_id: str) -> bool:
        """Do one piece of work that was handed out; False when there is nothing to do (any more), or it is parked.

        Raises KmsError when it failed; it is handed out again later then, or parked.
        """
        return self._s.due.work(kind, key_id)

    def recover(self) -> ReconcileReport:
        """What is done once in every round of sweeps: settle what dead processes left open, say that sweeps run, forget dead workers."""
        self._s.scheduling.swept()
        return self._s.reconciler.recover()

    def worker_seen(self, worker_id: str, started_at: datetime, worked_at: datetime | None, done: int, failed: int) -> None:
        """A worker process is there; what it has done so far."""
        self._s.scheduling.worker_seen(worker_id, started_at, worked_at, done, failed)

    def worker_left(self, worker_id: str) -> None:
        self._s.scheduling.worker_left(worker_id)
