"""The read side: lists, look-ups, due work, open intents. A key past its deletion date is in none of the lists (DECISIONS 40)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kmscore.domain.names import import_prefix
from kmscore.errors import invalid
from kmscore.store.datastore import Datastore
from kmscore.store.readmodel import DELETE, micros
from kmscore.store.schema import BLOCK

MATERIAL_PAGE = 10_000

# ListKeys filter -> SQL condition with {} for the placeholders (SEMANTICS section 11).
_FILTERS: dict[str, str] = {
    "KeyState": "{state} IN ({})",
    "KeySpec": "spec IN ({})",
    "KeyUsage": "usage IN ({})",
    "ProtectionLevel": "level IN ({})",
    "Creator": "creator IN ({})",
    "DKMSInstanceId": "instance_id IN ({})",
    "keyId": "key_id IN ({})",
    "CreatorType": "'User' IN ({})",  # every key here was made by a user
    "AliasName": "key_id IN (SELECT key_id FROM aliases WHERE name IN ({}))",
    "TagKey": "key_id IN (SELECT key_id FROM tags WHERE tag_key IN ({}))",
    "TagValue": "key_id IN (SELECT key_id FROM tags WHERE tag_value IN ({}))",
}
# A key whose primary version has no usable material waits for it, whether or not a scheduler has said so (DECISIONS 12). The microseconds
# of now go in. Only imported material ends or takes over by itself.
_STATE = (
    "CASE WHEN origin = 'EXTERNAL' AND state IN ('Enabled', 'Disabled') AND NOT coalesce((SELECT held = 1 AND (expires_at IS NULL OR"
    " expires_at > {now}) FROM versions WHERE versions.key_id = keys.key_id AND primary_at <= {now} ORDER BY ordinal DESC LIMIT 1), FALSE)"
    " THEN 'PendingImport' ELSE state END"
)
_VISIBLE = "visible = 1 AND (delete_at IS NULL OR delete_at > ?)"
# What is not shown of what has a row: few, and found by index, where the rest is most of the table.
_ENDED = "visible = 1 AND delete_at <= ?"
_COUNTED = "SELECT coalesce(sum(number), 0) FROM counts WHERE what = ?"
_HIDDEN = f"SELECT key_id FROM keys WHERE visible = 0 UNION ALL SELECT key_id FROM keys WHERE {_ENDED}"


@dataclass(frozen=True, slots=True)
class OpenIntent:
    key_id: str
    kind: str  # readmodel.MATERIAL or DESTRUCTION
    owner: str
    material_id: bytes  # empty for a destruction


@dataclass(frozen=True, slots=True)
class AccessKeyRow:
    access_key_id: str
    user_name: str
    enabled: bool
    created_at: int  # microseconds
    used_at: int | None  # microseconds, exact to a minute; None: never


class Queries:
    def __init__(self, datastore: Datastore) -> None:
        self._datastore = datastore

    # --- keys, aliases, tags -----------------------------------------------------------------------------------------------------

    def list_keys(self, now: datetime, filters: Mapping[str, Sequence[str]], limit: int, offset: int) -> tuple[list[str], int]:
        """Key ids in order of creation, and how many there are in all. Raises KmsError InvalidParameter (Filters)."""
        if not filters:
            return self._page_of_all(micros(now), limit, offset)
        where, at = [_VISIBLE], [micros(now)]
        bound: list[Any] = list(at)
        for name, values in filters.items():
            if name not in _FILTERS:
                raise invalid("Filters", f"It may name {', '.join(_FILTERS)}.")
            where.append(_FILTERS[name].format(",".join("?" * len(values)), state=_STATE.format(now=micros(now))))
            bound += values
        with self._datastore.reading() as cursor:  # one transaction: the page and the count agree
            cursor.execute(f"SELECT count(*) FROM keys WHERE {' AND '.join(where)}", bound)
            total = int(cursor.fetchone()[0])
            cursor.execute(f"SELECT key_id FROM keys WHERE {' AND '.join(where)} ORDER BY seq LIMIT ? OFFSET ?", [*bound, limit, offset])
            return [row[0] for row in cursor.fetchall()], total

    def _page_of_all(self, now: int, limit: int, offset: int) -> tuple[list[str], int]:
        """Without a filter, from the block in which the page begins: as quick on page 5,000 as on the first."""
        with self._datastore.reading() as cursor:
            cursor.execute(f"SELECT seq / {BLOCK}, count(*) FROM keys WHERE {_ENDED} GROUP BY seq / {BLOCK}", (now,))
            ended = {row[0]: row[1] for row in cursor.fetchall()}
            cursor.execute("SELECT block, number FROM counts WHERE what = 'keys' ORDER BY block")
            total, start = 0, None
            for block, number in cursor.fetchall():
                shown = number - ended.get(block, 0)
                if start is None and offset < total + shown:
                    start = block * BLOCK, offset - total
                total += shown
            if start is None:
                return [], total
            sql = f"SELECT key_id FROM keys WHERE seq >= ? AND {_VISIBLE} ORDER BY seq LIMIT ? OFFSET ?"
            cursor.execute(sql, (start[0], now, limit, start[1]))
            return [row[0] for row in cursor.fetchall()], total

    def list_aliases(self, now: datetime, key_id: str | None, limit: int, offset: int) -> tuple[list[tuple[str, str]], int]:
        """(key id, alias name) in order of name, of one key or of all, and how many there are."""
        at = micros(now)
        of_key, bound = ("", []) if key_id is None else (" AND key_id = ?", [key_id])
        with self._datastore.reading() as cursor:  # one transaction: the page and the count agree
            if key_id is None:
                cursor.execute(f"SELECT ({_COUNTED}) - (SELECT count(*) FROM aliases WHERE key_id IN ({_HIDDEN}))", ("aliases", at))
            else:
                cursor.execute(f"SELECT count(*) FROM aliases WHERE key_id NOT IN ({_HIDDEN}){of_key}", (at, key_id))
            total = int(cursor.fetchone()[0])
            sql = f"SELECT key_id, name FROM aliases WHERE key_id NOT IN ({_HIDDEN}){of_key} ORDER BY name LIMIT ? OFFSET ?"
            cursor.execute(sql, (at, *bound, limit, offset))
            return [(row[0], row[1]) for row in cursor.fetchall()], total

    def list_tags(
        self, now: datetime, key_ids: Sequence[str], tags: Mapping[str, str | None], after: tuple[str, str], limit: int
    ) -> list[tuple[str, str, str]]:
        """(key id, tag key, tag value) after `after`, of these keys (or all) that bear all of these tags (None: any value)."""
        where, bound = [f"key_id NOT IN ({_HIDDEN})", "(key_id, tag_key) > (?, ?)"], [micros(now), *after]
        if key_ids:
            where.append(f"key_id IN ({','.join('?' * len(key_ids))})")
            bound += key_ids
        for key, value in tags.items():
            where.append("key_id IN (SELECT key_id FROM tags WHERE tag_key = ?" + (")" if value is None else " AND tag_value = ?)"))
            bound += [key] if value is None else [key, value]
        sql = f"SELECT key_id, tag_key, tag_value FROM tags WHERE {' AND '.join(where)} ORDER BY key_id, tag_key LIMIT ?"
        return [tuple(row) for row in self._all(sql, [*bound, limit])]

    def key_of_alias(self, name: str) -> str | None:
        return self._value("SELECT key_id FROM aliases WHERE name = ?", name)

    def key_of_version(self, version_id: str) -> str | None:
        return self._value("SELECT key_id FROM versions WHERE version_id = ?", version_id)

    def aliases_of(self, key_id: str) -> list[str]:
        return [row[0] for row in self._all("SELECT name FROM aliases WHERE key_id = ?", [key_id])]

    def count(self, table: str) -> int:
        counted = {"keys": f"SELECT ({_COUNTED}) + (SELECT count(*) FROM keys WHERE visible = 0)", "aliases": _COUNTED}
        return int(self._all(counted[table], [table])[0][0])

    # --- users -------------------------------------------------------------------------------------------------------------------

    def users(self) -> list[tuple[str, str]]:
        """(name, policy) of every user, by name."""
        return [(row[0], row[1]) for row in self._all("SELECT name, policy FROM users ORDER BY name", [])]

    def access_keys(self, user_name: str | None = None) -> list[AccessKeyRow]:
        """Access keys of one user or of all, by user and age."""
        where, params = ("", []) if user_name is None else (" WHERE user_name = ?", [user_name])
        sql = (
            "SELECT access_key_id, user_name, enabled, created_at, used_at FROM access_keys LEFT JOIN access_uses USING (access_key_id)"
            f"{where} ORDER BY user_name, created_at, access_key_id"
        )
        return [AccessKeyRow(row[0], row[1], bool(row[2]), row[3], row[4]) for row in self._all(sql, params)]

    def access_key(self, access_key_id: str) -> tuple[str, bool, bytes, str] | None:
        """(user, enabled, sealed secret, the user's policy) of an access key."""
        sql = (
            "SELECT user_name, enabled, sealed, policy FROM access_keys JOIN access_secrets USING (access_key_id)"
            " JOIN users ON users.name = user_name WHERE access_key_id = ?"
        )
        rows = self._all(sql, [access_key_id])
        return (rows[0][0], bool(rows[0][1]), bytes(rows[0][2]), rows[0][3]) if rows else None

    # --- the engine's own --------------------------------------------------------------------------------------------------------

    def due(self, now: datetime, limit: int, after: tuple[int, str, str] = (-1, "", "")) -> list[tuple[int, str, str]]:
        """(due at, key id, kind) of work that is due, oldest first, after a position in that order."""
        sql = (
            "SELECT due_at, key_id, kind FROM due_work WHERE due_at <= ? AND (due_at, key_id, kind) > (?, ?, ?)"
            " ORDER BY due_at, key_id, kind LIMIT ?"
        )
        return [tuple(row) for row in self._all(sql, [micros(now), *after, limit])]

    def live_imports(self, key_id: str) -> list[tuple[str, int]]:
        """(stream, when it ends in microseconds) of the import offers of a key whose pair is there, or on its way."""
        sql = "SELECT key_id, due_at FROM due_work WHERE kind = ? AND key_id > ? AND key_id < ?"
        prefix = import_prefix(key_id)
        return [(row[0], row[1]) for row in self._all(sql, [DELETE, prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1)])]

    def next_due(self) -> int | None:
        """When the next work is due, in microseconds; None when there is none."""
        value = self._all("SELECT min(due_at) FROM due_work", [])[0][0]
        return None if value is None else int(value)

    def open_intents(self, key_id: str | None = None) -> list[OpenIntent]:
        where, params = ("", []) if key_id is None else (" WHERE key_id = ?", [key_id])
        rows = self._all(f"SELECT key_id, kind, owner, material_id FROM open_intents{where}", params)
        return [OpenIntent(row[0], row[1], row[2], bytes(row[3] or b"")) for row in rows]

    def materials(self) -> Iterator[tuple[bytes, str, str, str]]:
        """(material id, key id, level, state) of every material an event ever named: in pages, so that a million need no memory.

        What is in it at the start is in it; its state is that of the moment when its page was read.
        """
        after = b""
        sql = "SELECT material_id, key_id, level, state FROM materials WHERE material_id > ? ORDER BY material_id LIMIT ?"
        while rows := self._all(sql, [after, MATERIAL_PAGE]):
            for row in rows:
                yield bytes(row[0]), row[1], row[2], row[3]
            after = bytes(rows[-1][0])

    def material_states(self) -> dict[bytes, tuple[str, str, str]]:
        """The same, by material id -> (key id, level, state)."""
        return {material_id: (key_id, level, state) for material_id, key_id, level, state in self.materials()}

    def material(self, material_id: bytes) -> tuple[str, str]:
        """(key id, state) of a material that an event named."""
        key_id, state = self._all("SELECT key_id, state FROM materials WHERE material_id = ?", [material_id])[0]
        return str(key_id), str(state)

    def knows_material(self, level: str) -> bool:
        """Whether any material was ever requested at this level and is not known to be gone: its custody must not be made anew."""
        sql = "SELECT 1 FROM materials WHERE level = ? AND state IN ('requested', 'active') LIMIT 1"
        return bool(self._all(sql, [level]))

    def position(self) -> int:
        """How many events the log holds."""
        return int(self._all("SELECT position FROM head", [])[0][0])

    def changed_since(self, position: int) -> tuple[int, set[str]]:
        """The position of the log now, and the streams that changed after `position`."""
        # Not GROUP BY: SQLite would scan the whole index of streams for it.
        rows = self._all("SELECT position, originator_id FROM stored_events WHERE position > ? ORDER BY position", [position])
        return (rows[-1][0] if rows else position), {row[1] for row in rows}

    # --- how -----------------------------------------------------------------------------------------------------------------------

    def _all(self, sql: str, params: Sequence[Any]) -> list[Any]:
        with self._datastore.reading() as cursor:
            cursor.execute(sql, params)
            return list(cursor.fetchall())

    def _value(self, sql: str, param: str) -> str | None:
        rows = self._all(sql, [param])
        return str(rows[0][0]) if rows else None
