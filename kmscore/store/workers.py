"""The processes of the scheduler as they say they are there, and when due work was last swept.

Times are the machine's clock in microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from kmscore.store.datastore import Datastore

LAST_SWEEP = "last_sweep"  # in facts


@dataclass(frozen=True, slots=True)
class WorkerRow:
    id: str
    host: str
    pid: int
    started_at: int
    seen_at: int
    worked_at: int | None
    done: int
    failed: int


class Workers:
    def __init__(self, datastore: Datastore) -> None:
        self._datastore = datastore

    def seen(self, row: WorkerRow) -> None:
        """The whole row each time: it comes back by itself when a sweep took a worker that was silent for dead."""
        with self._datastore.writing() as cursor:
            cursor.execute(
                "INSERT INTO workers VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at,"
                " worked_at = excluded.worked_at, done = excluded.done, failed = excluded.failed",
                (row.id, row.host, row.pid, row.started_at, row.seen_at, row.worked_at, row.done, row.failed),
            )

    def left(self, worker_id: str) -> None:
        with self._datastore.writing() as cursor:
            cursor.execute("DELETE FROM workers WHERE id = ?", (worker_id,))

    def swept(self, wall: int, stale: int) -> None:
        """A sweep runs now; forget workers that were not seen for `stale` microseconds, before or after (a clock may be set back)."""
        with self._datastore.writing() as cursor:
            cursor.execute(
                "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", (LAST_SWEEP, str(wall))
            )
            cursor.execute("DELETE FROM workers WHERE seen_at < ? OR seen_at > ?", (wall - stale, wall + stale))

    def last_sweep(self) -> int | None:
        with self._datastore.reading() as cursor:
            cursor.execute("SELECT value FROM facts WHERE name = ?", (LAST_SWEEP,))
            row = cursor.fetchone()
        return int(row[0]) if row else None

    def all(self) -> list[WorkerRow]:
        with self._datastore.reading() as cursor:
            cursor.execute("SELECT id, host, pid, started_at, seen_at, worked_at, done, failed FROM workers ORDER BY host, pid")
            return [WorkerRow(*row) for row in cursor.fetchall()]

    def alive(self, wall: int, silent: int) -> int:
        """How many were seen within `silent` microseconds."""
        with self._datastore.reading() as cursor:
            cursor.execute("SELECT count(*) FROM workers WHERE seen_at >= ? AND seen_at <= ?", (wall - silent, wall + silent))
            return int(cursor.fetchone()[0])
