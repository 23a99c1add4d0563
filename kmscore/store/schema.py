"""The tables, in the words of SQLite; postgres.py says them in PostgreSQL's. Events are append-only; every other table can be rebuilt from
them, but for wrapped material, use counts, facts, attempts and
workers.

Times are whole microseconds since 1970-01-01 UTC. Hashes are 32 raw bytes (domain/chain.py).
"""

from __future__ import annotations

from kmscore.store.datastore import Cursor

SCHEMA_VERSION = 5

BLOCK = 4096  # numbers of keys.seq in one row of `counts`: a million keys are 245 rows, and a page skips half of that many keys

_COUNTS = """
    CREATE TABLE IF NOT EXISTS counts (
        what TEXT NOT NULL, block INTEGER NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (what, block)) WITHOUT ROWID
    """
# What `counts` holds; readmodel.py keeps it so.
COUNT_AGAIN = (
    "DELETE FROM counts",
    f"INSERT INTO counts SELECT 'keys', seq / {BLOCK}, count(*) FROM keys WHERE visible = 1 GROUP BY seq / {BLOCK}",
    "INSERT INTO counts SELECT 'aliases', 0, count(*) FROM aliases",
)

STATEMENTS = (
    # AUTOINCREMENT: a position is never given out twice, not even after a deletion (RELIABILITY 1.3 fact 5).
    """
    CREATE TABLE IF NOT EXISTS stored_events (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        originator_id TEXT NOT NULL,
        originator_version INTEGER NOT NULL,
        topic TEXT NOT NULL,
        state BLOB NOT NULL,
        stream_prev BLOB NOT NULL,
        stream_hash BLOB NOT NULL,
        log_prev BLOB NOT NULL,
        log_hash BLOB NOT NULL,
        UNIQUE (originator_id, originator_version))
    """,
    # One row, updated first in every append: it takes the write lock and carries the chain on.
    "CREATE TABLE IF NOT EXISTS head (id INTEGER PRIMARY KEY CHECK (id = 1), position INTEGER NOT NULL, log_hash BLOB NOT NULL)",
    # Read models, changed in the same transaction as the events.
    """
    CREATE TABLE IF NOT EXISTS keys (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        key_id TEXT NOT NULL UNIQUE,
        visible INTEGER NOT NULL,
        state TEXT NOT NULL,
        spec TEXT NOT NULL,
        usage TEXT NOT NULL,
        level TEXT NOT NULL,
        origin TEXT NOT NULL,
        creator TEXT NOT NULL,
        instance_id TEXT NOT NULL,
        delete_at INTEGER)
    """,
    "CREATE INDEX IF NOT EXISTS keys_by_state ON keys (visible, state)",
    "CREATE INDEX IF NOT EXISTS keys_by_end ON keys (visible, delete_at) WHERE delete_at IS NOT NULL",
    # How many keys are visible, by block of seq; how many aliases there are (block 0). Lists need not count, nor skip, all that there is.
    _COUNTS,
    # The foreign key stops an alias from being bound to a key that is destroyed at the same moment.
    "CREATE TABLE IF NOT EXISTS aliases (name TEXT PRIMARY KEY, key_id TEXT NOT NULL REFERENCES keys (key_id)) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS aliases_by_key ON aliases (key_id)",
    """
    CREATE TABLE IF NOT EXISTS tags (
        key_id TEXT NOT NULL, tag_key TEXT NOT NULL, tag_value TEXT NOT NULL, PRIMARY KEY (key_id, tag_key)) WITHOUT ROWID
    """,
    "CREATE INDEX IF NOT EXISTS tags_by_tag ON tags (tag_key, tag_value)",
    # A version is the primary one of its key from primary_at on, until one of a higher ordinal is.
    """
    CREATE TABLE IF NOT EXISTS versions (
        version_id TEXT PRIMARY KEY,
        key_id TEXT NOT NULL,
        ordinal INTEGER NOT NULL DEFAULT 1,
        primary_at INTEGER NOT NULL DEFAULT 0,
        expires_at INTEGER,
        held INTEGER NOT NULL DEFAULT 1) WITHOUT ROWID
    """,
    "CREATE INDEX IF NOT EXISTS versions_by_key ON versions (key_id)",
    # Every material id that an event ever named: requested, active, abandoned or destroyed.
    """
    CREATE TABLE IF NOT EXISTS materials (
        material_id BLOB PRIMARY KEY, key_id TEXT NOT NULL, level TEXT NOT NULL, state TEXT NOT NULL) WITHOUT ROWID
    """,
    "CREATE INDEX IF NOT EXISTS materials_by_state ON materials (state, level)",
    # Shard and spread are stable hashes of the key id (readmodel.spot): who sweeps it, and where in the jitter window its rotation lies.
    """
    CREATE TABLE IF NOT EXISTS due_work (
        kind TEXT,
        key_id TEXT,
        due_at INTEGER NOT NULL,
        shard INTEGER NOT NULL DEFAULT 0,
        spread INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (kind, key_id)) WITHOUT ROWID
    """,
    "CREATE INDEX IF NOT EXISTS due_work_by_time ON due_work (due_at)",
    "CREATE INDEX IF NOT EXISTS due_work_by_shard ON due_work (shard, due_at)",
    "CREATE INDEX IF NOT EXISTS due_work_by_key ON due_work (key_id)",  # every append of a key writes its rows anew
    # At most one open intent per key. `owner` names the process whose attempt it is.
    """
    CREATE TABLE IF NOT EXISTS open_intents (
        key_id TEXT PRIMARY KEY, kind TEXT NOT NULL, level TEXT NOT NULL, material_id BLOB, owner TEXT NOT NULL) WITHOUT ROWID
    """,
    # Objects of attempts that were given up, until a custody has destroyed them.
    "CREATE TABLE IF NOT EXISTS remains (material_id BLOB PRIMARY KEY, level TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS users (name TEXT PRIMARY KEY, policy TEXT NOT NULL) WITHOUT ROWID",
    """
    CREATE TABLE IF NOT EXISTS access_keys (
        access_key_id TEXT PRIMARY KEY, user_name TEXT NOT NULL, enabled INTEGER NOT NULL, created_at INTEGER NOT NULL) WITHOUT ROWID
    """,
    "CREATE INDEX IF NOT EXISTS access_keys_by_user ON access_keys (user_name)",
    # Not derived from events. A process of a shared store: what it has taken in, and let go of (freshness.py).
    """
    CREATE TABLE IF NOT EXISTS processes (
        process_id TEXT PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL, renewals INTEGER NOT NULL, seen INTEGER NOT NULL,
        settled INTEGER NOT NULL) WITHOUT ROWID
    """,
    "CREATE TABLE IF NOT EXISTS access_secrets (access_key_id TEXT PRIMARY KEY, sealed BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS access_uses (access_key_id TEXT PRIMARY KEY, used_at INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS software_material (material_id BLOB PRIMARY KEY, wrapped BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS version_uses (version_id TEXT PRIMARY KEY, reserved INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    # Of due work that was handed out: how often it was begun, and when it may be handed out again, by the machine's clock (attempts.py).
    # A row lasts as long as its work is due.
    """
    CREATE TABLE IF NOT EXISTS attempts (
        kind TEXT,
        key_id TEXT,
        tries INTEGER NOT NULL,
        not_before INTEGER NOT NULL,
        parked INTEGER NOT NULL,
        code TEXT NOT NULL,
        PRIMARY KEY (key_id, kind)) WITHOUT ROWID
    """,
    # The processes of the scheduler, by the machine's clock.
    """
    CREATE TABLE IF NOT EXISTS workers (
        id TEXT PRIMARY KEY,
        host TEXT NOT NULL,
        pid INTEGER NOT NULL,
        started_at INTEGER NOT NULL,
        seen_at INTEGER NOT NULL,
        worked_at INTEGER,
        done INTEGER NOT NULL,
        failed INTEGER NOT NULL) WITHOUT ROWID
    """,
)

# Tables that tell of running processes only: a move to another database leaves them behind. It takes every other one.
PASSING = frozenset({"processes", "workers"})

# What brings an older database up to each version; STATEMENTS alone make a new one.
MIGRATIONS: dict[int, tuple[str, ...]] = {
    # There was no imported material: for what is there the defaults are true.
    2: (
        "ALTER TABLE versions ADD COLUMN ordinal INTEGER NOT NULL DEFAULT 1",
        "ALTER TABLE versions ADD COLUMN primary_at INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE versions ADD COLUMN expires_at INTEGER",
        "ALTER TABLE versions ADD COLUMN held INTEGER NOT NULL DEFAULT 1",
    ),
    3: (),  # new tables only
    # SQL cannot hash: a row gets its shard and spread at the next event of its key, and is swept with shard 0 until then.
    # The first version that PostgreSQL had.
    4: (
        "ALTER TABLE due_work ADD COLUMN shard INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE due_work ADD COLUMN spread INTEGER NOT NULL DEFAULT 0",
    ),
    5: (_COUNTS, *COUNT_AGAIN),
}


def first_rows(cursor: Cursor) -> None:
    cursor.execute("INSERT INTO head VALUES (1, 0, ?) ON CONFLICT DO NOTHING", (bytes(32),))
