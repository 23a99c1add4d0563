"""What the store needs of a database, whichever it is: transactions with a cursor that takes `?` for a value, and errors of one family.

SQL is written once, in the part that SQLite (3.39 and newer) and PostgreSQL (14 and newer) both speak: names qualified in ON CONFLICT,
truth as 0 and 1, IS NOT DISTINCT FROM.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from eventsourcing.persistence import PersistenceError

from kmscore.errors import KmsError
from kmscore.results import Finding

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

    @abstractmethod
    def transaction(self, *, commit: bool) -> AbstractContextManager[Cursor]:
        """A cursor in a transaction on one state of the database, that is durable when the block ends if `commit`.

        Raises eventsourcing's PersistenceError; IntegrityError means that nothing was stored, any other may mean that it was.
        Write first in one that writes: a read first may fail as locked (SQLite), or see what is old by then (PostgreSQL).
        """

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
    def examine(self) -> Finding:
        """Whether an acknowledged change is as durable as it must be."""

    @abstractmethod
    def close(self) -> None:
        """Idempotent. Does nothing in a forked child, whose parent's connections these are."""

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
        raise KmsError("ServiceUnavailableTemporary", f"the store cannot {what}: {error}") from error


def in_order(cursor: Cursor) -> None:
    """Take the row that every append takes first: what this transaction writes comes before or after each of them, and after whatever a
    lost connection may still be committing."""
    cursor.execute("UPDATE head SET position = position WHERE id = 1")
