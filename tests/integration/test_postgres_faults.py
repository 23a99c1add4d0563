"""PostgreSQL that fails: the link cut at every message of a save, a server that crashes, restarts, stands still, or holds a lock.

Whatever is answered agrees with what is stored, every wait has an end, and the engine comes back by itself (RELIABILITY G13).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from local_servers import Postgres
from store_audit import assert_nothing_is_left_over, audit
from tcp_proxy import Sender, TcpProxy

import kmscore
from kmscore.domain.events import KeyDisabled
from kmscore.engine import background
from kmscore.engine.kms import Kms
from kmscore.store import lease
from kmscore.store import postgres as store_postgres
from kmscore.store.postgres import POOL_KEPT, PostgresStore

UNAVAILABLE = "ServiceUnavailableTemporary"


@pytest.fixture
def proxy(postgres: Postgres) -> Iterator[TcpProxy]:
    with TcpProxy("127.0.0.1", postgres.port) as proxy:
        yield proxy


@pytest.fixture
def kms(tmp_path: Path, database: str, postgres: Postgres, proxy: TcpProxy) -> Iterator[Kms]:
    """An engine whose link is the proxy."""
    with open_engine(tmp_path, database.replace(f":{postgres.port}/", f":{proxy.port}/")) as kms:
        yield kms
        proxy.accept()


def open_engine(home: Path, url: str) -> Kms:
    return kmscore.open_kms(home / "home", database_url=url, pkcs11_module="none", ticker=False)


def code_of(call: Callable[[], object]) -> str:
    try:
        call()
    except kmscore.KmsError as error:
        return error.code
    return "OK"


def until_it_works(call: Callable[[], object], seconds: float = 10.0) -> str:
    """The first answer that is not "the store is away now": its code."""
    deadline = time.monotonic() + seconds
    while (code := code_of(call)) == UNAVAILABLE:
        assert time.monotonic() < deadline, "it did not come back"
        time.sleep(0.005)
    return code


# --- the link cut at every message ---------------------------------------------------------------------------------------------------


class Cuts:
    """Does something again and again, and has the link cut at the n-th message meanwhile."""

    def __init__(self, kms: Kms, proxy: TcpProxy, direct: PostgresStore, scratch: Path) -> None:
        self.kms, self.proxy, self.direct, self.scratch = kms, proxy, direct, scratch
        self.key = kms.create_key().key_id
        self.answers: dict[tuple[str, bool], int] = {}  # (code, whether the change is stored) -> how often

    def state(self, operation: str, key: str) -> int:
        """A count that grows by 1 with each time that the operation happens."""
        sql = {
            "create": "SELECT count(*) FROM keys",
            "rotate": f"SELECT count(*) FROM versions WHERE key_id = '{key}'",
            "disable": f"SELECT count(*) FROM stored_events WHERE originator_id = '{key}' AND topic = '{KeyDisabled.TOPIC}'",
        }
        with self.direct.reading() as cursor:
            cursor.execute(sql[operation])
            return int(cursor.fetchone()[0])

    def once(self, operation: str, sender: Sender, n: int, forward: bool, stay_down: bool) -> bool:
        """False when there is no n-th message."""
        kms = self.kms
        assert until_it_works(kms._s.ring.refresh) == "OK"
        key = kms.create_key().key_id  # a new one: the messages grow with a key's events and versions
        blob = kms.encrypt(key, b"x").ciphertext_blob
        calls: dict[str, Callable[[], object]] = {
            "create": kms.create_key,
            "disable": lambda: kms.disable_key(key),
            "rotate": lambda: kms.rotate_key(key),
        }
        before = self.state(operation, key)
        self.proxy.cut_at(sender, n, forward=forward, stay_down=stay_down)
        code = code_of(calls[operation])
        fired = self.proxy.fired
        self.proxy.arm()
        self.proxy.accept()
        assert until_it_works(self.recover) == "OK"
        happened = self.state(operation, key) - before
        assert (code, happened) in (("OK", 1), (UNAVAILABLE, 0), (UNAVAILABLE, 1))
        assert fired or code == "OK"
        self.answers[code, bool(happened)] = self.answers.get((code, bool(happened)), 0) + 1
        disabled = operation == "disable" and happened
        used = until_it_works(lambda: kms.decrypt(blob))
        deadline = time.monotonic() + kms.settings.lease_seconds
        while disabled and code == UNAVAILABLE and used == "OK" and time.monotonic() < deadline:
            used = until_it_works(lambda: kms.decrypt(blob))  # not acknowledged: in force when the next renewal has read it
        assert used == ("Rejected.Disabled" if disabled else "OK")
        assert until_it_works(lambda: kms.encrypt(self.key, b"x")) == "OK"
        assert_nothing_is_left_over(self.direct)
        return fired

    def recover(self) -> None:
        report = self.kms.reconcile()
        if report.pending:
            raise kmscore.KmsError(UNAVAILABLE, str(report.pending))
        assert report.quarantined == report.missing == ()

    def all(self, operation: str, stride: int, *, stay_down: bool) -> int:
        """Every `stride`th message of both sides, before and after it was forwarded; how many cuts there were."""
        cuts = 0
        for offset, (sender, forward) in enumerate((s, f) for s in ("client", "server") for f in (False, True)):
            n = 1 + offset * stride // 4
            while self.once(operation, sender, n, forward, stay_down):  # type: ignore[arg-type]
                cuts += 1
                n += stride
        audit(self.direct, self.scratch)
        return cuts


@pytest.fixture
def cuts(kms: Kms, proxy: TcpProxy, direct: PostgresStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cuts:
    monkeypatch.setattr(lease, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(background, "RETRY_SECONDS", 0.01)
    return Cuts(kms, proxy, direct, tmp_path / "again.db")


@pytest.mark.parametrize(("operation", "stride"), [("create", 29), ("disable", 23), ("rotate", 37)])
def test_the_link_cut_at_some_messages_of_a_save(cuts: Cuts, operation: str, stride: int) -> None:
    assert cuts.all(operation, stride, stay_down=False) > 10
    print(operation, cuts.answers)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stay_down", [False, True])
@pytest.mark.parametrize("operation", ["create", "disable", "rotate"])
def test_the_link_cut_at_every_message_of_a_save(cuts: Cuts, operation: str, stay_down: bool) -> None:
    number = cuts.all(operation, 1, stay_down=stay_down)
    print(f"{operation}: {number} cuts, {cuts.answers}")
    assert number > 100
    if stay_down:  # with the link gone nobody can tell the caller that it happened
        assert cuts.answers[UNAVAILABLE, True] > 0


def test_who_asks_all_the_time_does_not_put_the_next_try_off(kms: Kms, proxy: TcpProxy) -> None:
    """Each refusal counted as a failure, and was followed by another time of refusing: under load a node never came back."""
    key = kms.create_key().key_id
    kms.encrypt(key, b"x")
    proxy.cut_now(stay_down=True)
    deadline = time.monotonic() + 10
    while code_of(lambda: kms.encrypt(key, b"x")) != UNAVAILABLE:
        assert time.monotonic() < deadline
    proxy.accept()
    deadline = time.monotonic() + 2
    while code_of(lambda: kms.encrypt(key, b"x")) != "OK":  # as fast as it can
        assert time.monotonic() < deadline


# --- a server that is away, stands still, or is slow -----------------------------------------------------------------------------------


class Load:
    """Threads that call all the time, and remember when what was answered."""

    def __init__(self, kms: Kms, threads: int) -> None:
        self.kms = kms
        self.key = kms.create_key().key_id
        self.kept: list[tuple[str, bytes]] = []
        self.errors: list[tuple[float, float, str]] = []  # asked at, answered at, code
        self.longest = 0.0
        self.calls = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        while not self._stop.is_set():
            begun = time.monotonic()
            try:
                if number % 2:
                    self.kept.append((self.key, self.kms.encrypt(self.key, b"x").ciphertext_blob))
                    time.sleep(0.002)
                else:
                    key = self.kms.create_key().key_id
                    self.kept.append((key, b""))
            except kmscore.KmsError as error:
                self.errors.append((begun, time.monotonic(), error.code))
                time.sleep(0.01)
            self.calls += 1
            self.longest = max(self.longest, time.monotonic() - begun)

    def verify(self) -> None:
        """Nothing that was acknowledged is lost."""
        for key, blob in self.kept:
            if blob:
                assert self.kms.decrypt(blob).plaintext == b"x"
            else:
                assert self.kms.describe_key(key).key_state == "Enabled"

    def wait(self, seconds: float) -> None:
        """Until everyone has been answered anew, and for so long at least."""
        before = self.calls
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline or self.calls < before + 20:
            time.sleep(0.01)


@pytest.mark.parametrize("crashes", [2, pytest.param(25, marks=pytest.mark.slow)])
def test_a_server_that_crashes_under_load(tmp_path: Path, database: str, postgres: Postgres, direct: PostgresStore, crashes: int) -> None:
    with open_engine(tmp_path, database) as kms, Load(kms, 6) as load:
        away: list[tuple[float, float]] = []
        for _ in range(crashes):
            load.wait(0.3)
            begun = time.monotonic()
            postgres.kill()
            time.sleep(0.2)
            postgres.start()
            # Who is refused the moment before the server is back is refused at once for RETRY_SECONDS, and a lease is there after a read.
            away.append((begun, time.monotonic() + 2 * lease.RETRY_SECONDS + 0.2))
            load.wait(1.0)
        load.__exit__()
        assert {code for _, _, code in load.errors} == {UNAVAILABLE}
        outside = [(a, b) for a, b, _ in load.errors if not any(begun <= b and a <= end for begun, end in away)]
        assert not outside
        load.verify()
        assert until_it_works(lambda: kms.reconcile()) == "OK"
        assert_nothing_is_left_over(direct)
        audit(direct, tmp_path / "again.db")


@pytest.mark.parametrize("how", ["server", pytest.param("link", marks=pytest.mark.slow)])
def test_a_server_that_stands_still(
    tmp_path: Path, database: str, postgres: Postgres, proxy: TcpProxy, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing hangs for ever: a few answers' time at most, then 503, and back by itself."""
    monkeypatch.setattr(store_postgres, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(store_postgres, "CONNECT_SECONDS", 2)
    url = database.replace(f":{postgres.port}/", f":{proxy.port}/")
    with open_engine(tmp_path, url) as kms, Load(kms, 8) as load:
        load.wait(0.5)
        (postgres.pause if how == "server" else proxy.stall)()
        try:
            begun = time.monotonic()
            time.sleep(1.2)  # every lease is over
            assert code_of(lambda: kms.encrypt(load.key, b"x")) == UNAVAILABLE
            load.wait(5.0)
        finally:
            (postgres.resume if how == "server" else proxy.resume)()
        resumed = time.monotonic()
        assert until_it_works(lambda: kms.encrypt(load.key, b"x"), 5.0) == "OK"
        load.wait(1.0)
        load.__exit__()
        assert {code for _, _, code in load.errors} == {UNAVAILABLE}
        assert all(begun <= answered and asked <= resumed + 3.0 for asked, answered, _ in load.errors)
        # One answer that does not come, then one connection that is not made, for the commit and for whether it happened.
        assert load.longest < 9.0
        load.verify()


def test_a_lock_of_somebody_else_is_waited_for_a_bounded_time(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_postgres, "LOCK_SECONDS", 0.5)
    with open_engine(tmp_path, database) as kms, psycopg.connect(database) as other:
        key = kms.create_key().key_id
        other.execute("SELECT * FROM head FOR UPDATE")
        begun = time.monotonic()
        assert code_of(lambda: kms.disable_key(key)) == UNAVAILABLE  # it cannot even be said whether it happened
        assert time.monotonic() - begun < 3
        kms.encrypt(key, b"x")  # who only uses keys is not held up
        other.rollback()
        assert code_of(lambda: kms.disable_key(key)) == "OK"


def test_a_statement_that_takes_for_ever_is_ended(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_postgres, "STATEMENT_SECONDS", 0.3)
    monkeypatch.setattr(store_postgres, "IDLE_SECONDS", 0.3)
    store = PostgresStore(database)
    with pytest.raises(kmscore.KmsError, match="statement timeout"), store.reading() as cursor:
        cursor.execute("SELECT pg_sleep(30)")
    with pytest.raises(kmscore.KmsError, match="idle-in-transaction"), store.writing() as cursor:
        time.sleep(0.6)
        cursor.execute("SELECT 1")
    with store.reading() as cursor:
        cursor.execute("SELECT 1")
    store.close()


def test_every_kept_connection_is_replaced_after_a_restart(database: str, postgres: Postgres) -> None:
    store = PostgresStore(database)
    gathered = threading.Barrier(POOL_KEPT)

    def use() -> None:
        with store.reading() as cursor:
            gathered.wait(10)
            cursor.execute("SELECT 1")

    def together() -> None:
        threads = [threading.Thread(target=use) for _ in range(POOL_KEPT)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    together()
    assert len(store._pool._idle) == POOL_KEPT
    postgres.kill()
    with pytest.raises(kmscore.KmsError), store.reading():
        pass
    postgres.start()
    together()  # none of them fails
    assert len(store._pool._idle) == POOL_KEPT
    store.close()


def test_no_more_connections_than_there_are_places(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_postgres, "POOL_MOST", 2)
    monkeypatch.setattr(store_postgres, "POOL_SECONDS", 0.1)
    store = PostgresStore(database)
    with store.reading(), store.reading(), pytest.raises(kmscore.KmsError, match="in use"), store.reading():
        pass
    with store.reading(), store.reading():
        pass
    store.close()


def test_two_processes_that_write_at_once_never_deadlock(tmp_path: Path, database: str, direct: PostgresStore) -> None:
    with open_engine(tmp_path, database) as one, open_engine(tmp_path, database) as other:
        keys = [one.create_key().key_id for _ in range(4)]
        failed: list[str] = []

        def work(kms: Kms, number: int) -> None:
            for step in range(15):
                ordered = keys if (number + step) % 2 else keys[::-1]
                for call in (
                    lambda: kms.tag_resources(resource_id=ordered, tag={"a": f"{number}-{step}"}),  # noqa: B023 - called at once
                    lambda: kms.disable_key(ordered[0]),  # noqa: B023
                    lambda: kms.enable_key(ordered[0]),  # noqa: B023
                    lambda: kms.reconcile() if step % 5 == 0 else None,  # noqa: B023
                ):
                    code = code_of(call)
                    if code != "OK":
                        failed.append(code)

        threads = [threading.Thread(target=work, args=(kms, number)) for number, kms in enumerate((one, other, one, other))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        audit(direct, tmp_path / "again.db")
    with direct.reading() as cursor:
        cursor.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        assert cursor.fetchone()[0] == 0
