"""The recorder under eventsourcing: events, their hashes and the rows of the read models, in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from eventsourcing.persistence import AggregateRecorder, OperationalError, StoredEvent

from kmscore.domain.chain import GENESIS, log_hash, stream_hash
from kmscore.store.datastore import Cursor, Datastore, Statement, in_order

# Not where a mark says that the events go on elsewhere (moving.py): a process that slept through the move must not add one here.
_TAKE_POSITIONS = (
    "UPDATE head SET position = position + ? WHERE id = 1 AND NOT EXISTS (SELECT 1 FROM facts WHERE name = 'moved_to')"
    " RETURNING position, log_hash"
)
_COLUMNS = "originator_id, originator_version, topic, state"


class ChainedRecorder(AggregateRecorder):
    """Positions are given out by the head row, which every append holds until its commit: they become visible in their order, so who
    has read up to one has missed none (RELIABILITY 1.3 fact 7)."""

    def __init__(self, datastore: Datastore) -> None:
        self._datastore = datastore

    def insert_events(self, stored_events: Sequence[StoredEvent], *, statements: Iterable[Statement] = (), **_: Any) -> Sequence[int]:
        """Positions of the events. Raises IntegrityError when a version is taken, or a row refused: nothing is stored then."""
        with self._datastore.transaction(commit=True) as cursor:
            return self._insert(cursor, stored_events, statements)

    def _insert(self, c: Cursor, stored_events: Sequence[StoredEvent], statements: Iterable[Statement]) -> list[int]:
        c.execute(_TAKE_POSITIONS, (len(stored_events),))
        row = c.fetchone()
        if row is None:
            raise OperationalError("it was moved to another database")
        last, log_prev = row
        log_prev = bytes(log_prev)
        position = last - len(stored_events)
        heads: dict[str, bytes] = {}
        positions = []
        for event in stored_events:
            stream = str(event.originator_id)
            stream_prev = heads.get(stream) or self._stream_head(c, stream, event.originator_version)
            position += 1
            own = stream_hash(stream_prev, stream, event.originator_version, event.topic, event.state)
            chained = log_hash(log_prev, position, own)
            c.execute(
                "INSERT INTO stored_events VALUES (?,?,?,?,?,?,?,?,?)",
                (position, stream, event.originator_version, event.topic, event.state, stream_prev, own, log_prev, chained),
            )
            heads[stream], log_prev = own, chained
            positions.append(position)
        c.execute("UPDATE head SET log_hash = ? WHERE id = 1", (log_prev,))
        for sql, params in statements:
            c.execute(sql, params)
        return positions

    @staticmethod
    def _stream_head(c: Cursor, stream: str, version: int) -> bytes:
        c.execute("SELECT stream_hash FROM stored_events WHERE originator_id = ? AND originator_version = ?", (stream, version - 1))
        row = c.fetchone()
        return bytes(row[0]) if row else GENESIS

    def select_events(
        self, originator_id: UUID | str, *, gt: int | None = None, lte: int | None = None, desc: bool = False, limit: int | None = None
    ) -> Sequence[StoredEvent]:
        sql, params = f"SELECT {_COLUMNS} FROM stored_events WHERE originator_id = ?", [str(originator_id)]
        bound: list[Any] = list(params)
        for condition, value in (("originator_version > ?", gt), ("originator_version <= ?", lte)):
            if value is not None:
                sql += f" AND {condition}"
                bound.append(value)
        sql += f" ORDER BY originator_version {'DESC' if desc else 'ASC'}"
        if limit is not None:
            sql += " LIMIT ?"
            bound.append(limit)
        with self._datastore.transaction(commit=False) as cursor:
            cursor.execute(sql, bound)
            return [StoredEvent(stream, version, topic, bytes(state)) for stream, version, topic, state in cursor.fetchall()]

    def stored(self, stream: str, version: int) -> StoredEvent | None:
        """The event of that version, once no commit is under way: also not one whose connection was lost before its answer."""
        with self._datastore.transaction(commit=True) as cursor:
            in_order(cursor)
            sql = f"SELECT {_COLUMNS} FROM stored_events WHERE originator_id = ? AND originator_version = ?"
            cursor.execute(sql, (stream, version))
            row = cursor.fetchone()
        return StoredEvent(row[0], row[1], row[2], bytes(row[3])) if row else None
