"""SQLite as the store of a home: durable settings on every connection, nothing left of a deleted row."""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

from eventsourcing.persistence import OperationalError
from eventsourcing.sqlite import SQLiteConnection, SQLiteConnectionPool, SQLiteDatastore

from kmscore.disk import sync_directory
from kmscore.errors import SetupError
from kmscore.results import Finding
from kmscore.store.datastore import Cursor, Datastore, in_order, unavailable
from kmscore.store.schema import MIGRATIONS, SCHEMA_VERSION, STATEMENTS, first_rows

LOCK_TIMEOUT_SECONDS = 30  # how long a writer waits for another; a commit takes a millisecond
EMPTY_LOG_SECONDS = 0.2  # the destruction of software material is taken up again when this was too short
POOL_SIZE = 8
POOL_OVERFLOW = 56  # a thread of the service each, at most

DURABLE = {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1, "foreign_keys": 1}


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


class SqliteStore(Datastore):
    shared = False

    def __init__(self, path: Path) -> None:
        """The caller holds the lock of the home; the file is created where it is missing."""
        super().__init__()
        self._path = path
        self.where = self.name(path)
        self._created = not path.exists()
        if self._created:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))  # -wal and -shm get the mode of this file
        self._library = SQLiteDatastore(str(path), lock_timeout=LOCK_TIMEOUT_SECONDS, originator_id_type="text")
        self.pool = self._library.pool = DurablePool(
            db_name=str(path), lock_timeout=LOCK_TIMEOUT_SECONDS, pool_size=POOL_SIZE, max_overflow=POOL_OVERFLOW, pool_timeout=30.0
        )

    @staticmethod
    def name(path: Path) -> str:
        return f"{path} on {socket.gethostname()}"

    @contextmanager
    def starting(self) -> Iterator[None]:
        """The lock of the home, which the caller holds, is enough."""
        yield

    def schema_version(self) -> int:
        with self.reading() as cursor:
            cursor.execute("PRAGMA user_version")
            return int(cursor.fetchone()[0])

    def prepare(self) -> None:
        version = self.schema_version()
        if version > SCHEMA_VERSION:
            raise SetupError(
                f"{self._path} was written by a newer kmscore (schema {version}, this one knows {SCHEMA_VERSION}): use that one"
            )
        if version < SCHEMA_VERSION:
            with self.writing() as cursor:  # one transaction: a kill in it leaves the older version as it was
                for step in range(version + 1, SCHEMA_VERSION + 1) if version else ():
                    for statement in MIGRATIONS[step]:
                        cursor.execute(statement)
                for statement in STATEMENTS:
                    cursor.execute(statement)
                first_rows(cursor)
                cursor.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        found = self.durability()
        if found != DURABLE:
            raise SetupError(
                f"{self._path} is not durable: {found} where {DURABLE} is needed; is it on a file system without shared memory?"
            )
        if self._created:
            sync_directory(self._path.parent)

    def durability(self) -> dict[str, str | int]:
        """The settings that durability and deletion rest on, as the connection says them."""
        with self.reading() as cursor:
            values: dict[str, str | int] = {}
            for name in DURABLE:
                cursor.execute(f"PRAGMA {name}")
                values[name] = cursor.fetchone()[0]
        return values

    def examine(self) -> Finding:
        found = self.durability()
        said = ", ".join(f"{name} {value}" for name, value in found.items())
        if found == DURABLE:
            return Finding("ok", f"SQLite {sqlite3.sqlite_version}: {said}")
        return Finding("fail", f"SQLite settings are {said}; an acknowledged change could be lost", "report this: kmscore sets them")

    @contextmanager
    def _transaction(self, commit: bool) -> Iterator[Cursor]:
        try:
            with self._library.transaction(commit=commit) as cursor:
                yield cursor
        except sqlite3.Error as error:  # the library leaves those of BEGIN as they are
            raise OperationalError(str(error)) from error

    def _close(self) -> None:
        self._library.close()

    def keep_still(self, cursor: Cursor, tables: Sequence[str]) -> None:
        in_order(cursor)  # one writer at a time

    def fill(self, cursor: Cursor, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        marks = ", ".join("?" * len(columns))
        cast("sqlite3.Cursor", cursor).executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows)

    def last_number(self, cursor: Cursor, table: str, column: str) -> int:
        cursor.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,))
        row = cursor.fetchone()
        return int(row[0]) if row else 0

    def filled(self, cursor: Cursor, table: str, column: str, last: int) -> None:
        if column and last:
            cursor.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
            cursor.execute("INSERT INTO sqlite_sequence VALUES (?, ?)", (table, last))

    def forget(self) -> bool:
        """Move everything from the write-ahead log into the file, whose deleted cells are overwritten, and empty the log.

        On a connection of its own: the pool's would wait for readers with the writer's lock held, and everyone behind it.
        """
        with unavailable("empty its log"):
            try:
                with closing(sqlite3.connect(self.pool.db_name, timeout=EMPTY_LOG_SECONDS)) as connection:
                    return not connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            except sqlite3.Error as error:
                raise OperationalError(str(error)) from error
        raise AssertionError
