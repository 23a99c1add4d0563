"""How due work stands: what waits and for how long, what is parked, whether anybody sweeps, which workers are there."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from datetime import datetime

from kmscore.clock import Clock, wall_seconds
from kmscore.engine.due import Pace
from kmscore.results import DueStatus, Finding, SchedulerWorker
from kmscore.store.attempts import DIED, SECOND, Attempts
from kmscore.store.readmodel import from_micros, micros
from kmscore.store.workers import WorkerRow, Workers

SILENT_SECONDS = 30  # a worker says every five that it is there (scheduler/engine.py)
FORGOTTEN_SECONDS = 600
SHOWN = 10  # parked keys that the doctor names

# Code of parked work -> what it takes; others: what failed must be seen to first.
_REMEDIES = {
    DIED: "every process that tried it was killed: find out by what, in the log of the workers; then kms tick --parked",
    "Rejected.Unavailable": "its material is not in the custody: kms reconcile tells more; restore it; then kms tick --parked",
}


class Scheduling:
    def __init__(
        self,
        attempts: Attempts,
        workers: Workers,
        clock: Clock,
        pace: Pace,
        tick_seconds: float,
        *,
        scheduled: bool,
        wall: Callable[[], float] = wall_seconds,
    ) -> None:
        """`scheduled`: workers of the scheduler are meant to do the work (redis_url is set)."""
        self._attempts = attempts
        self._workers = workers
        self._clock = clock
        self._pace = pace
        self._tick = tick_seconds
        self._scheduled = scheduled
        self._wall = wall

    # --- what a worker says of itself --------------------------------------------------------------------------------------------

    def worker_seen(self, worker_id: str, started_at: datetime, worked_at: datetime | None, done: int, failed: int) -> None:
        at = None if worked_at is None else micros(worked_at)
        self._workers.seen(WorkerRow(worker_id, platform.node(), os.getpid(), micros(started_at), self._micros(), at, done, failed))

    def worker_left(self, worker_id: str) -> None:
        self._workers.left(worker_id)

    def swept(self) -> None:
        """A sweep runs now; what has not been heard of for long is forgotten."""
        self._workers.swept(self._micros(), FORGOTTEN_SECONDS * SECOND)

    # --- what is to be seen ------------------------------------------------------------------------------------------------------

    def status(self) -> DueStatus:
        now = self._clock.now()
        backlog = self._attempts.backlog(now, self._pace.spread_seconds)
        swept = self._workers.last_sweep()
        return DueStatus(
            backlog=backlog.count,
            oldest_due_seconds=0.0 if backlog.oldest is None else max(0.0, (micros(now) - backlog.oldest) / SECOND),
            parked=backlog.parked,
            last_sweep_seconds_ago=None if swept is None else max(0.0, (self._micros() - swept) / SECOND),
            workers_alive=self._workers.alive(self._micros(), SILENT_SECONDS * SECOND),
        )

    def workers(self) -> tuple[SchedulerWorker, ...]:
        now = self._micros()
        return tuple(
            SchedulerWorker(
                host=row.host,
                pid=row.pid,
                started_at=from_micros(row.started_at),
                seen_at=from_micros(row.seen_at),
                worked_at=None if row.worked_at is None else from_micros(row.worked_at),
                done=row.done,
                failed=row.failed,
                alive=abs(now - row.seen_at) <= SILENT_SECONDS * SECOND,
            )
            for row in self._workers.all()
        )

    def findings(self) -> Iterator[Finding]:
        """What a doctor says of it."""
        status = self.status()
        for parked in self._attempts.parked(SHOWN):
            remedy = _REMEDIES.get(parked.code, "see to what the code says (docs/API.md has them all); then kms tick --parked")
            yield Finding("warn", f"{parked.kind} of {parked.key_id} is parked after {parked.tries} tries: {parked.code}", remedy)
        if status.parked > SHOWN:
            yield Finding("warn", f"{status.parked - SHOWN} more are parked")
        patience = self._pace.late_seconds + self._pace.claim_seconds + 2 * self._tick
        if status.oldest_due_seconds > patience:
            text = f"{status.backlog} pieces of work are due, the oldest for {status.oldest_due_seconds:.0f} s"
            remedy = "are the workers there, and enough? kms workers tells" if self._scheduled else "kms tick does it, or a running service"
            yield Finding("warn", text, remedy)
        if self._scheduled:
            yield from self._scheduler_findings(status)

    def _scheduler_findings(self, status: DueStatus) -> Iterator[Finding]:
        for worker in self.workers():
            if not worker.alive:
                text = f"worker {worker.pid} on {worker.host} has been silent since {worker.seen_at:%Y-%m-%dT%H:%M:%SZ}"
                yield Finding("warn", text, "if it is running, restart it; if not, it is forgotten after ten minutes")
        if not status.workers_alive:
            yield Finding("warn", "redis_url is set and no worker is alive", "start python -m scheduler worker; services do the work late")
        swept = status.last_sweep_seconds_ago
        if swept is None or swept > 4 * self._tick + SILENT_SECONDS:
            text = "due work was never swept" if swept is None else f"due work was last swept {swept:.0f} s ago"
            yield Finding("warn", text, "one of these is missing: python -m scheduler beat, its workers, Redis")
        else:
            yield Finding("ok", f"{status.workers_alive} workers; due work was swept {swept:.0f} s ago")

    def _micros(self) -> int:
        return round(self._wall() * SECOND)
