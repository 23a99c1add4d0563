"""Freshness over processes on one PostgreSQL: some stop, are cut off, are taken for dead, die between commit and announcement."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from local_servers import Postgres
from nodes import Node
from store_audit import assert_nothing_is_left_over, audit, rows
from tcp_proxy import TcpProxy

import kmscore
from kmscore.engine.kms import Kms
from kmscore.store import lease as lease_module
from kmscore.store.freshness import Point
from kmscore.store.lease import DRIFT, Lease
from kmscore.store.postgres import PostgresStore

UNAVAILABLE = "ServiceUnavailableTemporary"
LEASE = 1.0
ABIT = 1.5  # this machine may have much else to do


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def kms(home: Path, database: str) -> Iterator[Kms]:
    with kmscore.open_kms(home, database_url=database, pkcs11_module="none", ticker=False) as kms:
        yield kms


Start = Callable[..., Node]


@pytest.fixture
def start(kms: Kms, home: Path, database: str) -> Iterator[Start]:
    """Starts other nodes beside `kms`."""
    nodes: list[Node] = []

    def start(url: str = database) -> Node:
        nodes.append(Node(home, url))
        return nodes[-1]

    yield start
    for node in nodes:
        node.kill()


def timed(call: Callable[[], object]) -> float:
    begun = time.monotonic()
    call()
    return time.monotonic() - begun


def processes(store: PostgresStore) -> int:
    return len(rows(store, "SELECT * FROM processes"))


# --- real processes ------------------------------------------------------------------------------------------------------------------


def test_a_process_that_stands_still_over_a_disable(kms: Kms, start: Start) -> None:
    other = start()
    key = kms.create_key().key_id
    for _ in range(3):
        assert other.use(key) == "OK"
        other.stop()
        other.tell("use", key)  # begun before the disable, and served or not: the reader is stopped
        taken = timed(lambda: kms.disable_key(key))
        assert LEASE < taken < LEASE * DRIFT + ABIT
        other.tell("use", key)  # begun after its acknowledgement
        other.go_on()
        assert [other.answer()[0] for _ in range(2)] == ["Rejected.Disabled"] * 2
        kms.enable_key(key)


def test_a_process_that_is_cut_off_refuses_and_recovers_alone(kms: Kms, start: Start, database: str, postgres: Postgres) -> None:
    with TcpProxy("127.0.0.1", postgres.port) as proxy:
        other = start(database.replace(f":{postgres.port}/", f":{proxy.port}/"))
        key = kms.create_key().key_id
        assert other.use(key) == "OK"
        for cut in (lambda: proxy.cut_now(stay_down=True), proxy.stall):
            cut()
            taken = timed(lambda: kms.disable_key(key))
            assert taken < LEASE * DRIFT + ABIT
            assert other.use(key) == UNAVAILABLE
            time.sleep(0.5)
            assert other.use(key) == UNAVAILABLE
            proxy.accept()
            proxy.resume()
            other.until("Rejected.Disabled", "use", key, seconds=20)
            kms.enable_key(key)
            assert other.use(key) == "OK"


def test_a_row_that_was_removed_is_entered_again(kms: Kms, start: Start, direct: PostgresStore) -> None:
    other = start()
    key = kms.create_key().key_id
    assert other.use(key) == "OK"
    with direct.writing() as cursor:
        cursor.execute("DELETE FROM processes")
    deadline = time.monotonic() + 10
    while processes(direct) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert other.use(key) == "OK"
    assert timed(lambda: kms.disable_key(key)) < LEASE
    assert other.use(key) == "Rejected.Disabled"


def commit_unannounced(kms: Kms, key_id: str, change: str) -> None:
    """As a writer does that dies before it tells anybody."""
    key = kms._s.store.key(key_id)
    assert key is not None
    getattr(key, change)(kms._s.lifecycle.by())
    kms._s.store.append(key)


def test_a_writer_that_dies_before_it_announced(kms: Kms, start: Start) -> None:
    other = start()
    key = kms.create_key().key_id
    assert other.use(key) == "OK"
    commit_unannounced(kms, key, "disable")
    begun = time.monotonic()
    other.until("Rejected.Disabled", "use", key, seconds=LEASE + ABIT)
    assert time.monotonic() - begun < LEASE + ABIT


def test_a_disable_that_changes_nothing_waits_for_the_others_all_the_same(kms: Kms, start: Start) -> None:
    """Whoever disabled it may have died before the others had seen it."""
    other = start()
    key = kms.create_key().key_id
    assert other.use(key) == "OK"
    other.stop()
    commit_unannounced(kms, key, "disable")
    assert timed(lambda: kms.disable_key(key)) > LEASE
    other.go_on()
    assert other.use(key) == "Rejected.Disabled"


def test_a_process_that_ends_properly_is_waited_for_by_nobody(kms: Kms, start: Start, direct: PostgresStore) -> None:
    other = start()
    key = kms.create_key().key_id
    assert processes(direct) == 2
    other.end()
    assert processes(direct) == 1
    assert timed(lambda: kms.disable_key(key)) < LEASE


def test_a_process_that_was_killed_is_waited_for_once(kms: Kms, start: Start, direct: PostgresStore) -> None:
    other = start()
    key = kms.create_key().key_id
    other.kill()
    assert LEASE < timed(lambda: kms.disable_key(key)) < LEASE * DRIFT + ABIT
    assert processes(direct) == 1
    assert timed(lambda: kms.enable_key(key)) < LEASE


def test_the_intent_of_a_killed_process_is_settled_after_its_lease(kms: Kms, start: Start, direct: PostgresStore, tmp_path: Path) -> None:
    other = start()
    key = kms.create_key().key_id
    other.ask("stall", "after", 60)
    other.tell("rotate_key", key)
    assert other.line() == "stalled"
    assert kms.reconcile().abandoned == ()  # it lives
    time.sleep(LEASE * DRIFT + 0.2)
    assert kms.reconcile().abandoned == ()  # still: it renews its lease
    other.kill()
    taken = timed(lambda: kms.rotate_key(key))
    assert taken < LEASE * DRIFT + ABIT
    assert_nothing_is_left_over(direct)
    assert len(rows(direct, f"SELECT * FROM versions WHERE key_id = '{key}'")) == 2
    audit(direct, tmp_path / "again.db")


@pytest.mark.parametrize("where", ["before", "after"])
def test_an_owner_that_was_taken_for_dead_goes_on(kms: Kms, start: Start, direct: PostgresStore, where: str, tmp_path: Path) -> None:
    """Its attempt was given up: it is told so, what it makes is destroyed, and what others made meanwhile is not touched."""
    other = start()
    key = kms.create_key().key_id
    other.ask("stall", where, 0.1)
    other.tell("rotate_key", key)
    assert other.line() == "stalled"
    other.stop()
    version = kms.rotate_key(key).key_version_id  # waits until it is dead, gives its attempt up, and rotates
    blob = kms.encrypt(key, b"acknowledged").ciphertext_blob
    other.go_on()
    assert other.answer()[0] == UNAVAILABLE
    assert kms.describe_key(key).primary_key_version == version
    assert kms.decrypt(blob).plaintext == b"acknowledged"
    assert kms.reconcile() == type(kms.reconcile())()
    assert_nothing_is_left_over(direct)
    assert other.ask("rotate_key", key).startswith("OK")
    assert_nothing_is_left_over(direct)
    audit(direct, tmp_path / "again.db")


def test_destruction_waits_until_the_others_have_let_go(home: Path, kms: Kms, start: Start, database: str) -> None:
    """One that lives is waited for until it says so, one that stands still until it cannot act any more."""
    other = start()
    key = kms.create_key().key_id
    assert other.use(key) == "OK"
    effects, freshness = kms._s.lifecycle._effects, kms._s.ring._freshness
    with kmscore.open_kms(home, database_url=database, pkcs11_module="none", ticker=False) as holder:
        used = Used()
        holder._s.ring._retired.append(used)  # type: ignore[arg-type]
        commit_unannounced(kms, key, "disable")
        point = effects.announce()
        with pytest.raises(kmscore.KmsError, match="let go"):
            freshness.wait_until_settled(point, 2 * LEASE)
        used.over = True
        freshness.wait_until_settled(point, 2 * LEASE)
    other.stop()
    commit_unannounced(kms, key, "enable")
    assert LEASE < timed(lambda: freshness.wait_until_settled(effects.announce(), 5)) < LEASE * DRIFT + ABIT
    other.go_on()
    assert other.use(key) == "OK"


class Used:
    """A session key in the midst of a use."""

    over = False

    def retire(self) -> bool:
        return self.over


# --- one lease, and time as the test has it ---------------------------------------------------------------------------------------------


class Time:
    """Both clocks that a lease goes by; the wall clock is none of them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(lease_module, "time", clock)
    monkeypatch.setattr(lease_module, "_boot_time", lambda: int(clock.now * 1e9))
    return clock


class Prepared:
    """Leases on one store, whose connections are as old as the test says."""

    def __init__(self, store: PostgresStore, directory: Path) -> None:
        self.store = store
        self.directory = directory

    def lease(self) -> Lease:
        return Lease(self.store, self.directory, LEASE)

    def connected_at(self, instant: float) -> None:
        for connection in self.store._pool._idle:
            connection.made_at = instant


@pytest.fixture
def prepared(direct: PostgresStore, tmp_path: Path) -> Prepared:
    with direct.starting():
        direct.prepare()
    prepared = Prepared(direct, tmp_path)
    prepared.connected_at(0.0)
    return prepared


def renew(lease: Lease, position: int = 0) -> Point:
    point = lease.begin()._replace(position=position)
    assert lease.taken_in(point, True)
    return point


def test_a_lease_runs_from_before_the_log_was_read(prepared: Prepared, clock: Time) -> None:
    with closing(prepared.lease()) as lease:
        point = lease.begin()
        clock.now += 5  # reading takes its time
        assert lease.taken_in(point, True)
        assert lease.lease_age() == 5


def test_one_that_renews_is_waited_for_and_one_that_does_not_is_not(prepared: Prepared, clock: Time) -> None:
    with closing(prepared.lease()) as writer, closing(prepared.lease()) as other:
        renew(other, 4)
        begun = clock.now
        writer.wait_until_taken_in(Point(0, 4))
        assert clock.now == begun  # it has seen it
        writer.wait_until_taken_in(Point(0, 5))
        assert LEASE * DRIFT < clock.now - begun < LEASE * DRIFT + 0.1
        assert not rows(prepared.store, "SELECT * FROM processes")
        point = other.begin()
        assert not other.taken_in(point, True)  # it hears of it, and enters itself again
        renew(other, 5)
        begun = clock.now
        writer.wait_until_taken_in(Point(0, 5))
        assert clock.now == begun


def test_a_renewal_is_never_told_twice(prepared: Prepared, clock: Time) -> None:
    """One that was removed began to count anew, and a writer that remembered the same number from before took it for dead at once."""
    with closing(prepared.lease()) as writer, closing(prepared.lease()) as other:
        renew(other, 1)
        assert writer.works(other.owner)  # looks, and remembers
        clock.now += 60
        with prepared.store.writing() as cursor:  # another writer
            cursor.execute("DELETE FROM processes")
        assert not other.taken_in(other.begin(), True)
        renew(other, 1)
        assert writer.works(other.owner)


def test_a_renewal_that_a_crash_forgot_is_waited_for(prepared: Prepared, clock: Time) -> None:
    """Renewals are not durable at once: the row of a process may be an older one after a crash of the server, and its lease longer."""
    with closing(prepared.lease()) as writer, closing(prepared.lease()) as other:
        renew(other, 1)
        assert writer.works(other.owner)
        clock.now += LEASE * 0.9
        before = rows(prepared.store, "SELECT renewals FROM processes")[0][0]
        renew(other, 1)
        with prepared.store.writing() as cursor:
            cursor.execute("UPDATE processes SET renewals = ?", (before,))
        clock.now += LEASE * 0.3  # of which the lease of the other has 0.7 left
        prepared.connected_at(clock.now)  # every connection is new
        assert writer.works(other.owner)
        clock.now += LEASE * DRIFT + 0.01
        assert not writer.works(other.owner)


def test_a_connection_that_was_lost_meanwhile_is_replaced_unnoticed(prepared: Prepared) -> None:
    """Each cut cost a renewal, so refusals for RETRY_SECONDS, though the server was there."""
    with closing(prepared.lease()) as lease:
        renew(lease)
        assert lease._own is not None
        with prepared.store.writing() as cursor:
            cursor.execute("SELECT pg_terminate_backend(?)", (lease._own.info.backend_pid,))
        renew(lease)


def test_nobody_is_believed_who_never_entered(prepared: Prepared, clock: Time) -> None:
    with closing(prepared.lease()) as writer:
        assert not writer.works("0" * 32)
        assert not writer.works("boot/1/1")  # of the time when this store was a file


def test_one_that_is_removed_does_not_act_until_it_has_entered(prepared: Prepared) -> None:
    with closing(prepared.lease()) as lease:
        renew(lease)
        assert lease.gate.fresh
        with prepared.store.writing() as cursor:
            cursor.execute("DELETE FROM processes")
        assert not lease.taken_in(lease.begin(), True)
        assert not lease.gate.fresh
        renew(lease)
        assert lease.gate.fresh
