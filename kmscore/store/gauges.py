"""What the log says of itself in numbers: how far it is, and what is open. A few index look-ups, for /metrics."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from kmscore.domain import events
from kmscore.store.datastore import Datastore
from kmscore.store.keystore import KeyStore

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

    def _row(self, sql: str, params: tuple[Any, ...]) -> Any:
        with self._datastore.reading() as cursor:
            cursor.execute(sql, params)
            return cursor.fetchone()
