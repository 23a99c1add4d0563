"""Homes with as many keys as a benchmark wants, made in minutes: a few genuine keys as templates, and copies of their events and rows.

A copy has ids, times and material of its own; its events load, its material opens, the hash chain is right (`check` looks). The rows of
PostgreSQL are those of the SQLite home of the same size. Homes stay under build/scale/ until the schema changes; delete them at will.

    python -m benchmarks.filled 100000          # makes that home, and says what it took
"""

from __future__ import annotations

import random
import re
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import kmscore
from kmscore.custody import _p11
from kmscore.custody.software import SoftwareKeeper, load_or_create_root_file
from kmscore.domain.chain import GENESIS, log_hash, stream_hash
from kmscore.store import readmodel, schema
from kmscore.store.keystore import KeyStore
from kmscore.store.readmodel import micros
from kmscore.store.recorder import ChainedRecorder
from kmscore.store.sqlite import SqliteStore

BUILD = Path(__file__).resolve().parent.parent / "build" / "scale"
ROTATION_DAYS, DELETION_DAYS = 365, 366
END = datetime(2030, 1, 1, tzinfo=UTC)  # the last key is made then, the first one a year before: from now on one after the other is due
BEGIN = END - timedelta(days=ROTATION_DAYS)
BATCH = 5_000
WITH_ALIAS, DISABLED, DOOMED = 4, 20, 100  # one key in so many
TABLES = ("keys", "aliases", "tags", "versions", "materials", "due_work", "software_material")
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


def sqlite_home(count: int) -> Path:
    """A home with `count` keys on SQLite, made when there is none."""
    home = BUILD / f"schema{schema.SCHEMA_VERSION}-{count}"
    if not home.exists():
        fresh = home.with_name(f"{home.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.parent.mkdir(parents=True, exist_ok=True)
        fill(fresh, count)
        check(fresh)
        fresh.rename(home)
    return home


# --- filling ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Template:
    """A genuine key: its events and rows, in which `old` names what differs from key to key."""

    events: list[tuple[str, int, str, list[bytes]]]
    rows: dict[str, list[tuple[Any, ...]]]
    old: dict[str, Any]


def fill(home: Path, count: int) -> None:
    made = _genuine(home)
    seal = _sealer(home)
    with closing(sqlite3.connect(home / "kms.db", isolation_level=None)) as db:
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -1500000", "locking_mode = EXCLUSIVE"):
            db.execute(f"PRAGMA {pragma}").fetchall()
        templates = {name: _template(db, key_id) for name, key_id in made.items()}
        inserts = {table: _insert(db, table) for table in TABLES}
        position, log_prev = db.execute("SELECT position, log_hash FROM head").fetchone()
        draw = random.Random(count)
        step = timedelta(days=ROTATION_DAYS) / count
        for first in range(len(made), count, BATCH):
            events: list[tuple[Any, ...]] = []
            rows: dict[str, list[tuple[Any, ...]]] = {table: [] for table in TABLES}
            for number in range(first, min(first + BATCH, count)):
                template = templates[_kind(number)]
                new, tokens = _copy_of(template, draw, BEGIN + step * number, number, seal)
                heads: dict[str, bytes] = {}
                for stream, version, topic, pieces in template.events:
                    name = new[stream]
                    state = b"".join([tokens.get(piece, piece) for piece in pieces])
                    stream_prev = heads.get(name, GENESIS)
                    position += 1
                    own = heads[name] = stream_hash(stream_prev, name, version, topic, state)
                    log_next = log_hash(log_prev, position, own)
                    events.append((position, name, version, topic, state, stream_prev, own, log_prev, log_next))
                    log_prev = log_next
                for table, found in template.rows.items():
                    rows[table] += [tuple([new.get(value, value) for value in row]) for row in found]
            db.execute("BEGIN")
            db.executemany("INSERT INTO stored_events VALUES (?,?,?,?,?,?,?,?,?)", events)
            for table in TABLES:
                db.executemany(inserts[table], _placed(table, rows[table]))
            db.execute("COMMIT")
        db.execute("UPDATE head SET position = ?, log_hash = ?", (position, log_prev))
        for statement in getattr(schema, "COUNT_AGAIN", ()):
            db.execute(statement)


def _genuine(home: Path) -> dict[str, str]:
    """The keys that are copied: enabled with an alias, enabled, disabled, waiting for their deletion."""
    tags = {"team": "payments", "environment": "production"}
    made = {}
    for name in ("aliased", "plain", "disabled", "doomed"):  # each in a home that is opened for it: its times are told apart from no other
        with kmscore.open_kms(home, pkcs11_module="none", database_url="", ticker=False, clock=kmscore.FixedClock(BEGIN)) as kms:
            key_id = kms.create_key(enable_automatic_rotation=True, rotation_interval=f"{ROTATION_DAYS}d", tags=tags).key_id
            made[name] = key_id
            if name == "aliased":
                kms.create_alias(key_id, alias_name="alias/template")
            if name == "disabled":
                kms.disable_key(key_id)
            if name == "doomed":
                kms.schedule_key_deletion(key_id, pending_window_in_days=DELETION_DAYS)
    return made


def _kind(number: int) -> str:
    if number % DOOMED == 1:
        return "doomed"
    if number % DISABLED == 2:
        return "disabled"
    return "aliased" if number % WITH_ALIAS == 0 else "plain"


def _template(db: sqlite3.Connection, key_id: str) -> Template:
    def all_of(sql: str) -> list[tuple[Any, ...]]:
        return db.execute(sql, (key_id,)).fetchall()

    material: bytes = all_of("SELECT material_id FROM materials WHERE key_id = ?")[0][0]
    alias = next((row[0] for row in all_of("SELECT name FROM aliases WHERE key_id = ?")), "")
    stored = db.execute(
        "SELECT originator_id, originator_version, topic, state FROM stored_events WHERE originator_id IN (?, ?) ORDER BY position",
        (key_id, alias),
    ).fetchall()
    commands = sorted({command for row in stored for command in re.findall(rb'"command_id":"([0-9a-f]+)"', row[3])})
    old = {
        "key": key_id,
        "alias": alias,
        "version": all_of("SELECT version_id FROM versions WHERE key_id = ?")[0][0],
        "material": material,
        "commands": commands,
        "wrapped": db.execute("SELECT wrapped FROM software_material WHERE material_id = ?", (material,)).fetchone()[0],
    }
    tokens = [old["key"].encode(), old["version"].encode(), material.hex().encode(), *commands, _iso(BEGIN), _iso(_delete_at(BEGIN))]
    cut = re.compile(b"(" + b"|".join(map(re.escape, tokens)) + b")")
    events = [(stream, version, topic, cut.split(state)) for stream, version, topic, state in stored]
    rows = {}
    for table in TABLES:
        by = "material_id = (SELECT material_id FROM materials WHERE key_id = ?)" if table == "software_material" else "key_id = ?"
        rows[table] = all_of(f"SELECT {', '.join(_columns(db, table))} FROM {table} WHERE {by}")
    return Template(events, rows, old)


def _copy_of(template: Template, draw: random.Random, at: datetime, number: int, seal: Any) -> tuple[dict[Any, Any], dict[bytes, bytes]]:
    """What stands for what: of values in rows, of pieces of events."""
    at = at.replace(microsecond=0)
    old = template.old
    key_id = "key-" + "".join(draw.choices(ALPHABET, k=22))
    version = draw.getrandbits(128)
    digits = f"{version:032x}"
    version_id = f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-8{digits[17:20]}-{digits[20:]}"
    material = draw.randbytes(16)
    new = {
        old["key"]: key_id,
        old["alias"]: f"alias/application-{number:07}",
        old["version"]: version_id,
        old["material"]: material,
        old["wrapped"]: seal(material),
        micros(BEGIN): micros(at),
        micros(_rotate_at(BEGIN)): micros(_rotate_at(at)),
        micros(_delete_at(BEGIN)): micros(_delete_at(at)),
    }
    if not old["alias"]:
        del new[""]
    tokens = {
        old["key"].encode(): key_id.encode(),
        old["version"].encode(): version_id.encode(),
        old["material"].hex().encode(): material.hex().encode(),
        _iso(BEGIN): _iso(at),
        _iso(_delete_at(BEGIN)): _iso(_delete_at(at)),
    }
    for command in old["commands"]:
        tokens[command] = f"{draw.getrandbits(64):016x}".encode()
    return new, tokens


def _sealer(home: Path) -> Any:
    root = load_or_create_root_file(home / "root.key", may_create=False)
    keeper = SoftwareKeeper(None, root)  # type: ignore[arg-type]  # nothing is kept by it

    def seal(material_id: bytes) -> bytes:
        secret = _p11.Secret.random(32)
        try:
            return keeper._seal(kmscore.custody.port.MaterialRef(material_id, None, None, None), secret)  # type: ignore[arg-type]
        finally:
            secret.close()

    return seal


def _columns(db: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in db.execute(f"PRAGMA table_info({table})") if row[1] != "seq"]


def _insert(db: sqlite3.Connection, table: str) -> str:
    columns = _columns(db, table)
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({','.join('?' * len(columns))})"


def _placed(table: str, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Where due work has a shard and a spread, they follow from the key's id."""
    spot = getattr(readmodel, "spot", None)
    if table != "due_work" or spot is None:
        return rows
    return [(*row[:3], *spot(row[1])) for row in rows]


def _iso(instant: datetime) -> bytes:
    return instant.isoformat().encode()


def _rotate_at(made: datetime) -> datetime:
    return made + timedelta(days=ROTATION_DAYS)


def _delete_at(made: datetime) -> datetime:
    return made + timedelta(days=DELETION_DAYS)


# --- what was filled ---------------------------------------------------------------------------------------------------------------


def check(home: Path, sample: int = 200) -> None:
    """The whole chain; of some keys that their events load and give the rows that are there, and that their material opens."""
    with closing(sqlite3.connect(home / "kms.db")) as db:
        streams: dict[str, bytes] = {}
        log, expected = GENESIS, 0
        for row in db.execute("SELECT * FROM stored_events ORDER BY position"):
            position, stream, version, topic, state, stream_prev, own, log_prev, chained = row
            expected += 1
            assert (position, stream_prev, log_prev) == (expected, streams.get(stream, GENESIS), log)
            assert own == stream_hash(stream_prev, stream, version, topic, state) and chained == log_hash(log, position, own)
            streams[stream], log = own, chained
        assert db.execute("SELECT position, log_hash FROM head").fetchone() == (expected, log)
        streams.clear()
        ids = [row[0] for row in db.execute("SELECT key_id FROM keys WHERE state = 'Enabled' ORDER BY key_id LIMIT ?", (sample,))]
        ids += [row[0] for row in db.execute("SELECT key_id FROM keys WHERE state <> 'Enabled' ORDER BY key_id LIMIT ?", (sample,))]
        _check_rows(home, db, ids)
    with kmscore.open_kms(home, pkcs11_module="none", database_url="", ticker=False, clock=kmscore.FixedClock(END)) as kms:
        for key_id in ids:
            if kms.describe_key(key_id).key_state == "Enabled":
                assert kms.decrypt(kms.encrypt(key_id, b"text").ciphertext_blob).plaintext == b"text"


def _check_rows(home: Path, db: sqlite3.Connection, ids: list[str]) -> None:
    tables = [table for table in TABLES if table not in ("software_material", "aliases")]
    with tempfile.TemporaryDirectory() as directory:
        stores = [SqliteStore(home / "kms.db"), SqliteStore(Path(directory) / "again.db")]
        try:
            stores[1].prepare()
            events = KeyStore(ChainedRecorder(stores[0]), "nobody")
            with stores[1].writing() as cursor:
                for key_id in ids:
                    key: Any = None
                    stream = list(events.events(key_id))
                    for event in stream:
                        key = event.mutate(key)
                    for sql, params in readmodel.statements(key, stream, "nobody"):
                        cursor.execute(sql, params)
            with closing(sqlite3.connect(Path(directory) / "again.db")) as again:
                for table in tables:
                    sql = f"SELECT {', '.join(_columns(db, table))} FROM {table} WHERE key_id = ? ORDER BY 1, 2"
                    for key_id in ids:
                        assert db.execute(sql, (key_id,)).fetchall() == again.execute(sql, (key_id,)).fetchall(), (table, key_id)
        finally:
            for store in stores:
                store.close()


@contextmanager
def copy_of_home(count: int, server: Any = None) -> Iterator[tuple[Path, str]]:
    """A home of that size to change at will, and the url of its database: on `server`, or empty for SQLite."""
    source, url = postgres_home(server, count) if server else (sqlite_home(count), "")
    home = source.with_name(f"{source.name}.copy")
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(source, home)
    name = url.rpartition("/")[2]
    if server:
        how = " STRATEGY FILE_COPY" if int(server.psql("SHOW server_version_num")) >= 150_000 else ""
        server.psql(f"DROP DATABASE IF EXISTS {name}_copy")
        server.psql(f"CREATE DATABASE {name}_copy TEMPLATE {name}{how}")
        url += "_copy"
    try:
        yield home, url
    finally:
        shutil.rmtree(home)
        if server:
            server.psql(f"DROP DATABASE IF EXISTS {name}_copy WITH (FORCE)")


# --- PostgreSQL --------------------------------------------------------------------------------------------------------------------


@contextmanager
def postgres_server(durable: bool = False) -> Iterator[Any]:
    """The server that keeps the filled databases, or (durable) one that keeps nothing. Raises ServerError where there is none."""
    from local_servers import Postgres

    BUILD.mkdir(parents=True, exist_ok=True)
    directory = BUILD / ("postgres-durable" if durable else "postgres")
    with Postgres(directory, durable=durable) as server:
        yield server


def postgres_home(server: Any, count: int) -> tuple[Path, str]:
    """A home beside a database with the rows of `sqlite_home(count)`, and the url of that database."""
    import psycopg

    from kmscore.store.postgres import PostgresStore

    source = sqlite_home(count)
    home = source.with_name(f"{source.name}-postgres")
    url = server.create_database(f"schema{schema.SCHEMA_VERSION}_{count}")
    if home.exists():
        return home, url
    store = PostgresStore(url)
    store.prepare()
    store.close()
    with closing(sqlite3.connect(source / "kms.db")) as db, psycopg.connect(url) as pg:
        names = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")]
        names.sort(key=lambda name: name == "aliases")  # after the keys that they refer to
        pg.execute(f"TRUNCATE {', '.join(names)}")
        for name in names:
            columns = ", ".join(row[1] for row in db.execute(f"PRAGMA table_info({name})"))
            with pg.cursor() as cursor, cursor.copy(f"COPY {name} ({columns}) FROM STDIN") as copy:
                for row in db.execute(f"SELECT {columns} FROM {name}"):
                    copy.write_row(row)
        for table, column in (("stored_events", "position"), ("keys", "seq")):
            pg.execute(f"SELECT setval(pg_get_serial_sequence('{table}', '{column}'), (SELECT max({column}) FROM {table}))")
    with psycopg.connect(url, autocommit=True) as pg:
        pg.execute("VACUUM ANALYZE")  # as autovacuum would have done by and by
    fresh = home.with_name(f"{home.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    for name in ("root.key", "credentials"):
        shutil.copy2(source / name, fresh / name)
    fresh.rename(home)
    return home, url


if __name__ == "__main__":
    began = time.monotonic()
    print(sqlite_home(int(sys.argv[1])), f"{time.monotonic() - began:.1f} s")
