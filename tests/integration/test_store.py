"""The event store on both databases: one transaction for events and rows, hashes, conflicts, ambiguous commits, durability, secure delete."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from eventsourcing.persistence import InterfaceError, OperationalError
from scheduler_helpers import older_due_work

from kmscore.domain.alias import Alias
from kmscore.domain.by import By
from kmscore.domain.chain import GENESIS, log_hash, stream_hash
from kmscore.domain.key import Key
from kmscore.domain.specs import KeySpec, KeyUsage, Origin, ProtectionLevel, Suite
from kmscore.domain.versions import Imported, NewKey, NewMaterial
from kmscore.errors import Conflict, KmsError, SetupError
from kmscore.store.datastore import Datastore
from kmscore.store.keystore import KeyStore, construct_mapper
from kmscore.store.material import AccessUses, Facts, Remains, SoftwareMaterial, Uses
from kmscore.store.postgres import PostgresStore
from kmscore.store.queries import Queries
from kmscore.store.recorder import ChainedRecorder
from kmscore.store.schema import BLOCK, COUNT_AGAIN
from kmscore.store.sqlite import SqliteStore

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def open_database(path: Path) -> SqliteStore:
    datastore = SqliteStore(path)
    try:
        datastore.prepare()
    except BaseException:
        datastore.close()
        raise
    return datastore


class Opened:
    def __init__(self, datastore: Datastore) -> None:
        self.datastore = datastore
        self.recorder = ChainedRecorder(self.datastore)
        self.store = KeyStore(self.recorder, "boot/1/1")
        self.queries = Queries(self.datastore)

    def rows(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        with self.datastore.reading() as cursor:
            cursor.execute(sql, params)
            return [tuple(bytes(value) if isinstance(value, memoryview) else value for value in row) for row in cursor.fetchall()]


class OpenedFile(Opened):
    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = open_database(path)
        super().__init__(self.file)


def open_postgres(url: str) -> PostgresStore:
    datastore = PostgresStore(url)
    with datastore.starting():
        datastore.prepare()
    return datastore


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opened]:
    """For what holds of both databases."""
    if request.param == "SQLite":
        opened = Opened(open_database(tmp_path / "kms.db"))
    else:
        opened = Opened(open_postgres(request.getfixturevalue("database")))
    yield opened
    opened.datastore.close()


@pytest.fixture
def on_file(tmp_path: Path) -> Iterator[OpenedFile]:
    """For what is about the file of a home."""
    opened = OpenedFile(tmp_path / "kms.db")
    yield opened
    opened.datastore.close()


commands = iter(range(1 << 30))


def by() -> By:
    return By(NOW, "1", f"command {next(commands)}")


def new_key(key_id: str, level: ProtectionLevel = ProtectionLevel.HSM) -> Key:
    new = NewKey(KeySpec.AES_256, KeyUsage.ENCRYPT_DECRYPT, Origin.KMS, level, creator="1", tags={"a": "b"})
    return Key.create(key_id, new, NewMaterial(f"version of {key_id}", os.urandom(16), Suite.XAES_256_GCM), by())


def active_key(store: KeyStore, key_id: str) -> Key:
    key = new_key(key_id)
    assert key.open_intent is not None
    key.material_ready(bytes.fromhex(key.open_intent.material_id), {}, by())
    store.append(key)
    return load(store, key_id)


def load(store: KeyStore, key_id: str) -> Key:
    key = store.key(key_id)
    assert key is not None
    return key


def test_the_file_is_private_and_durable(on_file: OpenedFile) -> None:
    active_key(on_file.store, "key-1")
    for suffix in ("", "-wal", "-shm"):
        mode = stat.S_IMODE(os.stat(f"{on_file.path}{suffix}").st_mode)
        assert mode == 0o600, suffix
    assert on_file.file.durability() == {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1, "foreign_keys": 1}


def test_an_intent_is_invisible_and_an_outcome_is_not(opened: Opened) -> None:
    key = new_key("key-1")
    opened.store.append(key)
    assert opened.queries.list_keys(NOW, {}, 10, 0) == ([], 0)
    assert [intent.key_id for intent in opened.queries.open_intents()] == ["key-1"]
    assert opened.queries.knows_material("HSM")
    assert not opened.queries.knows_material("SOFTWARE")
    key = load(opened.store, "key-1")
    assert key.open_intent is not None
    key.material_ready(bytes.fromhex(key.open_intent.material_id), {}, by())
    opened.store.append(key)
    assert opened.queries.list_keys(NOW, {}, 10, 0) == (["key-1"], 1)
    assert opened.queries.open_intents() == []
    assert opened.queries.key_of_version("version of key-1") == "key-1"


def test_two_writers_of_one_version_one_wins(opened: Opened) -> None:
    active_key(opened.store, "key-1")
    mine, theirs = load(opened.store, "key-1"), load(opened.store, "key-1")
    mine.disable(by())
    theirs.describe("other", by())
    opened.store.append(mine)
    with pytest.raises(Conflict):
        opened.store.append(theirs)
    assert load(opened.store, "key-1").description == ""


def test_a_refused_row_takes_the_events_back(opened: Opened) -> None:
    before = opened.queries.position()
    with pytest.raises(Conflict):  # the foreign key: no such key
        opened.store.append(Alias.bind(None, "alias/a", "key-none", by()))
    assert opened.queries.position() == before
    assert opened.store.alias("alias/a") is None


def test_a_key_is_not_destroyed_under_an_alias(opened: Opened) -> None:
    key = active_key(opened.store, "key-1")
    key.schedule_deletion(7, by())
    opened.store.append(Alias.bind(None, "alias/a", "key-1", by()))
    opened.store.append(key)
    later = By(datetime(2031, 1, 1, tzinfo=UTC), "1", "later")
    key = load(opened.store, "key-1")
    key.start_destruction(later)
    key.finish_removal(later)
    with pytest.raises(Conflict):
        opened.store.append(key)
    key, alias = load(opened.store, "key-1"), opened.store.alias("alias/a")
    assert alias is not None
    key.start_destruction(later)
    key.finish_removal(later)
    alias.delete(later)
    opened.store.append(key, alias)
    for table in ("keys", "aliases", "tags", "versions", "due_work", "open_intents"):
        assert opened.rows(f"SELECT * FROM {table}") == [], table
    assert opened.rows("SELECT state FROM materials") == [("destroyed",)]


def test_the_hashes_are_those_of_the_definition(opened: Opened) -> None:
    active_key(opened.store, "key-1")
    active_key(opened.store, "key-2")
    key = load(opened.store, "key-1")
    key.disable(by())
    key.enable(by())
    opened.store.append(key)
    rows = opened.rows("SELECT * FROM stored_events ORDER BY position")
    streams: dict[str, bytes] = {}
    log = GENESIS
    for expected, (position, stream, version, topic, state, stream_prev, own, log_prev, chained) in enumerate(rows, 1):
        assert position == expected
        assert stream_prev == streams.get(stream, GENESIS)
        assert own == stream_hash(stream_prev, stream, version, topic, state)
        assert log_prev == log
        assert chained == log_hash(log_prev, position, own)
        streams[stream], log = own, chained
    assert opened.rows("SELECT position, log_hash FROM head") == [(len(rows), log)]


def test_a_hash_as_a_figure() -> None:
    """Computed once, apart from this code, so that nobody changes the definition by changing both sides."""
    own = stream_hash(GENESIS, "key-1", 1, "KeyEnabled", b"{}")
    assert own.hex() == "a40bf8ede458aafb74e8c3dc7dc20451de334f2be991bee9d8b662b5936eee65"
    assert log_hash(GENESIS, 1, own).hex() == "9e80ba3a4d434382805dde60b047bd5b5b64f78fd707f631125ffe1b2dfd198a"


class Faulty(ChainedRecorder):
    """Fails around the commit, as a lost connection would: before it, or after it with the answer lost."""

    fault = ""

    def insert_events(self, stored_events: Any, **kwargs: Any) -> Any:
        fault, self.fault = self.fault, ""
        if fault == "before":
            raise OperationalError("disk I/O error")
        answer = super().insert_events(stored_events, **kwargs)
        if fault == "after":
            raise OperationalError("disk I/O error")
        return answer


def test_an_ambiguous_commit_is_settled_by_reading_again(opened: Opened) -> None:
    recorder = Faulty(opened.datastore)
    store = KeyStore(recorder, "boot/1/1")
    active_key(store, "key-1")
    key = load(store, "key-1")
    key.disable(by())
    recorder.fault = "after"
    store.append(key)  # it was stored: a success
    assert not load(store, "key-1").enabled
    key = load(store, "key-1")
    key.enable(by())
    recorder.fault = "before"
    with pytest.raises(KmsError) as failed:
        store.append(key)
    assert failed.value.code == "ServiceUnavailableTemporary"
    assert failed.value.retryable
    assert not load(store, "key-1").enabled


def test_a_writer_waits_for_another_and_does_not_fail(on_file: OpenedFile) -> None:
    with holding_the_write_lock(on_file.path, 0.3):
        active_key(on_file.store, "key-1")
    assert load(on_file.store, "key-1").enabled


@contextmanager
def holding_the_write_lock(path: Path, seconds: float) -> Iterator[None]:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(seconds, lambda: connection.execute("COMMIT"))
    timer.start()
    yield
    timer.join()
    connection.close()


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    datastore = open_database(tmp_path / "kms.db")
    datastore.close()
    with sqlite3.connect(tmp_path / "kms.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(SetupError, match="newer"):
        open_database(tmp_path / "kms.db")


def test_a_database_of_the_first_schema_is_brought_up_to_date(tmp_path: Path) -> None:
    opened = OpenedFile(tmp_path / "kms.db")
    active_key(opened.store, "key-1")
    opened.datastore.close()
    with sqlite3.connect(tmp_path / "kms.db") as connection:
        for column in ("ordinal", "primary_at", "expires_at", "held"):
            connection.execute(f"ALTER TABLE versions DROP COLUMN {column}")
        older_due_work(connection)
        connection.execute("PRAGMA user_version = 1")
    opened = OpenedFile(tmp_path / "kms.db")
    assert opened.rows("SELECT ordinal, primary_at, expires_at, held FROM versions") == [(1, 0, None, 1)]
    active_key(opened.store, "key-2")
    assert opened.queries.list_keys(NOW, {"KeyState": ["Enabled"]}, 10, 0) == (["key-1", "key-2"], 2)
    opened.datastore.close()
    OpenedFile(tmp_path / "kms.db").datastore.close()  # once is enough


def external_key(store: KeyStore, expires_at: datetime | None, primary_at: datetime = NOW) -> Key:
    new = NewKey(KeySpec.AES_256, KeyUsage.ENCRYPT_DECRYPT, Origin.EXTERNAL, ProtectionLevel.HSM, creator="1")
    store.append(Key.create("key-x", new, None, by()))
    key = load(store, "key-x")
    key.want_material(NewMaterial("version", os.urandom(16), Suite.XAES_256_GCM, "import/key-x/o"), by())
    assert key.open_intent is not None
    key.material_imported(key.open_intent, Imported({}, "d1", expires_at, primary_at), by())
    store.append(key)
    return load(store, "key-x")


def test_lists_know_that_material_has_expired_before_a_scheduler_says_so(opened: Opened) -> None:
    end = NOW + timedelta(days=1)
    external_key(opened.store, end)
    for now, state in ((NOW, "Enabled"), (end - timedelta(microseconds=1), "Enabled"), (end, "PendingImport")):
        for wanted in ("Enabled", "PendingImport"):
            assert (opened.queries.list_keys(now, {"KeyState": [wanted]}, 10, 0)[1] == 1) is (wanted == state)
    assert [row[2] for row in opened.queries.due(end, 10)] == ["expire"]
    assert opened.queries.due(NOW, 10) == []


def test_a_removal_of_material_is_an_open_intent_until_it_is_done(opened: Opened) -> None:
    key = external_key(opened.store, None)
    key.delete_material(by())
    opened.store.append(key)
    assert [(intent.key_id, intent.kind) for intent in opened.queries.open_intents()] == [("key-x", "destruction")]
    assert opened.rows("SELECT state FROM materials") == [("active",)]
    key = load(opened.store, "key-x")
    key.finish_removal(by())
    opened.store.append(key)
    assert opened.queries.open_intents() == []
    assert opened.rows("SELECT state FROM materials") == [("destroyed",)]
    assert opened.queries.list_keys(NOW, {"KeyState": ["PendingImport"]}, 10, 0) == (["key-x"], 1)


def test_import_offers_are_due_and_in_no_list(opened: Opened) -> None:
    new = NewKey(KeySpec.RSA_2048, KeyUsage.UNWRAP, Origin.KMS, ProtectionLevel.HSM, creator="kmscore", system=True)
    end = NOW + timedelta(hours=24)
    for stream in ("import/key-1/a", "import/key-1/b", "import/key-10/c"):
        opened.store.append(Key.create(stream, new, NewMaterial(stream, os.urandom(16), Suite.NONE), by(), end))
    assert [row[0] for row in opened.queries.live_imports("key-1")] == ["import/key-1/a", "import/key-1/b"]
    assert opened.queries.list_keys(NOW, {}, 10, 0) == ([], 0)
    assert [row[1] for row in opened.queries.due(end, 10)] == ["import/key-1/a", "import/key-1/b", "import/key-10/c"]


def test_removed_material_leaves_no_byte_in_any_file(on_file: OpenedFile) -> None:
    table = SoftwareMaterial(on_file.datastore)
    canary = b"canary-" + os.urandom(200)
    for index in range(50):
        table.put(bytes([index]) * 16, canary if index == 7 else os.urandom(207))
    files = [Path(f"{on_file.path}{suffix}") for suffix in ("", "-wal")]
    assert any(canary in file.read_bytes() for file in files)
    table.remove(bytes([7]) * 16)
    assert not any(canary in file.read_bytes() for file in files)
    assert table.get(bytes([7]) * 16) is None
    table.remove(bytes([7]) * 16)  # absent is success
    assert len(list(table.ids())) == 49


def test_a_reader_delays_a_removal_and_nobody_else(on_file: OpenedFile) -> None:
    table = SoftwareMaterial(on_file.datastore)
    table.put(b"1" * 16, b"wrapped")
    with sqlite3.connect(on_file.path) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM software_material").fetchone()
        with pytest.raises(KmsError, match="log is being read"):
            table.remove(b"1" * 16)
        active_key(on_file.store, "key-1")  # a writer is not kept waiting
        reader.execute("COMMIT")
    reader.close()
    table.remove(b"1" * 16)


def test_a_connection_that_fails_once_does_not_block_writers_for_ever(on_file: OpenedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = on_file.file.pool
    pool._pool.clear()  # the next writer has to connect
    create = type(pool)._create_connection
    monkeypatch.setattr(type(pool), "_create_connection", lambda self: (_ for _ in ()).throw(InterfaceError("no file descriptors")))
    with pytest.raises(KmsError) as failed:
        active_key(on_file.store, "key-1")
    assert failed.value.code == "ServiceUnavailableTemporary"
    monkeypatch.setattr(type(pool), "_create_connection", create)
    active_key(on_file.store, "key-2")


def test_facts_are_set_once(opened: Opened) -> None:
    facts = Facts(opened.datastore)
    assert facts.get("instance_id") is None
    assert facts.set_once("instance_id", "a") == "a"
    assert facts.set_once("instance_id", "b") == "a"


def test_uses_are_reserved_in_blocks(opened: Opened) -> None:
    uses = Uses(opened.datastore)
    assert [uses.reserve("v", 100), uses.reserve("v", 100), uses.reserve("w", 5)] == [100, 200, 5]


def test_remains_are_there_until_they_are_cleared(opened: Opened) -> None:
    key = new_key("key-1")
    opened.store.append(key)
    key = load(opened.store, "key-1")
    assert key.open_intent is not None
    material_id = bytes.fromhex(key.open_intent.material_id)
    key.material_abandoned(material_id, by())
    opened.store.append(key)
    remains = Remains(opened.datastore)
    assert remains.all() == [(material_id, "HSM")]
    remains.cleared(material_id)
    remains.cleared(material_id)  # absent is success
    assert remains.all() == []


def test_wrapped_material_is_put_once_and_removed(opened: Opened) -> None:
    table = SoftwareMaterial(opened.datastore)
    every_byte = bytes(range(256))
    table.put(b"\0" * 16, every_byte)
    assert table.get(b"\0" * 16) == every_byte
    with pytest.raises(KmsError):
        table.put(b"\0" * 16, b"other")
    assert (list(table.ids()), table.get(b"\0" * 16)) == ([b"\0" * 16], every_byte)
    table.remove(b"\0" * 16)
    table.remove(b"\0" * 16)
    assert (list(table.ids()), table.get(b"\0" * 16)) == ([], None)


def test_the_last_use_of_an_access_key_only_goes_forward(opened: Opened) -> None:
    with opened.datastore.writing() as cursor:
        cursor.execute("INSERT INTO access_keys VALUES ('known', 'user', 1, 0)")
    uses = AccessUses(opened.datastore)
    for at in (5, 3, 7):
        uses.record({"unknown": at, "known": at})
    assert opened.rows("SELECT * FROM access_uses") == [("known", 7)]


# In order of their code points, not of their UTF-16 units, and not of any language.
ODD = sorted(
    ["", " ", "%s", "''; --", "?", "A", "B", "\\", "a", "a\u0301", "\xdf", "\xe1", "\u0130", "\u202e", "\ufeff", "\uffff", "\U0001f511"]
)


def test_any_text_is_kept_and_ordered_by_code_point(opened: Opened) -> None:
    key = active_key(opened.store, "key-1")
    key.describe("".join(reversed(ODD)) + "\0", by())
    opened.store.append(key)
    assert load(opened.store, "key-1").description == "".join(reversed(ODD)) + "\0"
    with opened.datastore.writing() as cursor:
        cursor.execute("DELETE FROM tags")
        for text in reversed(ODD):
            cursor.execute("INSERT INTO tags VALUES (?, ?, ?)", ("key-1", text, text))
    everything = [("key-1", text, text) for text in ODD]
    assert opened.queries.list_tags(NOW, [], {}, ("", ""), 100) == everything
    assert opened.queries.list_tags(NOW, [], {}, ("key-1", "B"), 2) == [("key-1", "\\", "\\"), ("key-1", "a", "a")]
    for text in ODD:
        assert opened.queries.list_tags(NOW, [], {text: text}, ("", ""), 100) == everything, text
        assert opened.queries.list_keys(NOW, {"TagKey": [text], "TagValue": [text]}, 10, 0) == (["key-1"], 1), text


def test_text_with_a_nul_is_found_nowhere_and_fails_nowhere(opened: Opened) -> None:
    active_key(opened.store, "key-1")
    queries = opened.queries
    for text in ("\0", "a\0", "key-1\0", "\0key-1"):
        assert opened.store.key(text) is None
        assert queries.key_of_alias(text) is queries.key_of_version(text) is None
        assert queries.access_key(text) is None
        for name in ("keyId", "TagKey", "TagValue", "AliasName", "KeyState"):
            assert queries.list_keys(NOW, {name: [text]}, 10, 0) == ([], 0)
        assert queries.list_tags(NOW, [text], {text: text}, ("", text), 10) == []


def test_who_asks_whether_a_commit_happened_waits_for_one_under_way(opened: Opened) -> None:
    """Its answer would be lost, and with it the knowledge: RELIABILITY 1.3 fact 6."""
    active_key(opened.store, "key-1")
    key = load(opened.store, "key-1")
    key.disable(by())
    (event,) = key.collect_events()
    stored = construct_mapper().to_stored_event(event)
    version = stored.originator_version
    held, asked = threading.Event(), threading.Event()

    def append_slowly() -> None:
        with opened.datastore.transaction(commit=True) as cursor:
            opened.recorder._insert(cursor, [stored], ())
            held.set()
            assert asked.wait(5)
            time.sleep(0.2)

    writer = threading.Thread(target=append_slowly)
    writer.start()
    assert held.wait(5)
    assert not opened.rows("SELECT 1 FROM stored_events WHERE originator_version = ?", version)
    asked.set()
    assert opened.recorder.stored("key-1", version) == stored
    assert opened.recorder.stored("key-1", version + 1) is None
    writer.join()


def test_positions_are_never_given_out_twice(opened: Opened) -> None:
    active_key(opened.store, "key-1")
    highest = opened.queries.position()
    with opened.datastore.writing() as cursor:
        cursor.execute("DELETE FROM stored_events WHERE position = ?", (highest,))
    opened.store.append(new_key("key-2"))
    assert [row[0] for row in opened.rows("SELECT position FROM stored_events WHERE originator_id = 'key-2'")] == [highest + 1, highest + 2]


def test_the_read_side_pages_and_filters(opened: Opened) -> None:
    for number in range(25):
        active_key(opened.store, f"key-{number:02}")
    key = load(opened.store, "key-03")
    key.disable(by())
    key.tag({"team": "x"}, by())
    opened.store.append(key)
    opened.store.append(Alias.bind(None, "alias/three", "key-03", by()))
    queries = opened.queries
    ids, total = queries.list_keys(NOW, {}, 10, 20)
    assert (ids, total) == ([f"key-{n:02}" for n in range(20, 25)], 25)
    assert queries.list_keys(NOW, {}, 10, 100) == ([], 25)
    for filters in (
        {"KeyState": ["Disabled"]},
        {"TagKey": ["team"]},
        {"TagValue": ["x"], "KeyState": ["Disabled", "Enabled"]},
        {"AliasName": ["alias/three"]},
        {"keyId": ["key-03"]},
    ):
        assert queries.list_keys(NOW, filters, 10, 0) == (["key-03"], 1), filters
    assert queries.list_keys(NOW, {"KeyState": ["Disabled"], "TagKey": ["a", "none"]}, 10, 0) == (["key-03"], 1)
    assert queries.list_keys(NOW, {"ProtectionLevel": ["SOFTWARE"]}, 10, 0) == ([], 0)
    with pytest.raises(KmsError, match="Filters"):
        queries.list_keys(NOW, {"Unknown": ["x"]}, 10, 0)


def test_due_rows_are_those_of_the_state(opened: Opened) -> None:
    active_key(opened.store, "key-1")
    later = datetime(2040, 1, 1, tzinfo=UTC)

    def due() -> list[str]:
        return [kind for _, _, kind in opened.queries.due(later, 10)]

    def step(decide: Any) -> None:
        key = load(opened.store, "key-1")
        decide(key)
        opened.store.append(key)

    assert due() == []
    assert opened.queries.next_due() is None
    step(lambda key: key.change_rotation(7 * 86400, by()))
    assert due() == ["rotate"]
    assert opened.queries.due(NOW, 10) == []
    step(lambda key: key.disable(by()))
    assert due() == []  # suspended: a million disabled keys cost a tick nothing
    step(lambda key: key.enable(by()))
    assert due() == ["rotate"]
    step(lambda key: key.schedule_deletion(7, by()))
    assert due() == ["delete"]
    step(lambda key: key.cancel_deletion(by()))
    assert due() == ["rotate"]


def test_a_store_that_cannot_be_read_says_so(on_file: OpenedFile) -> None:
    broken = SqliteStore(on_file.path.with_name("broken.db"))
    on_file.path.with_name("broken.db").write_bytes(b"this is no database " * 300)
    with pytest.raises(KmsError) as failed:
        Queries(broken).position()
    assert failed.value.code == "ServiceUnavailableTemporary"
    broken.close()


def test_materials_are_read_in_pages(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kmscore.store.queries.MATERIAL_PAGE", 3)
    monkeypatch.setattr("kmscore.store.material.PAGE", 3)
    table = SoftwareMaterial(opened.datastore)
    for count in range(8):
        assert len(opened.queries.material_states()) == len(list(opened.queries.materials())) == len(list(table.ids())) == count
        active_key(opened.store, f"key-{count}")
        table.put(os.urandom(16), b"wrapped")
    assert {(key_id, level, state) for key_id, level, state in opened.queries.material_states().values()} == {
        (f"key-{n}", "HSM", "active") for n in range(8)
    }
    for material_id, (key_id, _, state) in opened.queries.material_states().items():
        assert opened.queries.material(material_id) == (key_id, state)


def test_a_page_costs_the_same_wherever_it_is(on_file: OpenedFile) -> None:
    """Steps of SQLite's machine, at 20 blocks of keys: a scan of all would take a million."""
    number = 20 * BLOCK
    with on_file.datastore.writing() as cursor:
        row = "'Enabled', 'Aliyun_AES_256', 'ENCRYPT/DECRYPT', 'SOFTWARE', 'Aliyun_KMS', '1', ''"
        cursor.execute(
            f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {number})"
            f" INSERT INTO keys (key_id, visible, state, spec, usage, level, origin, creator, instance_id) SELECT 'key-' || i, 1, {row} FROM n"
        )
        cursor.execute("INSERT INTO aliases SELECT 'alias/' || key_id, key_id FROM keys")
        cursor.execute("INSERT INTO tags SELECT key_id, 'a', 'b' FROM keys")
        for statement in COUNT_AGAIN:
            cursor.execute(statement)
    queries, steps = on_file.queries, []

    def count() -> None:
        steps[-1] += 1

    genuine = on_file.datastore._transaction

    @contextmanager
    def counted(commit: bool) -> Iterator[Any]:
        with genuine(commit) as cursor:
            connection = cursor.sqlite_cursor.connection  # type: ignore[attr-defined]
            connection.set_progress_handler(count, 1)
            yield cursor
            connection.set_progress_handler(None, 0)

    on_file.datastore._transaction = counted  # type: ignore[method-assign, assignment]
    for read in (
        lambda: queries.list_keys(NOW, {}, 100, 0),
        lambda: queries.list_keys(NOW, {}, 100, number // 2 + BLOCK - 1),
        lambda: queries.list_keys(NOW, {}, 100, number - 1),
        lambda: queries.list_keys(NOW, {}, 100, number),
        lambda: queries.list_aliases(NOW, None, 100, 0),
        lambda: queries.list_aliases(NOW, "key-7", 100, 0),
        lambda: queries.list_tags(NOW, (), {}, ("key-5", ""), 100),
        lambda: queries.list_tags(NOW, ("key-7",), {}, ("", ""), 100),
        lambda: queries.count("keys"),
        lambda: queries.due(NOW, 100),
    ):
        steps.append(0)
        read()
    assert max(steps) < 15 * BLOCK, steps
