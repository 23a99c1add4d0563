"""`kms migrate` on a real PostgreSQL: nothing is lost on the way there and back, and nothing is moved that is used, damaged, or in the way."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

psycopg = pytest.importorskip("psycopg")
from custody_helpers import fast_directory  # noqa: E402
from local_servers import Postgres  # noqa: E402
from migrate_helpers import START, Databases, change, child, content, fill_home, open_all, said, synthetic, synthetic_key  # noqa: E402

import kmscore  # noqa: E402
from kmscore import FixedClock, SetupError  # noqa: E402
from kmscore.errors import KmsError  # noqa: E402
from kmscore.store import moving, transfer  # noqa: E402
from kmscore.store.keystore import KeyStore  # noqa: E402
from kmscore.store.postgres import PostgresStore  # noqa: E402
from kmscore.store.recorder import ChainedRecorder  # noqa: E402
from kmscore.store.schema import PASSING  # noqa: E402
from kmscore.store.sqlite import SqliteStore  # noqa: E402

pytestmark = pytest.mark.sqlite


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    with Postgres(tmp_path_factory.mktemp("server") / "postgres", durable=False) as server:
        yield Databases(server)


@pytest.fixture
def url(databases: Databases) -> str:
    return databases()


class Full:
    def __init__(self, home: Path, clock: FixedClock, blobs: dict[str, bytes]) -> None:
        self.home, self.clock, self.blobs = home, clock, blobs


@pytest.fixture(scope="module")
def filled() -> Iterator[Full]:
    """Made once; a test works on a copy in the same place, since SoftHSM's configuration names it."""
    with fast_directory() as directory:
        clock = FixedClock(START)
        blobs = fill_home(directory / "home", clock)
        shutil.copytree(directory / "home", directory / "kept")
        yield Full(directory / "home", clock, blobs)


@pytest.fixture
def full(filled: Full) -> Full:
    shutil.rmtree(filled.home)
    shutil.copytree(filled.home.with_name("kept"), filled.home)
    return filled


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A small one, without a token."""
    with kmscore.open_kms(tmp_path / "home", ticker=False, pkcs11_module="none") as kms:
        kms.create_alias(kms.create_key().key_id, alias_name="alias/a")
    return tmp_path / "home"


def migrate(home: Path, to: str, **more: Any) -> Any:
    return kmscore.migrate(home, to=to, pkcs11_module="none", **more)


def refused(home: Path, to: str, **more: Any) -> str:
    with pytest.raises(KmsError) as error:
        migrate(home, to, **more)
    return error.value.message


def usable(home: Path, url: str = "") -> None:
    with kmscore.open_kms(home, ticker=False, pkcs11_module="none", database_url=url) as kms:
        assert kms.decrypt(kms.encrypt("alias/a", b"x").ciphertext_blob).plaintext == b"x"
        kms.describe_key(kms.create_key().key_id)


def closed(home: Path, url: str = "") -> str:
    with pytest.raises(SetupError) as error:
        kmscore.open_kms(home, ticker=False, pkcs11_module="none", database_url=url)
    return error.value.message


def test_every_table_of_both_databases_is_moved_or_known_to_be_passing(home: Path, url: str) -> None:
    """Who adds a table need not think of this; who adds one that must not be moved names it in PASSING."""
    migrate(home, url)
    with closing(sqlite3.connect(home / "kms.db")) as link:
        names = {row[0] for row in link.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'")}
        columns = {name: {row[1] for row in link.execute(f"PRAGMA table_info({name})")} for name in names}
    with psycopg.connect(url) as link:
        sql = "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
        there: dict[str, set[str]] = {}
        for name, column in link.execute(sql):
            there.setdefault(name, set()).add(column)
    assert there.pop("schema_version")
    assert there == columns
    moved = {table.name: set(table.columns) for table in transfer.tables()}
    assert moved == {name: those for name, those in columns.items() if name not in PASSING}
    assert all(table.key for table in transfer.tables())
    assert [table.name for table in transfer.tables() if table.numbered] == ["stored_events", "keys"]


def test_there_and_back_with_everything(full: Full, url: str) -> None:
    database = full.home / "kms.db"
    options = {"clock": full.clock, "ticker": False}
    with kmscore.open_kms(full.home, **options) as kms:
        before = said(kms)
        open_all(kms, full.blobs)
    raw = content(database)
    told: list[tuple[str, int, int]] = []
    moved = kmscore.migrate(full.home, to=url, progress=lambda *said: told.append(said))
    assert (moved.events, moved.already, moved.kept) == (before["position"], False, "")
    assert [what for what, done, total in told if done == total == before["position"]] == ["copied", "compared", "checked"]
    assert content(url) == raw
    assert "moved to postgresql://kms@" in closed(full.home)

    with kmscore.open_kms(full.home, database_url=url, **options) as kms:
        assert said(kms) == before
        open_all(kms, full.blobs)
        there = kms.create_key(protection_level="HSM").key_id
        blob = kms.encrypt(there, b"there").ciphertext_blob
        assert kms.list_keys(page_size=100).items[-1].key_id == there
        assert rows(url, "SELECT max(seq) FROM keys") == [(raw["last of keys"] + 1,)]  # though that key is gone
        assert rows(url, "SELECT position FROM head") == rows(url, "SELECT max(position) FROM stored_events")
        kms.disable_key(kms.list_aliases().items[0].key_id)
        assert kms.reconcile() == type(kms.reconcile())()
        after = said(kms)
    moved = kmscore.migrate(full.home, to="sqlite", database_url=url)
    assert moved.kept.startswith("kms.db.before-")
    assert content(full.home / moved.kept) == raw
    assert content(database) == content(url)
    assert {path.name for path in full.home.glob("kms.db*")} == {"kms.db", moved.kept}
    assert database.stat().st_mode & 0o777 == 0o600
    assert "take KMS_DATABASE_URL" in closed(full.home, url)

    with kmscore.open_kms(full.home, **options) as kms:
        assert said(kms) == after
        kms.enable_key(kms.list_aliases().items[0].key_id)
        open_all(kms, full.blobs)
        assert kms.decrypt(blob).plaintext == b"there"
        assert kms.list_keys(page_size=100).items[-1].key_id == there
        made = kms.create_key().key_id
        assert kms.list_keys(page_size=100).items[-1].key_id == made
        assert kms.reconcile() == type(kms.reconcile())()
        assert not [finding for finding in kms.doctor() if finding.level == "fail"]


AWKWARD = ["\U0001f511", "\uffee", "é", "e\u0301", "a\tb\\n\nc", "\\N", "", "Z", "a", "\x7f"]  # UTF-16 orders the first two otherwise


def test_any_value_in_any_table(home: Path, url: str) -> None:
    """Rows of every table that is empty here, with values that a driver, an order of text or a text format could make others of."""
    with closing(sqlite3.connect(home / "kms.db")) as link, link:
        for table in transfer.tables():
            if link.execute(f"SELECT count(*) FROM {table.name}").fetchone()[0]:
                continue
            columns = link.execute(f"PRAGMA table_info({table.name})").fetchall()
            for number, text in enumerate(AWKWARD):
                values = {"TEXT": text, "INTEGER": (-1) ** number * (2**62 + number), "BLOB": bytes([number, 0, 255, 92])}
                row = [values[kind] if needed or place else None for _, _, kind, needed, _, place in columns]
                link.execute(f"INSERT INTO {table.name} VALUES ({', '.join('?' * len(row))})", row)
    raw = content(home / "kms.db")
    assert all(raw.values())
    migrate(home, url)
    assert content(url) == raw
    migrate(home, "sqlite", database_url=url)
    assert content(home / "kms.db") == raw


def rows(url: str, sql: str) -> list[Any]:
    with psycopg.connect(url) as link:
        return list(link.execute(sql).fetchall())  # type: ignore[call-overload]


def test_the_same_command_again_says_that_it_is_done(home: Path, url: str) -> None:
    first = migrate(home, url)
    again = migrate(home, url)
    assert (again.where, again.events, again.already) == (first.where, first.events, True)
    usable(home, url)
    assert migrate(home, url).already  # also after the events went on there
    assert not migrate(home, "sqlite", database_url=url).already
    assert migrate(home, "sqlite", database_url=url).already
    usable(home)
    assert migrate(home, "sqlite", database_url=url).already
    assert len(list(home.glob("kms.db.before-*"))) == 1


def test_a_database_that_was_left_is_not_moved_to_again(home: Path, databases: Databases) -> None:
    one, other = databases(), databases()
    migrate(home, one)
    migrate(home, "sqlite", database_url=one)
    assert "name another database" in refused(home, one)
    usable(home)
    migrate(home, other)
    assert "were moved to" in refused(home, one)
    assert "were moved to" in refused(home, "sqlite", database_url=one)
    migrate(home, "sqlite", database_url=other)
    usable(home)


# --- what is refused -----------------------------------------------------------------------------------------------------------------

HOLDS = """
import sys, kmscore
with kmscore.open_kms(sys.argv[1], ticker=False, pkcs11_module="none", database_url=sys.argv[2]) as kms:
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            if line.strip() == "create":
                kms.create_key()
            else:
                kms.encrypt("alias/a", b"x")
            print("ok", flush=True)
        except kmscore.KmsError as error:
            print(error.code, error.message, flush=True)
"""


class Holder:
    def __init__(self, home: Path, url: str = "") -> None:
        self.process = child(HOLDS, home, url, stderr=subprocess.DEVNULL)
        assert self.read() == "ready"

    def read(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def ask(self, what: str) -> str:
        assert self.process.stdin
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self.read()

    def end(self, number: int = signal.SIGKILL) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, number)
        self.process.communicate()


def test_a_home_that_is_open_is_not_moved(home: Path, url: str) -> None:
    holder = Holder(home)
    try:
        assert f"in use by process {holder.process.pid}" in refused(home, url)
        os.kill(holder.process.pid, signal.SIGSTOP)  # it would go on where it was
        assert f"in use by process {holder.process.pid}" in refused(home, url)
        os.kill(holder.process.pid, signal.SIGCONT)
        assert holder.ask("create") == "ok"
    finally:
        holder.end()
    migrate(home, url)
    holder = Holder(home, url)
    try:
        began = time.monotonic()
        assert f"process {holder.process.pid} on" in refused(home, "sqlite", database_url=url)
        assert time.monotonic() - began < 1.0
        assert holder.ask("create") == "ok"
    finally:
        holder.end()
    assert rows(url, "SELECT count(*) FROM processes") == [(1,)]  # it is dead, and nobody has said so
    migrate(home, "sqlite", database_url=url)
    usable(home)


@pytest.mark.slow
def test_a_process_that_slept_through_the_move_does_nothing_any_more(home: Path, url: str) -> None:
    migrate(home, url)
    holder = Holder(home, url)
    try:
        assert holder.ask("encrypt") == "ok"
        os.kill(holder.process.pid, signal.SIGSTOP)
        migrate(home, "sqlite", database_url=url)
        os.kill(holder.process.pid, signal.SIGCONT)
        answers = [holder.ask(what) for what in ("create", "encrypt") * 5]
        assert all(answer.startswith("ServiceUnavailableTemporary") for answer in answers), answers
    finally:
        holder.end()
    assert content(url) == content(home / "kms.db")
    assert rows(url, "SELECT count(*) FROM processes") == [(0,)]


def test_nothing_is_added_to_a_store_that_was_left_though_it_is_still_open(home: Path, url: str) -> None:
    """One who got between the look at who has it open and the first lock."""

    def append(store: Any) -> None:
        KeyStore(ChainedRecorder(store), "boot/1/1").append(synthetic_key(1))

    with closing(SqliteStore(home / "kms.db")) as own:
        own.schema_version()  # connected
        migrate(home, url)
        with pytest.raises(KmsError, match="it was moved to another database"):
            append(own)
    with closing(PostgresStore(url)) as there:
        migrate(home, "sqlite", database_url=url)
        with pytest.raises(KmsError, match="it was moved to another database"):
            append(there)
    assert content(url) == content(home / "kms.db")


def test_nobody_starts_during_a_move(home: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: list[Any] = []
    compare = moving.require_same

    def meanwhile(*arguments: Any) -> int:
        waiting.append(child(HOLDS, home, ""))
        waiting.append(child(HOLDS, home.with_name("other"), url))
        time.sleep(1.0)
        assert not any(process.poll() for process in waiting)
        return compare(*arguments)

    monkeypatch.setattr(moving, "require_same", meanwhile)
    migrate(home, url)
    late, there = (process.communicate()[0] for process in waiting)
    assert "were moved to" in late
    assert there == "ready\n" or "root key" in there, there


def test_a_target_that_holds_something_is_left_alone(home: Path, url: str, tmp_path: Path) -> None:
    with kmscore.open_kms(tmp_path / "other", ticker=False, pkcs11_module="none", database_url=url) as kms:
        kms.create_key()
    before = content(url)
    assert "not empty, and not a copy" in refused(home, url)
    assert content(url) == before
    usable(home)
    shutil.copy(home / "kms.db", tmp_path / "kms.db")
    assert "not empty, and not a copy" in refused(home, "sqlite", database_url=url)
    assert content(home / "kms.db") == content(tmp_path / "kms.db")


def test_one_row_of_a_first_start_makes_a_target_not_empty(home: Path, url: str) -> None:
    with closing(PostgresStore(url)) as store:
        store.prepare()
    change(url, "INSERT INTO facts VALUES ('instance_id', 'x')")
    assert "not empty" in refused(home, url)


def test_another_schema_is_not_moved(home: Path, url: str) -> None:
    change(home / "kms.db", "PRAGMA user_version = 1")
    assert "open it once first" in refused(home, url)
    change(home / "kms.db", "PRAGMA user_version = 99")
    assert "newer" in refused(home, url)
    assert rows(url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]


def test_where_there_is_nothing_to_move(tmp_path: Path, home: Path, url: str) -> None:
    assert "no home" in refused(tmp_path / "none", url)
    assert not (tmp_path / "none").exists()
    (tmp_path / "empty").mkdir()
    assert "nothing to move" in refused(tmp_path / "empty", url)
    assert "nothing to move" in refused(home, "sqlite", database_url=url)
    assert "KMS_DATABASE_URL" in refused(home, "postgresql")
    assert "postgresql, sqlite" in refused(home, "mysql://user:hidden@host/name")
    assert "hidden" not in refused(home, "mysql://user:hidden@host/name")
    wrong = url.replace("kms:", "kms:hidden")
    assert "hidden" not in refused(home, wrong)
    usable(home)


def test_a_new_database_beside_a_home_that_has_keys_is_no_first_start(home: Path, url: str) -> None:
    assert "kms migrate --to postgresql" in closed(home, url)
    migrate(home, "postgresql", database_url=url)  # nothing was left in the way by that
    usable(home, url)


@pytest.mark.parametrize("to", ["postgresql", "sqlite"])
@pytest.mark.parametrize(
    ("what", "postgres", "sqlite", "named"),
    [
        (
            "state",
            "set_byte(state, 5, get_byte(state, 5) # 1)",
            "CAST(substr(state, 1, 5) || 'ÿ' || substr(state, 7) AS BLOB)",
            "position 3",
        ),
        ("stream_prev", "sha256('x')", "zeroblob(32)", "position 3"),
        ("log_hash", "sha256('x')", "zeroblob(32)", "position 3"),
        ("topic", "topic || ' '", "topic || ' '", "position 3"),
        ("originator_version", "originator_version + 7", "originator_version + 7", "damaged"),
    ],
)
def test_a_damaged_event_is_found_and_nothing_is_moved(
    home: Path, url: str, to: str, what: str, postgres: str, sqlite: str, named: str
) -> None:
    options = {}
    source: str | Path = home / "kms.db"
    if to == "sqlite":
        migrate(home, url)
        source, options["database_url"] = url, url
    before = {path.name for path in home.glob("kms.db*")}
    change(
        source,
        f"UPDATE stored_events SET {what} = {postgres} WHERE position = 3",
        f"UPDATE stored_events SET {what} = {sqlite} WHERE position = 3",
    )
    message = refused(home, url if to == "postgresql" else to, **options)
    assert "damaged" in message and named in message, message
    assert {path.name for path in home.glob("kms.db*")} == before
    if to == "postgresql":
        with closing(PostgresStore(url)) as store, store.reading() as cursor:
            assert transfer.is_empty(cursor)
    assert not marked(source)


def marked(url_or_path: str | Path) -> bool:
    store: Any = PostgresStore(url_or_path) if isinstance(url_or_path, str) else SqliteStore(url_or_path)
    with closing(store), store.reading() as cursor:
        return moving.moved_to(cursor) is not None


def test_a_missing_end_is_found(home: Path, url: str) -> None:
    change(home / "kms.db", "DELETE FROM stored_events WHERE position = (SELECT position FROM head)")
    assert "its head says otherwise" in refused(home, url)


def test_a_copy_that_is_not_the_same_is_found(home: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that does not arrive, of every table that has any."""
    change(home / "kms.db", "DELETE FROM aliases")  # a key without its row would be refused by them first
    fill = PostgresStore.fill
    for table in [table for table, found in content(home / "kms.db").items() if isinstance(found, list) and found]:
        with monkeypatch.context() as patch:
            patch.setattr(
                PostgresStore, "fill", lambda self, c, name, columns, all_, lost=table: fill(self, c, name, columns, all_[name == lost :])
            )
            message = refused(home, url)
        assert f": {table}, from " in message, message
        with closing(PostgresStore(url)) as store, store.reading() as cursor:
            assert transfer.is_empty(cursor)
    assert not marked(home / "kms.db")


def test_a_row_that_changed_on_the_way_is_named_and_not_shown(home: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fill = PostgresStore.fill

    def one_byte(self: PostgresStore, c: Any, name: str, columns: Any, all_: Any) -> None:
        if name == "software_material":
            all_ = [(row[0], row[1][:-1] + bytes([row[1][-1] ^ 1])) for row in all_]
        fill(self, c, name, columns, all_)

    monkeypatch.setattr(PostgresStore, "fill", one_byte)
    (material, wrapped), *_ = content(home / "kms.db")["software_material"]
    message = refused(home, url)
    assert f"software_material, from material_id {material.hex()}" in message
    assert wrapped.hex()[:16] not in message


def test_numbers_that_would_not_go_on_are_found(home: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change(home / "kms.db", "UPDATE sqlite_sequence SET seq = 77 WHERE name = 'keys'")
    filled = PostgresStore.filled
    monkeypatch.setattr(PostgresStore, "filled", lambda self, c, table, column, last: filled(self, c, table, column, min(last, 1)))
    assert "would go on after number" in refused(home, url)


def test_a_database_of_another_program_in_the_way_of_the_rename(home: Path, url: str) -> None:
    migrate(home, url)
    with closing(sqlite3.connect(home / "kms.db")) as link:
        link.execute("SELECT count(*) FROM facts").fetchone()
        assert "another program" in refused(home, "sqlite", database_url=url)
    usable(home, url)
    migrate(home, "sqlite", database_url=url)
    usable(home)


# --- kills -----------------------------------------------------------------------------------------------------------------------------

# Killed when the named function is called for the n-th time.
KILLED = """
import os, signal, sys, kmscore
from kmscore.store import moving, postgres, sqlite, transfer
home, to, url, where, times = sys.argv[1:]
transfer.PAGE_ROWS = 50
owner, name = {
    "prepare": (sqlite.SqliteStore if to == "sqlite" else postgres.PostgresStore, "prepare"),
    "fill": (sqlite.SqliteStore if to == "sqlite" else postgres.PostgresStore, "fill"),
    "compare": (moving, "require_same"),
    "check": (moving, "require_whole"),
    "link": (os, "link"),
    "rename": (os, "rename"),
    "mark": (moving, "mark_as_moved"),
    "end": (moving, "Moved"),
}[where]
usual, left = getattr(owner, name), int(times)

def killed(*arguments, **more):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return usual(*arguments, **more)

setattr(owner, name, killed)
kmscore.migrate(home, to=url if to == "postgresql" else to, pkcs11_module="none", database_url=url)
print("done")
"""
POINTS = [("fill", 5), ("mark", 1)]
MORE = [("prepare", 1), ("fill", 1), ("fill", 12), ("compare", 1), ("check", 1), ("end", 1)]
SLOW = [pytest.param(point, marks=pytest.mark.slow) for point in MORE]


@pytest.mark.parametrize("point", [*POINTS, *SLOW])
def test_a_kill_on_the_way_there(home: Path, url: str, point: tuple[str, int]) -> None:
    synthetic(home / "kms.db", 60)
    raw = content(home / "kms.db")
    kill(home, "postgresql", url, point)
    with closing(PostgresStore(url)) as store, store.reading() as cursor:
        there = bool(store.schema_version()) and not transfer.is_empty(cursor)
    assert there == (point[0] in ("mark", "end"))
    assert content(home / "kms.db") == raw
    moved = migrate(home, url)
    assert (moved.events, moved.already) == (raw["head"][0][1], there)
    assert content(url) == raw
    closed(home)
    usable(home, url)


@pytest.mark.parametrize(
    "point",
    [("rename", 1), *POINTS[1:], pytest.param(POINTS[0], marks=pytest.mark.slow), *SLOW, pytest.param(("link", 1), marks=pytest.mark.slow)],
)
def test_a_kill_on_the_way_back(home: Path, url: str, point: tuple[str, int]) -> None:
    synthetic(home / "kms.db", 60)
    migrate(home, url)
    usable(home, url)
    raw = content(url)
    kill(home, "sqlite", url, point)
    assert content(url) == raw
    in_place = point[0] in ("mark", "end")
    if in_place:
        assert content(home / "kms.db") == raw
    else:
        closed(home)  # the old one, marked
    moved = migrate(home, "sqlite", database_url=url)
    assert (moved.events, moved.already) == (raw["head"][0][1], in_place)
    assert content(home / "kms.db") == raw
    assert not list(home.glob("kms.db.incoming*"))
    closed(home, url)
    usable(home)


def kill(home: Path, to: str, url: str, point: tuple[str, int]) -> None:
    process = child(KILLED, home, to, url, *point)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, told


def test_a_mark_that_fails_is_made_by_the_next_run(home: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(moving, "mark_as_moved", lambda *_: (_ for _ in ()).throw(SetupError("injected")))
        assert refused(home, url) == "injected"
    assert migrate(home, url).already
    closed(home)
    usable(home, url)


def test_a_source_that_went_on_after_a_failed_mark_is_not_taken_for_moved(home: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when no event tells of it: a count of uses."""
    with monkeypatch.context() as patch:
        patch.setattr(moving, "mark_as_moved", lambda *_: (_ for _ in ()).throw(SetupError("injected")))
        refused(home, url)
    change(home / "kms.db", "INSERT INTO version_uses VALUES ('v', 1)")
    assert "not a copy" in refused(home, url)
    usable(home)


# --- size ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fifty_thousand_events_in_bounded_time_and_memory(home: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = """
import resource, sys, time, kmscore
began = time.monotonic()
more = {"database_url": sys.argv[3]} if len(sys.argv) > 3 else {}
moved = kmscore.migrate(sys.argv[1], to=sys.argv[2], pkcs11_module="none", **more)
print(moved.events, time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""

    def run(*arguments: object) -> tuple[int, float, float]:
        told, _ = child(script, home, *arguments).communicate(timeout=240)
        events, seconds, kib = told.split()
        return int(events), float(seconds), int(kib) / 1024

    synthetic(home / "kms.db", 250)
    small = {"there": run(url), "back": run("sqlite", url)}
    change(url, "DROP SCHEMA public CASCADE")
    change(url, "CREATE SCHEMA public")
    synthetic(home / "kms.db", 12_500, first=250)
    large = {"there": run(url), "back": run("sqlite", url)}
    usable(home)
    for way in ("there", "back"):
        events, seconds, mib = large[way]
        with capsys.disabled():
            print(
                f"\n{way}: {events} events in {seconds:.1f} s, {events / seconds:.0f}/s, {mib:.0f} MiB ({small[way][2]:.0f} for {small[way][0]})"
            )
        assert events > 50_000
        assert seconds < 60
        assert mib < small[way][2] + 40
