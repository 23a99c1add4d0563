"""Due work as it is handed out, shared by the in-process ticker and the scheduler: what is held, by whom nobody needs to know; what failed
and waits; what is parked. Due times are business time, everything else here follows the machine's clock (`wall`, seconds since 1970).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from kmscore.store.datastore import Datastore, in_order
from kmscore.store.readmodel import ROTATE, SPREAD_STEPS, micros

SECOND = 1_000_000
FIRST_BACKOFF_SECONDS = 10  # and half of it at the least
LARGEST_BACKOFF_SECONDS = 600
MAX_TRIES = 20
PARKED_RETRY_SECONDS = 3600  # of work that was parked though it may succeed later: an outage ends, and nobody needs to be there
NEVER = 1 << 62
DIED = "ProcessDied"  # the code of work that was begun MAX_TRIES times and never came to an end

Work = tuple[str, str]  # kind, key id

# When work is due, the place of its rotation in the jitter window included.
_DUE_AT = f"(due_work.due_at + CASE WHEN due_work.kind = '{ROTATE}' THEN due_work.spread * ? / {SPREAD_STEPS} ELSE 0 END)"
_FROM = "FROM due_work LEFT JOIN attempts AS held ON held.kind = due_work.kind AND held.key_id = due_work.key_id"


@dataclass(frozen=True, slots=True)
class Parked:
    kind: str
    key_id: str
    code: str
    tries: int


@dataclass(frozen=True, slots=True)
class Backlog:
    count: int
    oldest: int | None  # microseconds of business time at which the oldest was due
    parked: int


class Attempts:
    def __init__(self, datastore: Datastore) -> None:
        self._datastore = datastore

    def hand_out(
        self,
        now: datetime,
        wall: float,
        *,
        claim_seconds: float,
        limit: int,
        shard: int | None = None,
        spread_seconds: int = 0,
        late_seconds: float = 0.0,
        free_before: float | None = None,
    ) -> list[Work]:
        """Work that is due, not parked and not held, and from now on held for `claim_seconds`: a delivery that is lost is offered again.

        A rotation counts as due from its place in the window of `spread_seconds` on; with `late_seconds` only what is overdue by that
        much counts. `free_before`: what was held until after this instant stays held (default: `wall`).
        """
        at, due_at = micros(now), micros(now) - round(late_seconds * SECOND)
        held_until = _wall(wall if free_before is None else free_before)
        latest = _wall(wall + max(LARGEST_BACKOFF_SECONDS, claim_seconds))
        latest_parked = _wall(wall + PARKED_RETRY_SECONDS)
        shards, wanted = ("", ()) if shard is None else ("AND due_work.shard = ? ", (shard,))
        with self._datastore.writing() as cursor:
            in_order(cursor)  # two that change many rows at once must not wait for each other
            cursor.execute(
                "DELETE FROM attempts WHERE NOT EXISTS (SELECT 1 FROM due_work WHERE due_work.kind = attempts.kind"
                " AND due_work.key_id = attempts.key_id AND due_work.due_at <= ?)",
                (at,),
            )
            # Where the machine's clock was set back, nothing waits longer than it would from now on.
            cursor.execute("UPDATE attempts SET not_before = ? WHERE parked = 0 AND not_before > ?", (latest, latest))
            cursor.execute(
                "UPDATE attempts SET parked = 0, tries = ?, not_before = ?"
                " WHERE parked = 1 AND (not_before <= ? OR (not_before > ? AND not_before < ?))",
                (MAX_TRIES - 1, held_until, _wall(wall), latest_parked, NEVER),
            )
            # One statement finds and takes: of two processes at it together, one gets a row, also where neither sees the other's.
            cursor.execute(
                "INSERT INTO attempts (kind, key_id, tries, not_before, parked, code)"
                f" SELECT due_work.kind, due_work.key_id, 0, ?, 0, '' {_FROM}"
                f" WHERE due_work.due_at <= ? AND {_DUE_AT} <= ? {shards}"
                " AND (held.parked IS NULL OR (held.parked = 0 AND held.not_before <= ?))"
                " ORDER BY due_work.due_at, due_work.key_id, due_work.kind LIMIT ?"
                " ON CONFLICT (key_id, kind) DO UPDATE SET not_before = excluded.not_before"
                " WHERE attempts.parked = 0 AND attempts.not_before <= ? RETURNING kind, key_id",
                (_wall(wall + claim_seconds), due_at, spread_seconds * SECOND, due_at, *wanted, held_until, limit, held_until),
            )
            return [(row[0], row[1]) for row in cursor.fetchall()]

    def begin(self, kind: str, key_id: str, wall: float, claim_seconds: float) -> bool:
        """Count a try before it is made: what kills its process is parked in the end. False: not handed out, done already, or parked."""
        with self._datastore.writing() as cursor:
            cursor.execute(
                "UPDATE attempts SET tries = tries + 1, parked = CASE WHEN tries >= ? THEN 1 ELSE 0 END,"
                f" code = CASE WHEN tries >= ? THEN '{DIED}' ELSE code END, not_before = CASE WHEN tries >= ? THEN ? ELSE ? END"
                " WHERE kind = ? AND key_id = ? AND parked = 0 RETURNING parked",
                (MAX_TRIES, MAX_TRIES, MAX_TRIES, NEVER, _wall(wall + claim_seconds), kind, key_id),
            )
            row = cursor.fetchone()
        return row is not None and not row[0]

    def failed(self, kind: str, key_id: str, code: str, wall: float, *, retryable: bool, jitter: float) -> None:
        """Hold what failed for longer each time, or park it: at once where no repetition helps, else after MAX_TRIES.

        `jitter` is from 0 to 1. What has no row any more is not due any more.
        """
        with self._datastore.writing() as cursor:
            cursor.execute("UPDATE attempts SET code = ? WHERE kind = ? AND key_id = ? RETURNING tries", (code, kind, key_id))
            row = cursor.fetchone()
            if row is None:
                return
            parked = not retryable or row[0] >= MAX_TRIES
            backoff = min(LARGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** (max(row[0], 1) - 1)) * (1 + jitter) / 2
            wait = PARKED_RETRY_SECONDS if parked else backoff
            cursor.execute(
                "UPDATE attempts SET parked = ?, not_before = ? WHERE kind = ? AND key_id = ?",
                (int(parked), _wall(wall + wait) if retryable else NEVER, kind, key_id),
            )

    def let_go(self, wall: float, work: Iterable[Work] | None = None) -> None:
        """Hold these no longer, or (None) nothing that is not parked."""
        with self._datastore.writing() as cursor:
            if work is None:
                cursor.execute("UPDATE attempts SET not_before = ? WHERE parked = 0", (_wall(wall),))
                return
            for kind, key_id in work:
                cursor.execute(
                    "UPDATE attempts SET not_before = ? WHERE parked = 0 AND kind = ? AND key_id = ?", (_wall(wall), kind, key_id)
                )

    def release(self) -> int:
        """Take up again everything that is parked, as if it had never been tried; how many."""
        with self._datastore.writing() as cursor:
            cursor.execute("UPDATE attempts SET parked = 0, tries = 0, not_before = 0 WHERE parked = 1 RETURNING key_id")
            return len(cursor.fetchall())

    def parked(self, limit: int) -> list[Parked]:
        with self._datastore.reading() as cursor:
            cursor.execute("SELECT kind, key_id, code, tries FROM attempts WHERE parked = 1 ORDER BY key_id, kind LIMIT ?", (limit,))
            return [Parked(*row) for row in cursor.fetchall()]

    def backlog(self, now: datetime, spread_seconds: int) -> Backlog:
        """What is due and not done: without what is parked, which is counted by itself."""
        at, window = micros(now), spread_seconds * SECOND
        with self._datastore.reading() as cursor:
            cursor.execute(
                f"SELECT count(*), min({_DUE_AT}) {_FROM} WHERE due_work.due_at <= ? AND {_DUE_AT} <= ?"
                " AND (held.parked IS NULL OR held.parked = 0)",
                (window, at, window, at),
            )
            count, oldest = cursor.fetchone()
            cursor.execute("SELECT count(*) FROM attempts WHERE parked = 1")
            return Backlog(int(count), None if oldest is None else int(oldest), int(cursor.fetchone()[0]))


def _wall(seconds: float) -> int:
    return round(seconds * SECOND)
