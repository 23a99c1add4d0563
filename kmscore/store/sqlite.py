"""SQLite under eventsourcing: durable settings on every connection; events, their hashes and the rows in one transaction."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from eventsourcing.persistence import InterfaceError, PersistenceError, StoredEvent
from eventsourcing.sqlite import (
    SQLiteApplicationRecorder,
    SQLiteConnection,
    SQLiteConnectionPool,
    SQLiteCursor,
    SQLiteDatastore,
)

from kmscore.disk import sync_directory
from kmscore.domain.chain import GENESIS, log_hash, stream_hash
from kmscore.errors import KmsError, SetupError
from kmscore.store.schema import MIGRATIONS, SCHEMA_VERSION, STATEMENTS

LOCK_TIMEOUT_SECONDS = 30  # how long a writer waits for another; a commit takes a millisecond
EMPTY_LOG_SECONDS = 0.2  # the destruction of software material is taken up again when this was too short
CLOSE_SECONDS = 60.0  # more than any statement takes, a writer's wait for another included
POOL_SIZE = 8
POOL_OVERFLOW = 56  # a thread of the service each, at most

Statement = tuple[str, Sequence[Any]]


class DurablePool(SQLiteConnectionPool):
    """Connections that may not lose an acknowledged commit, and leave nothing of a deleted row behind."""

    def __init__(self, **settings: Any) -> None:
        self._failure = threading.local()
        super().__init__(**settings)

    def _create_connection(self) -> SQLiteConnection:
        connection = super()._create_connection()
        cursor = connection.cursor()
        # FULL: the WAL is synced at each commit. NORMAL would be 13 times cheaper and may lose it on a power cut (STYLE part E).
        for pragma in ("synchronous = FULL", "secure_delete = ON", "foreign_keys = ON"):
            cursor.execute(f"PRAGMA {pragma}")
        return connection

    # The library takes the writer's lock before it connects, and keeps it for ever when connecting fails (no file descriptors left for
    # a second, say): nothing could be written until a restart.

    def _get_connection(self, timeout: float = 0.0) -> SQLiteConnection:
        self._failure.happened = True
        connection = super()._get_connection(timeout)
        self._failure.happened = False
        return connection

    def get_connection(self, timeout: float | None = None, *, is_writer: bool | None = None) -> SQLiteConnection:
        self._failure.happened = False
        try:
            return super().get_connection(timeout, is_writer=is_writer)
        except BaseException:
            if is_writer and self._failure.happened:
                self._num_writers -= 1
                self._writer_lock.release()
            raise


class DurableDatastore(SQLiteDatastore):
    def __init__(self, path: Path) -> None:
        self._pid = os.getpid()
        self._idle = threading.Condition()
        self._users = 0
        self._closed = False
        super().__init__(str(path), lock_timeout=LOCK_TIMEOUT_SECONDS, originator_id_type="text")
        self.pool = DurablePool(
            db_name=str(path), lock_timeout=LOCK_TIMEOUT_SECONDS, pool_size=POOL_SIZE, max_overflow=POOL_OVERFLOW, pool_timeout=30.0
        )

    @contextmanager
    def get_connection(self, *, commit: bool) -> Iterator[SQLiteConnection]:
        with self._idle:
            if self._closed:
                raise InterfaceError("it is closed")
            self._users += 1
        try:
            with super().get_connection(commit=commit) as connection:
                yield connection
        finally:
            with self._idle:
                self._users -= 1
                self._idle.notify_all()

    def close(self) -> None:
        """Close every connection once nobody uses one: SQLite crashes when one is closed under a statement.

        Idempotent. Does nothing in a forked child, whose parent's connections these are.
        """
        if os.getpid() != self._pid:
            return
        with self._idle:
            self._closed = True
            if not self._idle.wait_for(lambda: not self._users, CLOSE_SECONDS):
                return  # better leaked than crashed
        super().close()

    def empty_log(self) -> bool:
        """Move everything from the write-ahead log into the file and empty the log; False while a reader or writer is in the way.

        On a connection of its own: the pool's would wait for readers with the writer's lock held, and everyone behind it.
        """
        with unavailable("empty its log"), closing(sqlite3.connect(self.pool.db_name, timeout=EMPTY_LOG_SECONDS)) as connection:
            return not connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]

    @contextmanager
    def reading(self) -> Iterator[SQLiteCursor]:
        """A cursor in a read transaction. Raises KmsError ServiceUnavailableTemporary when the store cannot be read."""
        with unavailable("read"), self.transaction(commit=False) as cursor:
            yield cursor

    @contextmanager
    def writing(self) -> Iterator[SQLiteCursor]:
        """A cursor in a transaction that is durable when the block ends. Write first in it: a read first may fail as locked."""
        with unavailable("write"), self.transaction(commit=True) as cursor:
            yield cursor


@contextmanager
def unavailable(what: str) -> Iterator[None]:
    """Turn what the driver or eventsourcing raises into the one error of a store that cannot be used now."""
    try:
        yield
    except (PersistenceError, sqlite3.Error) as error:
        raise KmsError("ServiceUnavailableTemporary", f"the store cannot {what}: {error}") from error


class ChainedRecorder(SQLiteApplicationRecorder):
    """Appends events with their hashes, and the statements of the read models, in one transaction."""

    def construct_create_table_statements(self) -> list[str]:
        return list(STATEMENTS)

    def _insert_events(
        self, c: SQLiteCursor, stored_events: Sequence[StoredEvent], *, statements: Iterable[Statement] = (), **_: Any
    ) -> Sequence[int]:
        # Write first: this takes the write lock, with the busy time-out; a read first could only fail as "database is locked".
        c.execute("UPDATE head SET position = position + ? WHERE id = 1 RETURNING position, log_hash", (len(stored_events),))
        last, log_prev = c.fetchone()
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
    def _stream_head(c: SQLiteCursor, stream: str, version: int) -> bytes:
        c.execute("SELECT stream_hash FROM stored_events WHERE originator_id = ? AND originator_version = ?", (stream, version - 1))
        row = c.fetchone()
        return bytes(row[0]) if row else GENESIS


def open_database(path: Path) -> tuple[DurableDatastore, ChainedRecorder]:
    """Open, and create where it is missing, the database of a home. The caller holds the home lock: stock table creation fails when
    several processes do it together.

    Raises SetupError when the file is newer than this program or not as durable as it must be.
    """
    created = not path.exists()
    if created:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))  # -wal and -shm get the mode of this file
    datastore = DurableDatastore(path)
    recorder = ChainedRecorder(datastore)
    with datastore.reading() as cursor:
        cursor.execute("PRAGMA user_version")
        version = cursor.fetchone()[0]
    if version > SCHEMA_VERSION:
        datastore.close()
        raise SetupError(f"{path} was written by a newer kmscore (schema {version}, this one knows {SCHEMA_VERSION}): use that one")
    if version < SCHEMA_VERSION:
        with datastore.writing() as cursor:  # one transaction: a kill in it leaves the older version as it was
            for step in range(version + 1, SCHEMA_VERSION + 1) if version else ():
                for statement in MIGRATIONS[step]:
                    cursor.execute(statement)
            for statement in STATEMENTS:  # after the columns that an index of theirs is over
                cursor.execute(statement)
            cursor.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    found = durability(datastore)
    if found != DURABLE:
        datastore.close()
        raise SetupError(f"{path} is not durable: {found} where {DURABLE} is needed; is it on a file system without shared memory?")
    if created:
        sync_directory(path.parent)
    return datastore, recorder


DURABLE = {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1, "foreign_keys": 1}


def durability(datastore: DurableDatastore) -> dict[str, str | int]:
    """The settings that durability and deletion rest on, as the connection says them."""
    with datastore.reading() as cursor:
        values: dict[str, str | int] = {}
        for name in DURABLE:
            cursor.execute(f"PRAGMA {name}")
            values[name] = cursor.fetchone()[0]
    return values


def sqlite_version() -> str:
    return sqlite3.sqlite_version
