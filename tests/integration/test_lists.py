"""Lists without a filter are read through counts by block (store/schema.py): they equal a naive model, whatever happens to keys and when."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

import kmscore.config
from kmscore.domain.alias import Alias
from kmscore.domain.by import By
from kmscore.domain.key import Key
from kmscore.domain.specs import KeySpec, KeyUsage, Origin, ProtectionLevel, Suite
from kmscore.domain.versions import NewKey, NewMaterial
from kmscore.store.datastore import Datastore
from kmscore.store.keystore import KeyStore
from kmscore.store.queries import Queries
from kmscore.store.recorder import ChainedRecorder
from kmscore.store.schema import BLOCK, COUNT_AGAIN
from kmscore.store.sqlite import SqliteStore

START = datetime(2030, 1, 1, tzinfo=UTC)
NUMBERS = st.integers(0, 1 << 20)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            "create create create external intent gap change schedule schedule cancel start finish alias alias unalias later earlier".split()
        ),
        NUMBERS,
    ),
    max_size=40,
)


@contextmanager
def opened() -> Iterator[Datastore]:
    with tempfile.TemporaryDirectory() as directory:
        url = kmscore.config.load_settings(Path(directory) / "home").database_url
        datastore: Datastore
        if url:  # --store=postgresql
            from kmscore.store.postgres import PostgresStore

            datastore = PostgresStore(url)
        else:
            datastore = SqliteStore(Path(directory) / "kms.db")
        try:
            datastore.prepare()
            yield datastore
        finally:
            datastore.close()


class World:
    """The store, and beside it lists of what should be in it."""

    def __init__(self, datastore: Datastore) -> None:
        self.datastore = datastore
        self.store = KeyStore(ChainedRecorder(datastore), "boot/1/1")
        self.queries = Queries(datastore)
        self.now = START
        self.commands = 0
        self.made = 0
        self.keys: dict[str, datetime | None] = {}  # in order of creation -> delete_at; those in destruction are not in it
        self.dying: list[str] = []
        self.aliases: dict[str, str] = {}

    def by(self) -> By:
        self.commands += 1
        return By(self.now, "1", f"command {self.commands}")

    def load(self, key_id: str) -> Key:
        key = self.store.key(key_id)
        assert key is not None
        return key

    def step(self, what: str, number: int) -> None:
        chosen = list(self.keys)[number % len(self.keys)] if self.keys else ""
        if what in ("create", "external", "intent"):
            self.create(what)
        elif what == "gap":  # numbers that were given to keys that are gone, or never came
            self.gap(number % (2 * BLOCK))
        elif what in ("later", "earlier"):
            self.now += timedelta(days=number % 30 * (1 if what == "later" else -1))
        elif what == "finish" and self.dying:
            self.finish(self.dying.pop(number % len(self.dying)))
        elif what == "alias" and chosen:
            name = f"alias/{number % 5}"
            alias = self.store.alias(name)
            if alias is not None and alias.key_id:
                alias.rebind(chosen, self.by())
            else:
                alias = Alias.bind(alias, name, chosen, self.by())
            self.store.append(alias)
            self.aliases[name] = chosen
        elif what == "unalias" and self.aliases:
            self.unalias(sorted(self.aliases)[number % len(self.aliases)])
        elif chosen:
            self.change(what, chosen, number)

    def create(self, what: str) -> None:
        self.made += 1
        key_id = f"key-{os.urandom(4).hex()}-{self.made}"
        origin = Origin.EXTERNAL if what == "external" else Origin.KMS
        new = NewKey(KeySpec.AES_256, KeyUsage.ENCRYPT_DECRYPT, origin, ProtectionLevel.HSM, creator="1", tags={"a": "b"})
        material = NewMaterial(f"version of {key_id}", os.urandom(16), Suite.XAES_256_GCM) if origin is Origin.KMS else None
        key = Key.create(key_id, new, material, self.by())
        self.store.append(key)
        if what == "create":
            key = self.load(key_id)
            assert key.open_intent is not None
            key.material_ready(bytes.fromhex(key.open_intent.material_id), {}, self.by())
            self.store.append(key)
        if what != "intent":
            self.keys[key_id] = None

    def change(self, what: str, key_id: str, number: int) -> None:
        key = self.load(key_id)
        end = self.keys[key_id]
        gone = end is not None and end <= self.now
        if what == "change" and end is None:
            key.describe(f"change {number}", self.by())
        elif what == "schedule" and end is None:
            key.schedule_deletion(7 + number % 20, self.by())
            self.keys[key_id] = key.delete_at
        elif what == "cancel" and end is not None and not gone:
            key.cancel_deletion(self.by())
            self.keys[key_id] = None
        elif what == "start" and gone:
            key.start_destruction(self.by())
            del self.keys[key_id]
            if number % 2:  # in one append, as no command does it
                key.finish_removal(self.by())
                self.drop_aliases(key, key_id)
                return
            self.dying.append(key_id)
        self.store.append(key)

    def finish(self, key_id: str) -> None:
        key = self.load(key_id)
        key.finish_removal(self.by())
        self.drop_aliases(key, key_id)

    def drop_aliases(self, key: Key, key_id: str) -> None:
        names = [name for name, bound in self.aliases.items() if bound == key_id]
        found: list[Any] = [self.store.alias(name) for name in names]
        for name, alias in zip(names, found, strict=True):
            alias.delete(self.by())
            del self.aliases[name]
        self.store.append(key, *found)

    def unalias(self, name: str) -> None:
        alias = self.store.alias(name)
        assert alias is not None
        alias.delete(self.by())
        self.store.append(alias)
        del self.aliases[name]

    def gap(self, number: int) -> None:
        with self.datastore.writing() as cursor:
            cursor.execute(
                "INSERT INTO keys (key_id, visible, state, spec, usage, level, origin, creator, instance_id)"
                " VALUES ('gap', 0, '', '', '', '', '', '', '') RETURNING seq"
            )
            seq = cursor.fetchone()[0]
            cursor.execute("DELETE FROM keys WHERE key_id = 'gap'")
            if self.datastore.shared:
                cursor.execute("SELECT setval(pg_get_serial_sequence('keys', 'seq'), ?)", (seq + number,))
            else:
                cursor.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'keys'", (seq + number,))

    def check(self, number: int) -> None:
        shown = [key_id for key_id, end in self.keys.items() if end is None or end > self.now]
        size = 1 + number % 7
        for offset in (0, number % (len(shown) + 2), len(shown)):
            assert self.queries.list_keys(self.now, {}, size, offset) == (shown[offset : offset + size], len(shown))
        aliases = [(key_id, name) for name, key_id in sorted(self.aliases.items()) if key_id in shown]
        for offset in (0, number % (len(aliases) + 2)):
            assert self.queries.list_aliases(self.now, None, size, offset) == (aliases[offset : offset + size], len(aliases))
        tagged = [key_id for key_id, _, _ in self.queries.list_tags(self.now, (), {}, ("", ""), 100)]
        assert tagged == sorted(key_id for key_id in shown)
        assert self.queries.count("keys") == len(self.keys) + len(self.dying)
        assert self.queries.count("aliases") == len(self.aliases)

    def counts(self) -> list[tuple[str, int, int]]:
        with self.datastore.reading() as cursor:
            cursor.execute("SELECT what, block, number FROM counts WHERE number > 0 ORDER BY what, block")
            return [tuple(row) for row in cursor.fetchall()]


@settings(max_examples=25)
@example(steps=[("create", 0), ("schedule", 0), ("later", 29), ("start", 1), ("create", 0), ("gap", 2 * BLOCK - 1), ("create", 0)])
@example(steps=[*[("create", 0)] * 3, ("alias", 1), ("schedule", 1), ("later", 29), ("start", 4), ("finish", 0), ("create", 0)])
@given(steps=STEPS)
def test_lists_are_those_of_a_naive_model(steps: list[tuple[str, int]]) -> None:
    with opened() as datastore:
        world = World(datastore)
        for what, number in steps:
            world.step(what, number)
            world.check(number)
        kept = world.counts()
        with datastore.writing() as cursor:
            for statement in COUNT_AGAIN:
                cursor.execute(statement)
        assert kept == world.counts()


def test_a_database_of_the_fourth_schema_is_counted() -> None:
    with opened() as datastore:
        world = World(datastore)
        for step in (("create", 0), ("create", 0), ("gap", BLOCK), ("create", 0), ("alias", 1), ("schedule", 0), ("later", 29)):
            world.step(*step)
        before = world.counts()
        assert before == [("aliases", 0, 1), ("keys", 0, 2), ("keys", 1, 1)]
        with datastore.writing() as cursor:
            cursor.execute("DROP TABLE counts")
            cursor.execute("UPDATE schema_version SET version = 4" if datastore.shared else "PRAGMA user_version = 4")
        datastore.prepare()
        assert world.counts() == before
        world.check(1)
