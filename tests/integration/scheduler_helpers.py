"""A Redis of a test's own, and the scheduler's processes on a home."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import local_servers
import redis

ROOT = Path(__file__).resolve().parents[2]


def older_due_work(database: sqlite3.Connection) -> None:
    """Take from a database what schema 4 added."""
    for index in ("due_work_by_shard", "due_work_by_key"):
        database.execute(f"DROP INDEX {index}")
    for column in ("shard", "spread"):
        database.execute(f"ALTER TABLE due_work DROP COLUMN {column}")
    for table in ("attempts", "workers"):
        database.execute(f"DROP TABLE {table}")


def until(true: Callable[[], object], seconds: float = 30.0, what: str = "what was waited for did not happen") -> float:
    """Wait; answers for how long."""
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < seconds, what
        time.sleep(0.02)
    return time.monotonic() - begun


class Redis(local_servers.Redis):
    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)

    def flush(self) -> None:
        with self.client() as client:
            client.flushall()


class Node:
    """`python -m scheduler worker|beat` in a process group of its own: a kill takes its children, too."""

    def __init__(self, role: str, home: Path, settings: dict[str, str], *options: str) -> None:
        self.role = role
        self.home = home
        self.environment = {**os.environ, "KMS_HOME": str(home), **settings}
        self.options = options
        self.start()

    def start(self) -> None:
        with open(self.home.parent / "scheduler.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "scheduler", self.role, *self.options],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def children(self) -> list[int]:
        with suppress(OSError):
            return [int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()]
        return []

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """A clean end; its exit status."""
        self.process.terminate()
        try:
            return self.process.wait(30)
        finally:
            self.kill()


class ClockFile:
    """Business time for several processes."""

    def __init__(self, path: Path, instant: datetime) -> None:
        self.path = path
        self.set(instant)

    def set(self, instant: datetime) -> None:
        self.instant = instant
        new = self.path.with_suffix(".new")
        new.write_text(instant.isoformat())
        new.rename(self.path)
