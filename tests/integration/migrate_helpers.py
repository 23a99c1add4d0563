"""A home with everything in it, what it says of itself, and databases to move it to."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import peers
import psycopg
from local_servers import Postgres

import kmscore
from kmscore import FixedClock
from kmscore.domain.by import By
from kmscore.domain.key import Key
from kmscore.domain.specs import KeySpec, KeyUsage, Origin, ProtectionLevel, Suite
from kmscore.domain.versions import NewKey, NewMaterial
from kmscore.engine.kms import Kms
from kmscore.store.keystore import KeyStore
from kmscore.store.postgres import PostgresStore
from kmscore.store.recorder import ChainedRecorder
from kmscore.store.sqlite import SqliteStore
from kmscore.store.transfer import pages, tables

ROOT = Path(__file__).resolve().parents[2]
START = datetime(2030, 1, 1, tzinfo=UTC)
CONTEXT = {"table": "orders"}


class Databases:
    """Of one server, each new."""

    def __init__(self, server: Postgres) -> None:
        self._server = server
        self._number = 0

    def __call__(self) -> str:
        self._number += 1
        return self._server.create_database(f"home_{self._number}")


def fill_home(home: Path, clock: FixedClock) -> dict[str, bytes]:
    """Answers blob -> plaintext, as hex -> bytes."""
    blobs: dict[str, bytes] = {}

    def sealed(kms: Kms, key: str) -> None:
        plaintext = os.urandom(20)
        blobs[kms.encrypt(key, plaintext, CONTEXT).ciphertext_blob.hex()] = plaintext

    with kmscore.open_kms(home, clock=clock, import_failure_seconds=0.001) as kms:
        doomed = [kms.create_key(protection_level=level).key_id for level in ("HSM", "SOFTWARE")]
        for number, level in enumerate(("HSM", "SOFTWARE")):
            key = kms.create_key(protection_level=level, description="Schlüssel ü \u4e2d\U0001f511").key_id
            sealed(kms, key)
            kms.rotate_key(key)
            sealed(kms, key)
            for name in (f"alias/a{number}", f"alias/a-{number}", f"alias/A{number}", f"alias/a_{number}"):  # in order of code points
                kms.create_alias(key, alias_name=name)
            kms.tag_resource(key, tags={"team": "one", "Team": "a/b", "te-am": "", "te_am": "x"})
            kms.update_rotation_policy(key, enable_automatic_rotation=True, rotation_interval="30d")
            disabled = kms.create_key(protection_level=level).key_id
            kms.disable_key(disabled)
            waiting = kms.create_key(protection_level=level).key_id
            kms.schedule_key_deletion(waiting, pending_window_in_days=300)
            own, empty = (kms.create_key(protection_level=level, origin="EXTERNAL").key_id for _ in range(2))
            kms.update_key_description(empty, description="waits for its material")
            offer = kms.get_parameters_for_import(own, wrapping_algorithm="RSAES_OAEP_SHA_1", wrapping_key_spec="RSA_2048")
            wrapped = peers.wrap(offer.public_key, "RSAES_OAEP_SHA_1", os.urandom(32))
            end = int((clock.now() + timedelta(days=100)).timestamp())
            kms.import_key_material(own, encrypted_key_material=wrapped, import_token=offer.import_token, key_material_expire_unix=end)
            sealed(kms, own)
        counted = kms.create_key(key_spec="Aliyun_AES_128").key_id
        sealed(kms, counted)
        for name in ("ann", "Bob"):
            kms.create_user(name)
            kms.create_access_key(name)
        kms.note_use(kms.list_access_keys()[0].access_key_id)
        kms.delete_alias(alias_name="alias/a1")
        last = kms.create_key().key_id  # the highest number of a key was given to one that is gone
        for key in (*doomed, last):
            kms.schedule_key_deletion(key, pending_window_in_days=7)
        clock.advance(timedelta(days=8))
        kms.run_due()
    return blobs


def said(kms: Kms) -> dict[str, Any]:
    """Everything that a home says of itself."""
    keys = [item.key_id for item in kms.list_keys(page_size=100).items]
    streams = [stream for (stream,) in rows_of(kms, "SELECT DISTINCT originator_id FROM stored_events ORDER BY originator_id")]
    return {
        "keys": keys,
        "described": [kms.describe_key(key) for key in keys],
        "versions": [kms.list_key_versions(key, page_size=100) for key in keys],
        "aliases": kms.list_aliases(page_size=100),
        "tags": [kms.list_resource_tags(key) for key in keys],
        "history": [kms.history(key) for key in streams if "/" not in key],
        "users": kms.list_users(),
        "access keys": kms.list_access_keys(),
        "secrets": [kms.credential(item.access_key_id).secret for item in kms.list_access_keys()],
        "position": kms._s.queries.position(),
        "open": kms._s.queries.open_intents(),
        "instances": kms.list_kms_instances(),
    }


def rows_of(kms: Kms, sql: str) -> list[Any]:
    return list(kms._s.queries._all(sql, []))


def open_all(kms: Kms, blobs: dict[str, bytes]) -> None:
    for blob, plaintext in blobs.items():
        assert kms.decrypt(bytes.fromhex(blob), CONTEXT).plaintext == plaintext


def content(url_or_path: str | Path) -> dict[str, Any]:
    """Every row of every table, and the next numbers, but for the mark."""
    store: Any = PostgresStore(url_or_path) if isinstance(url_or_path, str) else SqliteStore(url_or_path)
    with closing(store), store.reading() as cursor:
        found: dict[str, Any] = {}
        for table in tables():
            found[table.name] = [row for page in pages(cursor, table) for row in page if row[0] != "moved_to"]
            if table.numbered:
                found[f"last of {table.name}"] = store.last_number(cursor, table.name, table.numbered)
        return found


def synthetic(path: Path, keys: int, first: int = 0, batch: int = 200) -> None:
    """Adds keys without material to a database: each is four events, and rows in six tables."""
    with closing(SqliteStore(path)) as store:
        store.prepare()
        events = KeyStore(ChainedRecorder(store), "boot/1/1")
        for begin in range(first, first + keys, batch):
            events.append(*(synthetic_key(number) for number in range(begin, min(begin + batch, first + keys))))


def synthetic_key(number: int) -> Key:
    by = By(START, "1", f"command {number}")
    new = NewKey(KeySpec.AES_256, KeyUsage.ENCRYPT_DECRYPT, Origin.KMS, ProtectionLevel.SOFTWARE, creator="1", tags={"a": "b"})
    material = os.urandom(16)
    key = Key.create(f"key-synthetic-{number:06}", new, NewMaterial(f"version-{number}", material, Suite.XAES_256_GCM), by)
    key.material_ready(material, {}, by)
    key.disable(by)
    return key


def child(script: str, *arguments: object, stderr: int | None = subprocess.STDOUT) -> subprocess.Popen[str]:
    """A program of its own; its tree is this one."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def change(url_or_path: str | Path, sql: str, sqlite_sql: str | None = None) -> None:
    """Behind the back of kmscore."""
    if isinstance(url_or_path, str):
        with psycopg.connect(url_or_path, autocommit=True) as link:
            link.execute(sql)  # type: ignore[call-overload]
    else:
        with closing(sqlite3.connect(url_or_path)) as link, link:
            link.execute(sqlite_sql or sql)
