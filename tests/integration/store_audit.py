"""Whether what a store holds is of one piece: both chains of hashes, rows that are what the events say, material that events explain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eventsourcing.persistence import StoredEvent

from kmscore.domain.chain import GENESIS, log_hash, stream_hash
from kmscore.store.datastore import Datastore
from kmscore.store.keystore import construct_mapper
from kmscore.store.readmodel import ACTIVE, statements
from kmscore.store.sqlite import SqliteStore

# Without what is not of events: a count of rows, and who opened an intent.
DERIVED = {
    "keys": "key_id, visible, state, spec, usage, level, origin, creator, instance_id, delete_at",
    "aliases": "name, key_id",
    "tags": "key_id, tag_key, tag_value",
    "versions": "version_id, key_id, ordinal, primary_at, expires_at, held",
    "materials": "material_id, key_id, level, state",
    "due_work": "kind, key_id, due_at",
    "open_intents": "key_id, kind, level, material_id",
    "users": "name, policy",
    "access_keys": "access_key_id, user_name, enabled, created_at",
}


def rows(datastore: Datastore, sql: str) -> list[tuple[Any, ...]]:
    with datastore.reading() as cursor:
        cursor.execute(sql)
        return [tuple(row) for row in cursor.fetchall()]


def audit(datastore: Datastore, scratch: Path) -> int:
    """How many events there are; asserts that they chain, and that rows made anew from them are the rows that are there."""
    mapper = construct_mapper()
    again = SqliteStore(scratch)
    again.prepare()
    try:
        streams: dict[str, bytes] = {}
        versions: dict[str, int] = {}
        aggregates: dict[str, Any] = {}
        log = GENESIS
        events = rows(datastore, "SELECT * FROM stored_events ORDER BY position")
        with again.writing() as cursor:
            for expected, (position, stream, version, topic, state, stream_prev, own, log_prev, chained) in enumerate(events, 1):
                assert (position, version) == (expected, versions.get(stream, 0) + 1)
                assert stream_prev == streams.get(stream, GENESIS)
                assert own == stream_hash(stream_prev, stream, version, topic, state)
                assert (log_prev, chained) == (log, log_hash(log, position, own))
                streams[stream], versions[stream], log = own, version, chained
                event: Any = mapper.to_domain_event(StoredEvent(stream, version, topic, bytes(state)))
                aggregates[stream] = event.mutate(aggregates.get(stream))
                for statement, params in statements(aggregates[stream], [event], "nobody"):
                    cursor.execute(statement, params)
        assert rows(datastore, "SELECT position, log_hash FROM head") == [(len(events), log)]
        for table, columns in DERIVED.items():
            sql = f"SELECT {columns} FROM {table} ORDER BY {columns}"
            assert rows(datastore, sql) == rows(again, sql), table
        return len(events)
    finally:
        again.close()
        for suffix in ("", "-wal", "-shm"):
            scratch.with_name(scratch.name + suffix).unlink(missing_ok=True)


def assert_nothing_is_left_over(datastore: Datastore) -> None:
    """After a recovery: wrapped material is that of the active software materials, and nothing is open."""
    kept = rows(datastore, "SELECT material_id FROM software_material ORDER BY material_id")
    sql = f"SELECT material_id FROM materials WHERE level = 'SOFTWARE' AND state = '{ACTIVE}' ORDER BY material_id"
    assert kept == rows(datastore, sql)
    assert rows(datastore, "SELECT * FROM remains") == rows(datastore, "SELECT * FROM open_intents") == []
