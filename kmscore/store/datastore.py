"""What the store needs of a database, whichever it is: transactions with a cursor that takes `?` for a value, and errors of one family.

SQL is written once, in the part that SQLite (3.39 and newer) and PostgreSQL (14 and newer) both speak: names qualified in ON CONFLICT,
truth as 0 and 1, IS NOT DISTINCT FROM.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from eventsourcing.persistence import InterfaceError, PersistenceError

from kmscore.counts import STORE_ERRORS, count
from kmscore.errors import KmsError
from kmscore.results import Finding

CLOSE_SECONDS = 60.0  # more than any statement takes, a writer's wait for another included

Statement = tuple[str, Sequence[Any]]


class Cursor(Protocol):
    """Rows are sequences; `execute` answers nothing that is used."""

    def execute(self, statement: str, params: Sequence[Any] = ()) -> Any: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> Any: ...


class Datastore(ABC):
    """A database that is open. Thread-safe; not usable in a forked child."""

    shared: bool
    """Whether processes of other homes, and of other machines, may have it open as well."""
    where: str
    """Which database this is, for people: without a password."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._idle = threading.Condition()
        self._users = 0
        self._closed = False

    @contextmanager
    def transaction(self, *, commit: bool) -> Iterator[Cursor]:
        """A cursor in a transaction on one state of the database, that is durable when the block ends if `commit`.

        Raises eventsourcing's PersistenceError; IntegrityError means that nothing was stored, any other may mean that it was.
        Write first in one that writes: a read first may fail as locked (SQLite), or see what is old by then (PostgreSQL).
        """
        with self._idle:
            if self._closed:
                raise InterfaceError("it is closed")
            self._users += 1
        try:
            with self._transaction(commit) as cursor:
                yield cursor
        finally:
            with self._idle:
                self._users -= 1
                self._idle.notify_all()

    @abstractmethod
    def _transaction(self, commit: bool) -> AbstractContextManager[Cursor]: ...

    @abstractmethod
    def forget(self) -> bool:
        """Let no file of the database keep what was deleted, as far as the database can; False while somebody is in the way."""

    @abstractmethod
    def starting(self) -> AbstractContextManager[None]:
        """Be the only one on this database that starts: migrations and first keys are made once. Raises ServiceUnavailableTemporary."""

    @abstractmethod
    def prepare(self) -> None:
        """Create the tables, or bring them up to date; the caller is within `starting`. Raises SetupError for a database that is newer."""

    @abstractmethod
    def schema_version(self) -> int:
        """Of the tables as they are; 0: there are none."""

    @abstractmethod
    def examine(self) -> Finding:
        """Whether an acknowledged change is as durable as it must be."""

    # --- for a move (transfer.py) ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def keep_still(self, cursor: Cursor, tables: Sequence[str]) -> None:
        """While this transaction lasts, which may be long, nobody else writes into these tables; first in it."""

    @abstractmethod
    def fill(self, cursor: Cursor, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Insert rows, many at once."""

    @abstractmethod
    def last_number(self, cursor: Cursor, table: str, column: str) -> int:
        """The highest number that a column which numbers its rows ever gave out."""

    @abstractmethod
    def filled(self, cursor: Cursor, table: str, column: str, last: int) -> None:
        """The table has all its rows; if `column` numbers them, the next number is the one after `last`."""

    def close(self) -> None:
        """Close every connection once nobody uses one: none is closed under a statement.

        Idempotent. Does nothing in a forked child, whose parent's connections these are.
        """
        if os.getpid() != self._pid:
            return
        with self._idle:
            self._closed = True
            if not self._idle.wait_for(lambda: not self._users, CLOSE_SECONDS):
                return  # better leaked than crashed, as SQLite does
        self._close()

    @abstractmethod
    def _close(self) -> None: ...

    @contextmanager
    def reading(self) -> Iterator[Cursor]:
        """A cursor in a read transaction. Raises KmsError ServiceUnavailableTemporary when the store cannot be read."""
        with unavailable("read"), self.transaction(commit=False) as cursor:
            yield cursor

    @contextmanager
    def writing(self) -> Iterator[Cursor]:
        """A cursor in a transaction that is durable when the block ends. Raises KmsError as `reading` does."""
        with unavailable("write"), self.transaction(commit=True) as cursor:
            yield cursor


@contextmanager
def unavailable(what: str) -> Iterator[None]:
    """Turn what a database raises into the one error of a store that cannot be used now."""
    try:
        yield
    except PersistenceError as error:
        count(STORE_ERRORS, what)
        raise KmsError("ServiceUnavailableTemporary", f"the store cannot {what}: {error}") from error


def in_order(cursor: Cursor) -> None:
    """Take the row that every append takes first: what this transaction writes comes before or after each of them, and after whatever a
    lost connection may still be committing."""
    cursor.execute("UPDATE head SET position = position WHERE id = 1")
