"""Copies one database into another, whichever they are, and proves that the copy is the same. Pages of rows: memory does not grow.

Neither end of a transaction nor what a copy is for is known here: moving.py.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from itertools import zip_longest
from typing import Any, NamedTuple

from kmscore.domain.chain import GENESIS, log_hash, stream_hash
from kmscore.errors import SetupError
from kmscore.store.datastore import Cursor, Datastore
from kmscore.store.schema import PASSING, STATEMENTS

PAGE_ROWS = 1000  # an event has some hundred bytes, the largest ten thousand

Progress = Callable[[str, int, int], None]
"""(what is done: "copied", "checked" or "compared"; events done; events in all)."""


class Table(NamedTuple):
    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]  # whose order is the same in every database: numbers, bytes, text by code point
    numbered: str  # the column that numbers its rows, or ""


@cache
def tables() -> tuple[Table, ...]:
    """Every table that a move takes, as the schema itself says; what refers to another table comes after it."""
    found = []
    with closing(sqlite3.connect(":memory:")) as connection:
        for statement in STATEMENTS:
            connection.execute(statement)
        sql = "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!' ORDER BY rowid"
        for name, text in connection.execute(sql).fetchall():
            columns = connection.execute(f"PRAGMA table_info({name})").fetchall()  # number, name, type, not null, default, place in the key
            key = tuple(column[1] for column in sorted(columns, key=lambda column: column[5]) if column[5])
            found.append(Table(name, tuple(column[1] for column in columns), key, key[0] if "AUTOINCREMENT" in text else ""))
    return tuple(table for table in found if table.name not in PASSING)


def is_empty(cursor: Cursor) -> bool:
    """Whether it is as `prepare` makes it."""
    for table in tables():
        cursor.execute(f"SELECT 1 FROM {table.name} WHERE position > 0" if table.name == "head" else f"SELECT 1 FROM {table.name} LIMIT 1")
        if cursor.fetchone() is not None:
            return False
    return True


def copy(source: Datastore, s: Cursor, target: Datastore, t: Cursor, total: int, told: Progress) -> None:
    """Every row of the source into the target, which is empty."""
    for table in tables():
        t.execute(f"DELETE FROM {table.name}")  # the first row of head
        done = 0
        for rows in pages(s, table):
            target.fill(t, table.name, table.columns, rows)
            done += len(rows)
            if table.name == "stored_events":
                told("copied", done, total)
        last = source.last_number(s, table.name, table.numbered) if table.numbered else 0
        target.filled(t, table.name, table.numbered, last)


def require_same(source: Datastore, s: Cursor, target: Datastore, t: Cursor, total: int, told: Progress) -> int:
    """How many rows there are. Raises SetupError for the first row or number in which the two differ."""
    number = 0
    for table in tables():
        done = 0
        for mine, theirs in zip_longest(pages(s, table), pages(t, table), fillvalue=()):
            if mine != theirs:
                raise SetupError(f"{target.where} differs from {source.where}: {table.name}, from {_first_difference(table, mine, theirs)}")
            done += len(mine)
            if table.name == "stored_events":
                told("compared", done, total)
        number += done
        if table.numbered:
            last = [store.last_number(cursor, table.name, table.numbered) for store, cursor in ((source, s), (target, t))]
            if last[0] != last[1]:
                raise SetupError(f"{target.where} would go on after number {last[1]} of {table.name}, {source.where} after {last[0]}")
    return number


def require_whole(cursor: Cursor, total: int, told: Progress) -> None:
    """Compute the hash of every event, in its stream and in the log. Raises SetupError for the first that is not what was hashed."""
    sql = (
        "SELECT e.position, e.originator_id, e.originator_version, e.topic, e.state, e.stream_prev, e.stream_hash, e.log_prev, e.log_hash,"
        " p.stream_hash FROM stored_events e LEFT JOIN stored_events p"
        " ON p.originator_id = e.originator_id AND p.originator_version = e.originator_version - 1"
        f" WHERE e.position > ? ORDER BY e.position LIMIT {PAGE_ROWS}"
    )
    position, log, done = 0, GENESIS, 0
    while True:
        cursor.execute(sql, (position,))
        rows = [tuple(row) for row in cursor.fetchall()]
        for position, stream, version, topic, state, *hashes, before in rows:
            previous = GENESIS if version == 1 else before
            if version < 1 or previous is None:
                raise SetupError(f"the event at position {position} is damaged: {stream} has no event before its version {version}")
            own = stream_hash(previous, stream, version, topic, state)
            chained = log_hash(log, position, own)
            if hashes != [previous, own, log, chained]:
                raise SetupError(f"the event at position {position}, version {version} of {stream}, is damaged: it is not what was hashed")
            log = chained
        done += len(rows)
        told("checked", done, total)
        if len(rows) < PAGE_ROWS:
            break
    if head(cursor) != (position, log):
        raise SetupError(f"the log ends at position {position}, and its head says otherwise: events at its end are missing")


def head(cursor: Cursor) -> tuple[int, bytes]:
    """(position, hash of the log)."""
    cursor.execute("SELECT position, log_hash FROM head")
    position, hashed = cursor.fetchone()
    return int(position), bytes(hashed)


def pages(cursor: Cursor, table: Table) -> Iterator[list[tuple[Any, ...]]]:
    """The rows in the order of their key; another statement may use the cursor in between."""
    order, marks = ", ".join(table.key), ", ".join("?" * len(table.key))
    select, rest = f"SELECT {', '.join(table.columns)} FROM {table.name}", f"ORDER BY {order} LIMIT {PAGE_ROWS}"
    places = [table.columns.index(column) for column in table.key]
    where, after = "", ()
    while True:
        cursor.execute(f"{select} {where} {rest}", after)
        rows = [tuple(row) for row in cursor.fetchall()]
        if rows:
            yield rows
        if len(rows) < PAGE_ROWS:
            return
        where, after = f"WHERE ({order}) > ({marks})", tuple(rows[-1][place] for place in places)


def _first_difference(table: Table, mine: Any, theirs: Any) -> str:
    """The key of a row; never what else is in it."""
    row = next(a or b for a, b in zip_longest(mine, theirs) if a != b)
    values = [row[table.columns.index(column)] for column in table.key]
    return ", ".join(f"{column} {v.hex() if isinstance(v, bytes) else v}" for column, v in zip(table.key, values, strict=True))
