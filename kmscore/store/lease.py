"""Freshness over nodes: each process has a row in the shared store that says how far it has read, and may act on what it has read for the
length of a lease from when it began to read.

A writer commits, tells (NOTIFY, to be quick), and waits until every row has its change, or has not been renewed for longer than a lease as
the writer's own clock measures it: that process cannot act any more, and its row is removed. No clocks are compared. A process that
cannot renew refuses, and comes back by renewing: one that was removed enters itself anew and then reads again.
"""

from __future__ import annotations

import logging
import os
import secrets
import select
import socket
import threading
import time
from pathlib import Path
from typing import Any, cast

import psycopg

from kmscore.errors import KmsError
from kmscore.store.datastore import Datastore, unavailable
from kmscore.store.freshness import Freshness, Point
from kmscore.store.gate import make_gate
from kmscore.store.material import moved_to
from kmscore.store.postgres import BoundedConnection, PostgresCursor, PostgresStore, Silent, plain, translated

log = logging.getLogger("kmscore")

DRIFT = 1.1  # clocks of two machines run alike to better than this
RETRY_SECONDS = 0.2  # after a failure everyone refuses at once for so long
MOST_SECONDS = 30.0  # for which a process that renews its lease can be behind: it reads before it renews
FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS = 0.001, 0.02


class Lease(Freshness):
    def __init__(self, store: PostgresStore, directory: Path, seconds: float) -> None:
        """`directory` of the home: for the file of a gate that is this process's alone."""
        self._store = store
        self.owner = secrets.token_hex(16)
        path = directory / f"gate-of-{self.owner}"
        self.gate = make_gate(path)
        path.unlink()
        self.gate.bump()  # 0 is no generation
        self._nanoseconds = int(seconds * 1e9)
        self._dead_after = seconds * DRIFT
        self._entered = False
        self._retry_at = 0.0
        self._renewed_at = 0
        self._renewals = 0  # none is told twice, not even after a removal or a crash of the server
        self._settled = 0
        self._told: dict[str, tuple[int, float]] = {}  # process -> renewals, and when they were seen first
        self._own: BoundedConnection | None = None
        self._own_lock = threading.Lock()
        self._listener = Listener(self)

    # --- this process ------------------------------------------------------------------------------------------------------------

    def begin(self) -> Point:
        if time.monotonic() < self._retry_at:
            raise KmsError("ServiceUnavailableTemporary", "the store cannot be reached: nobody knows whether the keys have changed")
        point = Point(self.gate.generation, at=_boot_time())
        if not self._entered:
            with self._store.writing() as cursor:  # durable before the first read: from then on every writer waits for this process
                row = (self.owner, socket.gethostname(), os.getpid(), self._renewals)
                cursor.execute("INSERT INTO processes VALUES (?, ?, ?, ?, 0, 0) ON CONFLICT DO NOTHING", row)
                if moved := moved_to(cursor):  # while this process slept
                    raise KmsError("ServiceUnavailableTemporary", f"the store was moved to {moved.where}: start again there")
            self._entered = True
        return point

    def failed(self) -> None:
        now = time.monotonic()
        if now >= self._retry_at:  # else `begin` refused to try: who asks all the time must not put the next try off for ever
            self._retry_at = now + RETRY_SECONDS

    def taken_in(self, point: Point, settled: bool) -> bool:
        now_settled = point.position if settled else self._settled
        self._renewals += 1
        sql = "UPDATE processes SET renewals = %s, seen = %s, settled = %s WHERE process_id = %s"
        if not self._tell(sql, (self._renewals, point.position, now_settled, self.owner)):
            self._entered = False  # somebody took us for dead, and waits for us no longer
            self.gate.lease_until(1)
            return False
        self._settled = now_settled
        self._renewed_at = point.at
        self.gate.lease_until(point.at + self._nanoseconds)
        return True

    def settle(self, point: Point) -> None:
        if point.position <= self._settled:
            return
        try:
            self._tell("UPDATE processes SET settled = %s WHERE process_id = %s", (point.position, self.owner))
        except KmsError:
            return  # the next renewal says it
        self._settled = point.position

    def lease_age(self) -> float | None:
        return (_boot_time() - self._renewed_at) / 1e9

    def _tell(self, sql: str, params: tuple[Any, ...]) -> int:
        """How many rows it changed. Not durable at once, so that no lease depends on the server's disk; see `_may_act` for what a crash
        of the server forgets."""
        with self._own_lock, unavailable("renew the lease"), translated():
            if self._own is not None and not self._own.closed:
                try:
                    return self._own.execute(sql, params).rowcount
                except psycopg.OperationalError as error:
                    if isinstance(error, Silent) or not self._own.closed:
                        raise  # else it was lost meanwhile; what is told may be told twice
            self._own = self._store.connect("kmscore lease")
            self._own.execute("SET synchronous_commit = off")
            return self._own.execute(sql, params).rowcount

    # --- the others --------------------------------------------------------------------------------------------------------------

    def announce(self) -> None:
        self.gate.bump()
        try:
            self._tell("SELECT pg_notify(%s, %s)", (self._store.channel, self.owner))
        except KmsError as error:  # they look by themselves before their leases end
            log.warning("cannot tell other processes of a change: %s", error.message)

    def wait_until_taken_in(self, point: Point) -> None:
        self._wait("seen", point, MOST_SECONDS, "has not yet taken in the change")

    def wait_until_settled(self, point: Point, timeout: float) -> None:
        self._wait("settled", point, timeout, "has not yet let go of the key")

    def _wait(self, column: str, point: Point, timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        pause = FIRST_POLL_SECONDS
        while True:
            with self._store.reading() as cursor:
                cursor.execute(f"SELECT process_id, renewals, host, pid FROM processes WHERE {column} < ?", (point.position,))
                rows = cursor.fetchall()
            behind = [f"{pid} on {host}" for process, renewals, host, pid in rows if self._may_act(process, renewals)]
            if not behind:
                return
            if time.monotonic() >= deadline:
                raise KmsError("ServiceUnavailableTemporary", f"process {', '.join(behind)} {what}; try again")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_POLL_SECONDS)

    def works(self, owner: str) -> bool:
        with self._store.reading() as cursor:
            cursor.execute("SELECT renewals FROM processes WHERE process_id = ?", (owner,))
            row = cursor.fetchone()
        return row is not None and self._may_act(owner, row[0])

    def _may_act(self, process: str, renewals: int) -> bool:
        """False once nothing was heard of a process for longer than a lease since it was first looked at; then its row is removed."""
        now = time.monotonic()  # after the row was read: what it says is older than this
        told = self._told.get(process)
        if told is None or told[0] != renewals:
            self._told[process] = renewals, now
            return True
        if now - told[1] <= self._dead_after:
            return True
        with self._store.writing() as cursor:
            # A server that crashed may have forgotten a renewal from before: then a lease is waited for from this connection on.
            if now - cast(PostgresCursor, cursor).connected_at <= self._dead_after:
                return True
            cursor.execute(  # unless it renews just now
                "DELETE FROM processes WHERE process_id = ? AND renewals = ? RETURNING pid, host", (process, renewals)
            )
            gone = cursor.fetchone()
        if gone is None:
            return True
        self._told.pop(process, None)
        log.warning("process %d on %s has not renewed its lease: taken for dead", gone[0], gone[1])
        return False

    # --- begin and end -------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._listener.start()

    def close(self) -> None:
        self._listener.stop()
        self.gate.lease_until(1)
        try:
            if self._entered:
                self._tell("DELETE FROM processes WHERE process_id = %s", (self.owner,))
        except KmsError:
            pass  # writers find out
        finally:
            if self._own is not None:
                self._own.close()
            self.gate.close()


class Listener(threading.Thread):
    """Bumps the gate when another process tells of a change. Only saves time: the lease is renewed by reading."""

    def __init__(self, lease: Lease) -> None:
        super().__init__(name="kmscore-listener", daemon=True)
        self._lease = lease
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._stop_asked = False

    def run(self) -> None:
        while not self._stop_asked:
            try:
                self._listen()
            except psycopg.Error as error:
                log.info("cannot listen for changes: %s", plain(error))
                select.select([self._wake], [], [], RETRY_SECONDS)

    def _listen(self) -> None:
        lease = self._lease
        with lease._store.connect("kmscore listener") as connection:
            connection.execute(f"LISTEN {lease._store.channel}")
            lease.gate.bump()  # whatever was told meanwhile
            while not self._stop_asked:
                select.select([connection.fileno(), self._wake], [], [])
                if any(note.payload != lease.owner for note in connection.notifies(timeout=0)):
                    lease.gate.bump()

    def stop(self) -> None:
        self._stop_asked = True
        os.eventfd_write(self._wake, 1)
        if self.is_alive():
            self.join()
        os.close(self._wake)


def renewing(store: Datastore, seconds: float) -> list[str]:
    """Processes, on whatever machine, that renew their leases while this watches, for longer than a lease: they have the store open."""
    deadline = time.monotonic() + seconds * DRIFT
    first = _renewals(store)
    while first and time.monotonic() < deadline:
        time.sleep(LONGEST_POLL_SECONDS)
        if alive := [name for process, (renewals, name) in _renewals(store).items() if first.get(process, (-1, ""))[0] != renewals]:
            return alive
    return []


def _renewals(store: Datastore) -> dict[str, tuple[int, str]]:
    with store.reading() as cursor:
        cursor.execute("SELECT process_id, renewals, host, pid FROM processes")
        return {process: (renewals, f"{pid} on {host}") for process, renewals, host, pid in cursor.fetchall()}


def _boot_time() -> int:
    """Nanoseconds since the machine was started, also while it slept."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
