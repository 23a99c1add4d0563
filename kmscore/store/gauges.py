"""What the store says of itself in numbers: how far the log is, what is open, what is due. A few index look-ups, for /metrics."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from kmscore.domain import events
from kmscore.store.datastore import Datastore
from kmscore.store.keystore import KeyStore
from kmscore.store.readmodel import micros

# What can open an intent; the newest of them in a key's stream opened the one that is open.
_OPENERS = tuple(
    kind.TOPIC
    for kind in (
        events.MaterialRequested,
        events.DestructionStarted,
        events.MaterialDeleted,
        events.MaterialExpired,
        events.MaterialImported,
    )
)
_OLDEST = (
    "SELECT originator_id, originator_version FROM stored_events WHERE position = (SELECT min(newest) FROM"
    " (SELECT max(position) AS newest FROM open_intents JOIN stored_events ON originator_id = key_id"
    f" WHERE topic IN ({','.join('?' * len(_OPENERS))}) GROUP BY key_id) AS opened)"
)


class Due(NamedTuple):
    backlog: int  # items of work whose time has come
    oldest_seconds: float  # since the time of the oldest; 0: nothing is due
    parked: int | None = None  # items that have failed so often that they wait for a person; None: it is not counted


class StoreGauges:
    """Every method raises KmsError ServiceUnavailableTemporary when the store cannot be read."""

    def __init__(self, datastore: Datastore, store: KeyStore) -> None:
        self._datastore = datastore
        self._store = store

    def position(self) -> int:
        return int(self._row("SELECT position FROM head", ())[0])

    def open_intents(self, now: datetime) -> tuple[int, float]:
        """How many there are, and for how many seconds the oldest has been open."""
        number = int(self._row("SELECT count(*) FROM open_intents", ())[0])
        row = self._row(_OLDEST, _OPENERS) if number else None
        if row is None:
            return number, 0.0
        stream, version = str(row[0]), int(row[1])
        at = next(event.timestamp for event in self._store.events(stream) if event.originator_version == version)
        return number, max(0.0, (now - at).total_seconds())

    def due(self, now: datetime) -> Due:
        number, oldest = self._row("SELECT count(*), min(due_at) FROM due_work WHERE due_at <= ?", (micros(now),))
        return Due(int(number), max(0.0, (micros(now) - int(oldest)) / 1e6) if number else 0.0)

    def _row(self, sql: str, params: tuple[Any, ...]) -> Any:
        with self._datastore.reading() as cursor:
            cursor.execute(sql, params)
            return cursor.fetchone()
