"""Wrapped software material and other rows that are not derived from events."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from kmscore.errors import KmsError
from kmscore.store.datastore import Cursor, Datastore, in_order

PAGE = 10_000


class SoftwareMaterial:
    """The MaterialTable of the custody port, in the database of the home."""

    def __init__(self, datastore: Datastore) -> None:
        self._datastore = datastore

    def put(self, material_id: bytes, wrapped: bytes) -> None:
        with self._datastore.writing() as cursor:
            in_order(cursor)
            cursor.execute("INSERT INTO software_material VALUES (?, ?)", (material_id, wrapped))

    def get(self, material_id: bytes) -> bytes | None:
        with self._datastore.reading() as cursor:
            cursor.execute("SELECT wrapped FROM software_material WHERE material_id = ?", (material_id,))
            row = cursor.fetchone()
        return bytes(row[0]) if row else None

    def remove(self, material_id: bytes) -> None:
        """Delete the row, and every older copy of it that the database can reach.

        Raises KmsError ServiceUnavailableTemporary while a reader keeps the log from being emptied; repeat it then.
        """
        with self._datastore.writing() as cursor:
            in_order(cursor)  # an insertion whose connection was lost may still be under way
            cursor.execute("DELETE FROM software_material WHERE material_id = ?", (material_id,))
        if not self._datastore.forget():
            raise KmsError("ServiceUnavailableTemporary", "the store's log is being read; material is removed once it is not")

    def ids(self) -> Iterator[bytes]:
        """In pages: what is in it all the while is in it."""
        after: bytes | None = b""
        while after is not None:
            with self._datastore.reading() as cursor:
                cursor.execute(
                    "SELECT material_id FROM software_material WHERE material_id > ? ORDER BY material_id LIMIT ?", (after, PAGE)
                )
                found = [bytes(row[0]) for row in cursor.fetchall()]
            yield from found
            after = found[-1] if found else None


class Remains:
    """Objects of attempts that were given up, from the commit that says so until a custody has destroyed them."""

    def __init__(self, datastore: Datastore) -> None:
        self._datastore = datastore

    def all(self) -> list[tuple[bytes, str]]:
        """(material id, level)."""
        with self._datastore.reading() as cursor:
            cursor.execute("SELECT material_id, level FROM remains")
            return [(bytes(row[0]), row[1]) for row in cursor.fetchall()]

    def cleared(self, material_id: bytes) -> None:
        with self._datastore.writing() as cursor:
            cursor.execute("DELETE FROM remains WHERE material_id = ?", (material_id,))


class MovedTo(NamedTuple):
    """Where the events of a store go on after `position`: it must not be used any more."""

    where: str
    position: int
    log_hash: bytes


def moved_to(cursor: Cursor) -> MovedTo | None:
    cursor.execute("SELECT value FROM facts WHERE name = 'moved_to'")
    row = cursor.fetchone()
    if row is None:
        return None
    said = json.loads(row[0])
    return MovedTo(said["where"], said["position"], bytes.fromhex(said["log_hash"]))


def mark_as_moved(cursor: Cursor, moved: MovedTo) -> None:
    said = {**moved._asdict(), "log_hash": moved.log_hash.hex()}
    cursor.execute("INSERT INTO facts VALUES ('moved_to', ?)", (json.dumps(said),))
    cursor.execute("DELETE FROM processes")  # one that sleeps has to enter itself anew, and then meets the mark


class Facts:
    """Small durable facts about this home: its instance id, the token it is bound to, where its root key lives."""

    def __init__(self, datastore: Datastore) -> None:
        self._datastore = datastore

    def get(self, name: str) -> str | None:
        with self._datastore.reading() as cursor:
            cursor.execute("SELECT value FROM facts WHERE name = ?", (name,))
            row = cursor.fetchone()
        return str(row[0]) if row else None

    def set_once(self, name: str, value: str) -> str:
        """Record a fact that never changes; answers the value that holds."""
        held = self.get(name)
        while held is None:
            with self._datastore.writing() as cursor:
                cursor.execute("INSERT INTO facts VALUES (?, ?) ON CONFLICT DO NOTHING", (name, value))
            held = self.get(name)
        return held


class AccessUses:
    """When access keys were last used. Not worth an event: it is exact to a minute, and may lag behind after a crash."""

    def __init__(self, datastore: Datastore) -> None:
        self._datastore = datastore

    def record(self, used: Mapping[str, int]) -> None:
        """Access key id -> microseconds."""
        with self._datastore.writing() as cursor:
            for access_key_id, used_at in sorted(used.items()):  # in one order: two processes must not wait for each other
                cursor.execute(
                    "INSERT INTO access_uses SELECT ?, ? WHERE EXISTS (SELECT 1 FROM access_keys WHERE access_key_id = ?)"
                    " ON CONFLICT (access_key_id) DO UPDATE SET used_at = excluded.used_at WHERE access_uses.used_at < excluded.used_at",
                    (access_key_id, used_at, access_key_id),
                )

    def forget(self) -> None:
        """Empty the log of what was deleted before, unless somebody reads it just now; then the next checkpoint does."""
        self._datastore.forget()


class Uses:
    """Durable counts of the uses of suite-2 key versions, reserved in blocks before they are used (RELIABILITY C1).

    A crash wastes the rest of a block: the count may be too high, never too low.
    """

    def __init__(self, datastore: Datastore) -> None:
        self._datastore = datastore

    def reserve(self, version_id: str, block: int) -> int:
        """Reserve `block` more uses; answers how many have been reserved in all."""
        with self._datastore.writing() as cursor:
            cursor.execute(
                "INSERT INTO version_uses VALUES (?, ?) ON CONFLICT (version_id)"
                " DO UPDATE SET reserved = version_uses.reserved + excluded.reserved RETURNING reserved",
                (version_id, block),
            )
            return int(cursor.fetchone()[0])
