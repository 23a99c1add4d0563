"""A Redis of a test's own, and the scheduler's processes on a home."""

from __future__ import annotations

import sqlite3


def older_due_work(database: sqlite3.Connection) -> None:
    """Take from a database what schema 4 added."""
    for index in ("due_work_by_shard", "due_work_by_key"):
        database.execute(f"DROP INDEX {index}")
    for column in ("shard", "spread"):
        database.execute(f"ALTER TABLE due_work DROP COLUMN {column}")
    for table in ("attempts", "workers"):
        database.execute(f"DROP TABLE {table}")
