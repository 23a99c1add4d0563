"""What threads of one process may do to each other: nothing. Each test here was a bug that a review found."""

from __future__ import annotations

import errno
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import kmscore
from kmscore import FixedClock, KmsError
from kmscore.bootstrap import open_kms
from kmscore.custody.fake import FakeKeeper, FakeToken
from kmscore.engine.kms import Kms
from kmscore.store.queries import Queries

START = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def token() -> FakeToken:
    return FakeToken()


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock(START)


@pytest.fixture
def kms(tmp_path: Path, token: FakeToken, clock: FixedClock) -> Iterator[Kms]:
    with open_kms(tmp_path / "home", clock=clock, hsm=FakeKeeper(token)) as kms:
        yield kms


def in_threads(*works: object) -> list[BaseException]:
    errors: list[BaseException] = []

    def guarded(work: object) -> None:
        try:
            work()  # type: ignore[operator]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.parametrize("engines", [1, 2])
def test_recovery_beside_creation_destroys_nothing_that_lives(tmp_path: Path, token: FakeToken, clock: FixedClock, engines: int) -> None:
    opened = [open_kms(tmp_path / "home", clock=clock, hsm=FakeKeeper(token)) for _ in range(engines)]
    made: list[str] = []
    stop = threading.Event()

    def create() -> None:
        try:
            for number in range(60):
                made.append(opened[0].create_key(protection_level=("HSM", "SOFTWARE")[number % 2]).key_id)
        finally:
            stop.set()

    def recover() -> None:
        while not stop.is_set():
            opened[-1].reconcile()

    assert in_threads(create, create, recover) == []
    for key in made:
        assert opened[0].decrypt(opened[0].encrypt(key, b"x").ciphertext_blob).plaintext == b"x"
    assert opened[0].reconcile().missing == ()
    for kms in opened:
        kms.close()


def test_an_attempt_that_ends_while_it_is_looked_at_is_not_abandoned(kms: Kms, token: FakeToken, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very interleaving: the intent is seen, the attempt ends, then the recovery asks about its owner."""
    seen = Queries.open_intents
    finished = threading.Event()
    looked = threading.Event()

    def slow_look(self: Queries, key_id: str | None = None) -> object:
        found = seen(self, key_id)
        if key_id is not None and found and threading.current_thread().name == "recovery":
            looked.set()
            assert finished.wait(10)
        return found

    monkeypatch.setattr(Queries, "open_intents", slow_look)
    token.faults.at("generate.after", lambda: looked.wait(10))
    creation = threading.Thread(target=lambda: kms.create_key(protection_level="HSM"))

    def recover() -> None:
        while creation.is_alive() and not looked.is_set():
            kms.reconcile()

    recovery = threading.Thread(target=recover, name="recovery")
    creation.start()
    recovery.start()
    creation.join()
    finished.set()
    recovery.join()
    assert looked.is_set()
    (key,) = (item.key_id for item in kms.list_keys().items)
    assert kms.encrypt(key, b"x")


def test_an_alias_that_moves_while_it_is_read_is_not_remembered_as_it_was(kms: Kms, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = kms.create_key().key_id, kms.create_key().key_id
    kms.create_alias(one, alias_name="alias/a")
    look_up = Queries.key_of_alias
    mover = threading.Thread(target=lambda: kms.update_alias(two, alias_name="alias/a"))
    moved: list[bool] = []

    def read_then_move(self: Queries, name: str) -> str | None:
        answer = look_up(self, name)
        if not moved:
            moved.append(True)
            mover.start()
            mover.join(0.5)  # it commits, and may have to wait for us before it acknowledges
        return answer

    monkeypatch.setattr(Queries, "key_of_alias", read_then_move)
    kms.encrypt("alias/a", b"x")
    mover.join()
    assert kms.encrypt("alias/a", b"x").key_id == two


def test_a_token_that_stalls_over_one_key_holds_up_no_other(kms: Kms, token: FakeToken) -> None:
    slow, quick = kms.create_key(protection_level="HSM").key_id, kms.create_key().key_id
    kms.encrypt(quick, b"x")
    stalled, go_on = threading.Event(), threading.Event()

    def stall() -> None:
        stalled.set()
        assert go_on.wait(30)

    token.faults.at("load.before", stall)
    user = threading.Thread(target=lambda: kms.encrypt(slow, b"x"))
    user.start()
    assert stalled.wait(10)
    kms.encrypt(quick, b"x")
    kms.disable_key(quick)
    with pytest.raises(KmsError, match="Disabled"):
        kms.encrypt(quick, b"x")
    assert kms.create_key(protection_level="HSM")
    assert user.is_alive()
    go_on.set()
    user.join()


def test_a_key_that_is_disabled_while_it_is_loaded_is_not_used(kms: Kms, token: FakeToken) -> None:
    key = kms.create_key(protection_level="HSM").key_id
    token.faults.at("load.after", lambda: kms.disable_key(key))
    with pytest.raises(KmsError, match="Disabled"):
        kms.encrypt(key, b"x")
    kms.enable_key(key)
    assert kms.encrypt(key, b"x")


def test_the_views_of_destroyed_keys_are_dropped(kms: Kms, clock: FixedClock) -> None:
    for _ in range(5):
        key = kms.create_key().key_id
        kms.encrypt(key, b"x")
        kms.schedule_key_deletion(key, pending_window_in_days=7)
    clock.advance(timedelta(days=7))
    assert len(kms.run_due().destroyed) == 5
    assert kms._s.ring._views == {}
    assert kms._s.ring._by_header == {}


def test_the_ticker_outlives_what_is_not_a_refusal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_kms(tmp_path / "home", tick_seconds=0.01, pkcs11_module="none") as kms:
        runs = 0
        done = threading.Event()

        def broken(stop: object) -> None:
            nonlocal runs
            runs += 1
            if runs >= 3:
                done.set()
            raise OSError(errno.EMFILE, "Too many open files", "/a/path")

        with caplog.at_level(logging.ERROR, "kmscore"):
            object.__setattr__(kms._s.due, "run", broken)
            assert done.wait(20)
    assert "due work is postponed: unexpected OSError: Too many open files" in caplog.text
    assert "/a/path" not in caplog.text


def test_one_process_that_does_not_let_go_is_waited_for_once(kms: Kms, clock: FixedClock, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def stuck(generation: int, timeout: float) -> None:
        waits.append(timeout)
        raise KmsError("ServiceUnavailableTemporary", "process 1 has not yet let go of the key")

    keys = [kms.create_key().key_id for _ in range(4)]
    for key in keys:
        kms.schedule_key_deletion(key, pending_window_in_days=7)
    clock.advance(timedelta(days=7))
    monkeypatch.setattr(kms._s.ring._freshness, "wait_until_settled", stuck)
    assert {key for key, _ in kms.run_due().failed} == set(keys)
    assert waits == [kms.settings.eviction_wait_seconds, 0, 0, 0]
    waits.clear()
    kms.reconcile()
    assert waits == [0, 0, 0, 0]
    monkeypatch.undo()
    assert set(kms.run_due().destroyed) == set(keys)


def test_a_fork_while_a_lock_is_held_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    script = """
import os, sys, kmscore
kms = kmscore.open_kms(sys.argv[1], pkcs11_module="none")
key = kms.create_key().key_id
other = kms.create_key().key_id
kms.encrypt(key, b"x")
with kms._s.ring._lock:
    kms._s.ring._gate.bump()
    pid = os.fork()
    if pid == 0:
        codes = []
        for call in (lambda: kms.encrypt(key, b"x"), lambda: kms.encrypt(other, b"x"), lambda: kms.encrypt("alias/a", b"x")):
            try:
                call()
            except kmscore.SetupError as error:
                codes.append("fork" in str(error))
        os._exit(0 if codes == [True, True, True] else 1)
_, status = os.waitpid(pid, 0)
assert status == 0, status
kms.close()
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "home")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.sqlite
def test_a_commit_is_seen_through_a_large_log_without_a_scan(kms: Kms) -> None:
    with kms._s.queries._datastore.reading() as cursor:
        cursor.execute("EXPLAIN QUERY PLAN SELECT position, originator_id FROM stored_events WHERE position > ? ORDER BY position", (5,))
        (plan,) = (row[3] for row in cursor.fetchall())
    assert "SEARCH" in plan


def test_an_engine_closes_beside_its_callers_and_opens_again(tmp_path: Path) -> None:
    made: list[str] = []
    for _ in range(5):
        kms = kmscore.open_kms(tmp_path / "home", ticker=False)
        under_way = threading.Event()

        def create(kms: Kms = kms, under_way: threading.Event = under_way) -> None:
            while True:
                try:
                    made.append(kms.create_key(protection_level="HSM").key_id)
                except KmsError:
                    return
                under_way.set()

        callers = [threading.Thread(target=create) for _ in range(2)]
        for caller in callers:
            caller.start()
        assert under_way.wait(20)
        kms.close()
        for caller in callers:
            caller.join()
    with kmscore.open_kms(tmp_path / "home", ticker=False) as kms:
        for key in made:
            assert kms.encrypt(key, b"x")
        report = kms.reconcile()
        assert report.missing == report.quarantined == ()
