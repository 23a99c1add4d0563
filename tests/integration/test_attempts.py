"""Due work as the store hands it out: holds, back-off, parking, shards, the jitter window, clocks that are set back; and what came before."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from scheduler_helpers import older_due_work

import kmscore
from kmscore.config import SHARDS
from kmscore.engine.kms import Kms
from kmscore.errors import KmsError
from kmscore.results import DueReport
from kmscore.store.attempts import DIED, LARGEST_BACKOFF_SECONDS, MAX_TRIES, NEVER, PARKED_RETRY_SECONDS, Attempts
from kmscore.store.readmodel import DELETE, ROTATE, SPREAD_STEPS, micros, spot
from kmscore.store.sqlite import SqliteStore
from kmscore.store.workers import WorkerRow, Workers

NOW = datetime(2030, 1, 1, tzinfo=UTC)
WALL = 1_000_000.0
CLAIM = 120.0


class Table:
    """due_work and attempts of a store, and short ways to ask."""

    def __init__(self, path: Path) -> None:
        self.datastore = SqliteStore(path)
        self.datastore.prepare()
        self.attempts = Attempts(self.datastore)

    def due(self, kind: str, key_id: str, at: datetime = NOW) -> None:
        with self.datastore.writing() as cursor:
            cursor.execute("INSERT INTO due_work VALUES (?, ?, ?, ?, ?)", (kind, key_id, micros(at), *spot(key_id)))

    def done(self, kind: str, key_id: str) -> None:
        with self.datastore.writing() as cursor:
            cursor.execute("DELETE FROM due_work WHERE kind = ? AND key_id = ?", (kind, key_id))

    def out(self, wall: float = WALL, now: datetime = NOW, **more: Any) -> list[tuple[str, str]]:
        return sorted(self.attempts.hand_out(now, wall, **{"claim_seconds": CLAIM, "limit": 100, **more}))

    def begin(self, key_id: str, wall: float = WALL, kind: str = ROTATE) -> bool:
        return self.attempts.begin(kind, key_id, wall, CLAIM)

    def fail(self, key_id: str, wall: float = WALL, *, retryable: bool = True, jitter: float = 1.0) -> None:
        self.attempts.failed(ROTATE, key_id, "ServiceUnavailableTemporary", wall, retryable=retryable, jitter=jitter)

    def row(self) -> tuple[Any, ...]:
        with self.datastore.reading() as cursor:
            cursor.execute("SELECT tries, not_before, parked, code FROM attempts")
            rows = cursor.fetchall()
        assert len(rows) == 1
        return tuple(rows[0])


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    table = Table(tmp_path / "kms.db")
    yield table
    table.datastore.close()


def test_what_is_handed_out_is_held_and_offered_again_when_it_was_lost(table: Table) -> None:
    table.due(ROTATE, "a")
    table.due(DELETE, "b", NOW + timedelta(seconds=1))
    assert table.out(now=NOW - timedelta(seconds=1)) == []
    assert table.out() == [(ROTATE, "a")]
    assert table.out(WALL + CLAIM - 1) == []
    assert table.out(WALL + CLAIM) == [(ROTATE, "a")]
    assert table.out(WALL + CLAIM, NOW + timedelta(seconds=1)) == [(DELETE, "b")]
    table.attempts.let_go(WALL + CLAIM, [(ROTATE, "a")])
    assert table.out(WALL + CLAIM) == [(ROTATE, "a")]
    table.attempts.let_go(WALL + CLAIM)
    assert table.out(WALL + CLAIM, NOW + timedelta(seconds=1)) == [(DELETE, "b"), (ROTATE, "a")]
    # What is not due any more leaves nothing behind.
    table.done(DELETE, "b")
    table.done(ROTATE, "a")
    assert table.out() == []
    assert not table.begin("a")
    with pytest.raises(AssertionError):
        table.row()


def test_only_what_was_handed_out_is_begun_and_each_beginning_counts(table: Table) -> None:
    table.due(ROTATE, "a")
    assert not table.begin("a")
    table.out()
    assert table.row()[0] == 0  # what is lost on the way is no try
    for tries in range(1, MAX_TRIES + 1):
        assert table.begin("a")
        assert table.row()[0] == tries
    # It never came to an end: whatever tried it was killed.
    assert not table.begin("a")
    assert table.row() == (MAX_TRIES + 1, NEVER, 1, DIED)
    assert table.out(WALL * 10) == []
    assert [parked.code for parked in table.attempts.parked(10)] == [DIED]
    assert table.attempts.backlog(NOW, 0).count == 0
    assert table.attempts.release() == 1
    assert table.out() == [(ROTATE, "a")]
    assert table.begin("a")
    assert table.attempts.backlog(NOW, 0).count == 1


def test_failures_wait_longer_each_time_and_are_parked(table: Table) -> None:
    table.due(ROTATE, "a")
    waits = []
    wall = WALL
    for _ in range(MAX_TRIES):
        assert table.out(wall) == [(ROTATE, "a")]
        assert table.begin("a", wall)
        table.fail("a", wall)
        waits.append(table.row()[1] / 1e6 - wall)
        assert table.out(wall + waits[-1] - 0.001) == []
        wall += waits[-1]
    assert waits[:8] == [10, 20, 40, 80, 160, 320, 600, 600]
    assert waits[-2:] == [LARGEST_BACKOFF_SECONDS, PARKED_RETRY_SECONDS]
    # An outage ends, and nobody needs to be there: once an hour it is tried again, and parked again.
    for _ in range(3):
        assert table.out(wall) == [(ROTATE, "a")]
        assert table.begin("a", wall)
        table.fail("a", wall)
        assert table.attempts.parked(10)
        assert table.out(wall + 1) == []
        wall += PARKED_RETRY_SECONDS


def test_what_no_repetition_helps_is_parked_at_once(table: Table) -> None:
    table.due(ROTATE, "a")
    table.due(DELETE, "a")
    table.out()
    table.begin("a")
    table.fail("a", retryable=False)
    assert table.out(WALL * 10) == [(DELETE, "a")]  # the other work of the key goes on
    assert not table.begin("a", WALL * 10)
    table.fail("nothing of that name")


def test_jitter_is_half_of_the_back_off_at_most(table: Table) -> None:
    table.due(ROTATE, "a")
    table.out()
    table.begin("a")
    table.fail("a", jitter=0.0)
    assert table.row()[1] == (WALL + 5) * 1e6


def test_a_clock_that_is_set_back_holds_nothing_for_long(table: Table) -> None:
    table.due(ROTATE, "a")
    table.out(WALL)
    long_ago = WALL - 1e6
    assert table.out(long_ago) == []
    assert table.out(long_ago + LARGEST_BACKOFF_SECONDS) == [(ROTATE, "a")]
    for _ in range(MAX_TRIES):
        table.begin("a", WALL)
    table.fail("a", WALL)
    assert table.row()[2] == 1
    assert table.out(long_ago) == [(ROTATE, "a")]


def test_shards_part_the_work(table: Table) -> None:
    keys = [f"key-{number}" for number in range(200)]
    for key in keys:
        table.due(ROTATE, key)
    found = [table.out(shard=shard) for shard in range(SHARDS)]
    assert all(2 <= len(part) <= 30 for part in found)
    assert sorted(key for part in found for _, key in part) == sorted(keys)
    assert table.out() == []
    assert spot("key-1") == (14, 10612)  # stored: it never changes


def test_a_page_takes_the_oldest(table: Table) -> None:
    for number in range(5):
        table.due(ROTATE, f"key-{number}", NOW - timedelta(hours=number))
    assert table.out(limit=2) == [(ROTATE, "key-3"), (ROTATE, "key-4")]


def test_rotations_are_spread_and_nothing_else_is(table: Table) -> None:
    keys = [f"key-{number}" for number in range(200)]
    for key in keys:
        table.due(ROTATE, key)
        table.due(DELETE, key)
    assert {kind for kind, _ in table.out(spread_seconds=300, limit=1000)} == {DELETE}
    seen = 0
    for second in range(0, 301, 30):
        after = {key for kind, key in table.out(now=NOW + timedelta(seconds=second), spread_seconds=300) if kind == ROTATE}
        assert all(second - 30 <= spot(key)[1] / SPREAD_STEPS * 300 <= second for key in after)
        seen += len(after)
    assert seen == len(keys)


def test_a_fallback_takes_only_what_is_overdue(table: Table) -> None:
    table.due(DELETE, "a")
    table.due(ROTATE, "b")
    assert table.out(late_seconds=30) == []
    assert table.out(now=NOW + timedelta(seconds=30), late_seconds=30) == [(DELETE, "a"), (ROTATE, "b")]
    table.attempts.let_go(WALL)
    late = NOW + timedelta(seconds=30)
    assert table.out(now=late, late_seconds=30, spread_seconds=300) == [(DELETE, "a")]
    assert table.attempts.backlog(late, 0).oldest == micros(NOW)
    assert table.attempts.backlog(late, 300).count == 1


def test_workers_come_and_go(tmp_path: Path) -> None:
    datastore = SqliteStore(tmp_path / "kms.db")
    datastore.prepare()
    workers = Workers(datastore)
    row = WorkerRow("h/1/a", "h", 1, 100, 100, None, 0, 0)
    workers.seen(row)
    workers.seen(WorkerRow("h/1/a", "h", 1, 100, 200, 150, 3, 1))
    workers.seen(WorkerRow("h/2/b", "h", 2, 100, 900, None, 0, 0))
    assert [(worker.pid, worker.seen_at, worker.done, worker.failed) for worker in workers.all()] == [(1, 200, 3, 1), (2, 900, 0, 0)]
    assert (workers.alive(900, 100), workers.alive(200, 100), workers.alive(500, 100)) == (1, 1, 0)
    assert workers.last_sweep() is None
    workers.swept(1000, 500)
    assert (workers.last_sweep(), [worker.pid for worker in workers.all()]) == (1000, [2])
    workers.left("h/2/b")
    assert workers.all() == []
    datastore.close()


# --- through an engine -------------------------------------------------------------------------------------------------------------

ALONE: dict[str, Any] = {"pkcs11_module": "none", "ticker": False}


@pytest.fixture
def clock() -> kmscore.FixedClock:
    return kmscore.FixedClock(NOW)


@pytest.fixture
def kms(tmp_path: Path, clock: kmscore.FixedClock) -> Iterator[Kms]:
    with kmscore.open_kms(tmp_path / "home", clock=clock, **ALONE) as kms:
        yield kms


def rotating(kms: Kms) -> str:
    return kms.create_key(enable_automatic_rotation=True, rotation_interval="7d").key_id


def test_the_scheduler_is_handed_work_and_does_it_once(kms: Kms, clock: kmscore.FixedClock) -> None:
    key = rotating(kms)
    assert not kms.do_due("rotate", key)
    clock.advance(timedelta(days=7))
    assert kms.due_status().backlog == 1
    assert not kms.do_due("rotate", key)  # nobody handed it out
    assert kms.hand_out_due(spot(key)[0]) == [("rotate", key)]
    assert kms.hand_out_due() == []
    assert kms.do_due("rotate", key)
    assert not kms.do_due("rotate", key)  # delivered twice
    assert kms.list_key_versions(key).total_count == 2
    assert kms._s.attempts.parked(1) == []
    clock.advance(timedelta(days=7))  # nothing of the last time holds the next
    assert kms.hand_out_due() == [("rotate", key)]
    kms.give_back_due([("rotate", key)])
    assert kms.hand_out_due() == [("rotate", key)]


def test_a_failure_waits_but_not_for_a_person(kms: Kms, clock: kmscore.FixedClock, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [rotating(kms) for _ in range(3)]
    clock.advance(timedelta(days=7, hours=1))

    def refuse(key_id: str, check: object) -> None:
        raise {keys[0]: KmsError("ServiceUnavailableTemporary", "gone"), keys[1]: KmsError("Rejected.Unavailable", "lost")}.get(
            key_id, RuntimeError("a fault of ours")
        )

    monkeypatch.setattr(kms._s.lifecycle, "rotate", refuse)
    codes = {keys[0]: "ServiceUnavailableTemporary", keys[1]: "Rejected.Unavailable", keys[2]: "InternalFailure"}
    assert dict(kms._s.due.run().failed) == codes
    assert kms._s.due.run() == DueReport()  # the ticker leaves what waits
    assert set(dict(kms.run_due().failed)) == {keys[0], keys[2]}  # a person does not wait, but what is parked is
    status = kms.due_status()
    assert (status.backlog, status.parked, status.oldest_due_seconds) == (2, 1, 3600.0)
    said = [finding for finding in kms.doctor() if finding.level == "warn"]
    assert any(f"rotate of {keys[1]} is parked after 1 tries: Rejected.Unavailable" in finding.what for finding in said)
    assert any("2 pieces of work are due, the oldest for 3600 s" in finding.what for finding in said)
    monkeypatch.undo()
    assert set(kms.run_due().rotated) == {keys[0], keys[2]}
    assert kms.release_parked() == 1
    assert kms.run_due().rotated == (keys[1],)
    assert kms.due_status().backlog == kms.due_status().parked == 0


def test_a_run_that_is_stopped_gives_back_what_it_did_not_do(kms: Kms, clock: kmscore.FixedClock) -> None:
    keys = {rotating(kms) for _ in range(3)}
    clock.advance(timedelta(days=7))
    asked = iter((False, False, True, True, True))
    first = kms._s.due.run(lambda: next(asked)).rotated
    assert len(first) == 1
    assert set(kms._s.due.run().rotated) == keys - set(first)


def test_a_destruction_that_was_started_keeps_no_attempt(kms: Kms, clock: kmscore.FixedClock, monkeypatch: pytest.MonkeyPatch) -> None:
    key = kms.create_key().key_id
    kms.schedule_key_deletion(key, pending_window_in_days=7)
    clock.advance(timedelta(days=7))

    def stuck(generation: int, timeout: float) -> None:
        raise KmsError("ServiceUnavailableTemporary", "process 1 has not yet let go of the key")

    monkeypatch.setattr(kms._s.ring._freshness, "wait_until_settled", stuck)
    assert kms.hand_out_due() == [("delete", key)]
    with pytest.raises(KmsError):
        kms.do_due("delete", key)
    assert kms.hand_out_due() == []
    monkeypatch.undo()
    assert kms.recover().finished == (key,)
    assert kms.history(key)[-1]["event"] == "KeyDestroyed"


def test_the_scheduler_s_absence_is_found(tmp_path: Path, clock: kmscore.FixedClock) -> None:
    with kmscore.open_kms(tmp_path / "home", clock=clock, redis_url="redis://127.0.0.1:1/0", **ALONE) as kms:
        warned = " ".join(finding.what for finding in kms.doctor() if finding.level == "warn")
        assert "no worker is alive" in warned
        assert "never swept" in warned
        kms.recover()
        kms.worker_seen("me", NOW, None, 3, 1)
        status = kms.due_status()
        assert status.workers_alive == 1
        assert status.last_sweep_seconds_ago is not None
        assert [(worker.alive, worker.done, worker.failed) for worker in kms.scheduler_workers()] == [(True, 3, 1)]
        monkey = kms._s.scheduling
        wall = monkey._wall
        monkey._wall = lambda: wall() + 400
        warned = " ".join(finding.what for finding in kms.doctor() if finding.level == "warn")
        assert "has been silent since" in warned
        assert "last swept 400 s ago" in warned
        monkey._wall = lambda: wall() + 700
        kms.recover()
        assert kms.scheduler_workers() == ()


@pytest.mark.sqlite
def test_a_home_of_the_version_before_is_swept(tmp_path: Path, clock: kmscore.FixedClock) -> None:
    with kmscore.open_kms(tmp_path / "home", clock=clock, **ALONE) as kms:
        key = rotating(kms)
    with sqlite3.connect(tmp_path / "home" / "kms.db") as database:
        older_due_work(database)
        database.execute("PRAGMA user_version = 3")
    database.close()
    with kmscore.open_kms(tmp_path / "home", clock=clock, **ALONE) as kms:
        clock.advance(timedelta(days=7))
        assert kms.hand_out_due(0) == [("rotate", key)]
        assert kms.do_due("rotate", key)
        clock.advance(timedelta(days=7))
        assert kms.hand_out_due(spot(key)[0]) == [("rotate", key)]
