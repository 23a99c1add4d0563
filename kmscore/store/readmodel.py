"""From aggregates to rows: the one place that says what the read models hold. Append and rebuild both come through here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from kmscore.config import SHARDS
from kmscore.domain import events
from kmscore.domain.alias import Alias
from kmscore.domain.key import Key
from kmscore.domain.specs import Origin
from kmscore.domain.states import KeyState
from kmscore.domain.user import User
from kmscore.store.datastore import Statement
from kmscore.store.schema import BLOCK

ROTATE, DELETE, EXPIRE, NOTE_PRIMARY = "rotate", "delete", "expire", "primary"  # kinds of due work
MATERIAL = "material"
DESTRUCTION = "destruction"

# What a material id is known as.
REQUESTED, ACTIVE, ABANDONED, DESTROYED = "requested", "active", "abandoned", "destroyed"

_ITS_BLOCK = f"what = 'keys' AND block = (SELECT seq / {BLOCK} FROM keys WHERE key_id = ?"

SPREAD_STEPS = 1 << 16

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def micros(instant: datetime) -> int:
    """Whole microseconds since 1970 UTC."""
    return (instant - _EPOCH) // timedelta(microseconds=1)


def _micros(instant: datetime | None) -> int | None:
    return None if instant is None else micros(instant)


def from_micros(value: int) -> datetime:
    return _EPOCH + timedelta(microseconds=value)


def spot(key_id: str) -> tuple[int, int]:
    """Shard and spread of a key's due work: the same in every process and for ever."""
    digest = hashlib.sha256(key_id.encode()).digest()
    return digest[0] % SHARDS, int.from_bytes(digest[1:3]) % SPREAD_STEPS


Aggregate = Key | Alias | User


def statements(aggregate: Aggregate, pending: Sequence[Any], owner: str) -> Iterator[Statement]:
    """What the rows of `aggregate` become when `pending`, its newest events, are appended. `owner` is the process behind an open intent."""
    if isinstance(aggregate, Alias):
        yield from _alias(aggregate)
    elif isinstance(aggregate, User):
        yield from _user(aggregate)
    else:
        yield from _materials(aggregate, pending)
        yield from _key(aggregate, pending[-1].timestamp)
        yield from _intent(aggregate, owner)


def _alias(alias: Alias) -> Iterator[Statement]:
    if alias.key_id:
        yield (
            "INSERT INTO counts SELECT 'aliases', 0, 1 WHERE NOT EXISTS (SELECT 1 FROM aliases WHERE name = ?)"
            " ON CONFLICT (what, block) DO UPDATE SET number = counts.number + 1",
            (alias.id,),
        )
        yield (
            "INSERT INTO aliases VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET key_id = excluded.key_id",
            (alias.id, alias.key_id),
        )
    else:
        yield "UPDATE counts SET number = number - 1 WHERE what = 'aliases' AND EXISTS (SELECT 1 FROM aliases WHERE name = ?)", (alias.id,)
        yield "DELETE FROM aliases WHERE name = ?", (alias.id,)


def _user(user: User) -> Iterator[Statement]:
    if user.exists:
        yield "INSERT INTO users VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET policy = excluded.policy", (user.name, user.policy)
    else:
        yield "DELETE FROM users WHERE name = ?", (user.name,)
    yield "DELETE FROM access_keys WHERE user_name = ?", (user.name,)
    for access_key_id, enabled in user.access_keys.items():
        row = (access_key_id, user.name, int(enabled), micros(user.created[access_key_id]))
        yield "INSERT INTO access_keys VALUES (?, ?, ?, ?)", row


def _materials(key: Key, pending: Sequence[Any]) -> Iterator[Statement]:
    for event in pending:
        match event:
            case events.MaterialRequested():
                row = (bytes.fromhex(event.material_id), key.id, key.level.value, REQUESTED)
                yield "INSERT INTO materials VALUES (?, ?, ?, ?)", row
            case events.MaterialActivated() | events.MaterialImported():
                yield from _material_state(event.material_id, ACTIVE)
            case events.MaterialAbandoned():
                yield from _material_state(event.material_id, ABANDONED)
                yield "INSERT INTO remains VALUES (?, ?) ON CONFLICT DO NOTHING", (bytes.fromhex(event.material_id), key.level.value)
            case events.MaterialDestroyed():
                yield from _material_state(event.material_id, DESTROYED)


def _material_state(material_id: str, state: str) -> Iterator[Statement]:
    yield "UPDATE materials SET state = ? WHERE material_id = ?", (state, bytes.fromhex(material_id))


def _key(key: Key, now: datetime) -> Iterator[Statement]:
    """`now` is the time of the newest event. What time alone changes later is told by delete_at here and by the rows of the versions."""
    yield "DELETE FROM due_work WHERE key_id = ?", (key.id,)
    if not key.destruction_started:
        yield from _due(key, now)
    # What is not due any more needs no further attempt; what still is keeps its count, also when an attempt opens an intent.
    yield (
        "DELETE FROM attempts WHERE key_id = ? AND NOT EXISTS (SELECT 1 FROM due_work WHERE due_work.kind = attempts.kind"
        " AND due_work.key_id = attempts.key_id AND due_work.due_at <= ?)",
        (key.id, micros(now)),
    )
    if key.system or not (key.versions or key.origin is Origin.EXTERNAL):
        return
    yield "DELETE FROM tags WHERE key_id = ?", (key.id,)
    if key.destruction_started:
        yield "DELETE FROM versions WHERE key_id = ?", (key.id,)
        yield f"UPDATE counts SET number = number - 1 WHERE {_ITS_BLOCK} AND visible = 1)", (key.id,)
        yield f"DELETE FROM counts WHERE number = 0 AND {_ITS_BLOCK})", (key.id,)
    if key.destroyed:
        yield "DELETE FROM keys WHERE key_id = ?", (key.id,)
        return
    # A row comes invisible, is counted while it is, and made visible. Not ON CONFLICT: it would use up a seq at every change.
    yield (
        "INSERT INTO keys (key_id, visible, state, spec, usage, level, origin, creator, instance_id)"
        " SELECT ?, 0, ?, ?, ?, ?, ?, ?, ? WHERE NOT EXISTS (SELECT 1 FROM keys WHERE key_id = ?)",
        (
            key.id,
            key.state_with_material.value,
            key.spec.value,
            key.usage.value,
            key.level.value,
            key.origin.value,
            key.creator,
            key.instance_id,
            key.id,
        ),
    )
    if not key.destruction_started:
        yield (
            f"INSERT INTO counts SELECT 'keys', seq / {BLOCK}, 1 FROM keys WHERE key_id = ? AND visible = 0"
            " ON CONFLICT (what, block) DO UPDATE SET number = counts.number + 1",
            (key.id,),
        )
    yield (
        "UPDATE keys SET visible = ?, state = ?, delete_at = ? WHERE key_id = ?",
        (int(not key.destruction_started), key.state_with_material.value, _micros(key.delete_at), key.id),
    )
    if key.destruction_started:
        return
    for version in key.versions:
        primary_at = 0 if version.noted else micros(version.primary_at)
        yield (
            "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (version_id) DO UPDATE SET"
            " primary_at = excluded.primary_at, expires_at = excluded.expires_at, held = excluded.held",
            (version.version_id, key.id, version.ordinal, primary_at, _micros(version.expires_at), int(version.held)),
        )
    for tag_key, tag_value in key.tags.items():
        yield "INSERT INTO tags VALUES (?, ?, ?)", (key.id, tag_key, tag_value)


def _due(key: Key, now: datetime) -> Iterator[Statement]:
    instants = {
        DELETE: key.delete_at,
        EXPIRE: min((v.expires_at for v in key.versions if v.held and v.expires_at is not None), default=None),
        NOTE_PRIMARY: min((v.primary_at for v in key.versions if not v.noted), default=None),
    }
    if key.versions and key.state(now) is KeyState.ENABLED:
        instants[ROTATE] = key.next_rotation_at(now)
    for kind, instant in instants.items():
        if instant is not None:
            yield "INSERT INTO due_work VALUES (?, ?, ?, ?, ?)", (kind, key.id, micros(instant), *spot(key.id))


def _intent(key: Key, owner: str) -> Iterator[Statement]:
    if key.open_intent is not None:
        row: tuple[object, ...] = (key.id, MATERIAL, key.level.value, bytes.fromhex(key.open_intent.material_id), owner)
    elif key.doomed_materials or (key.destruction_started and not key.destroyed):
        row = (key.id, DESTRUCTION, key.level.value, None, owner)
    else:
        yield "DELETE FROM open_intents WHERE key_id = ?", (key.id,)
        return
    # Whoever opened it stays its owner, whoever else changes the key meanwhile: recovery asks the owner whether it is at work.
    yield (
        "INSERT INTO open_intents VALUES (?, ?, ?, ?, ?) ON CONFLICT (key_id) DO UPDATE SET kind = excluded.kind, level = excluded.level,"
        " owner = CASE WHEN open_intents.kind = excluded.kind AND open_intents.material_id IS NOT DISTINCT FROM excluded.material_id"
        " THEN open_intents.owner ELSE excluded.owner END,"
        " material_id = excluded.material_id",
        row,
    )
