"""Stored bytes: what was recorded must be readable for ever, and a reloaded aggregate must equal the live one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from eventsourcing.persistence import StoredEvent
from eventsourcing.utils import register_topic
from test_states import BY, new_key

from kmscore.domain import events
from kmscore.domain.alias import Alias
from kmscore.domain.by import By
from kmscore.domain.key import Key, NewMaterial
from kmscore.domain.specs import Suite
from kmscore.store.keystore import construct_mapper

TOPICS = """KeyCreated MaterialRequested MaterialActivated MaterialAbandoned KeyEnabled KeyDisabled DeletionScheduled DeletionCancelled
DestructionStarted MaterialDestroyed KeyDestroyed RotationPolicyChanged DescriptionChanged DeletionProtectionChanged TagsChanged AliasBound
AliasRebound AliasDeleted""".split()

TIME = '"timestamp":{"_type_":"datetime_iso","_data_":"2030-01-01T00:00:00+00:00"},"actor":"1","command_id":"c1"'

# As the first release wrote them. Never edit a line: what is on disk somewhere looks like this.
RECORDED = [
    ("key-1", 1, "KeyCreated", '{%s,"originator_topic":"Key","spec":"Aliyun_AES_256","usage":"ENCRYPT/DECRYPT","origin":"Aliyun_KMS",'
     '"level":"HSM","creator":"1","description":"d","tags":{"a":"b"},"rotation_seconds":604800,"instance_id":"","system":false}'),
    ("key-1", 2, "MaterialRequested", '{%s,"ordinal":1,"version_id":"v1","material_id":"00112233445566778899aabbccddeeff","suite":1,"how":"generate"}'),
    ("key-1", 3, "MaterialActivated", '{%s,"material_id":"00112233445566778899aabbccddeeff","facts":{"sensitive":true,"value_len":32}}'),
    ("key-1", 4, "KeyDisabled", "{%s}"),
    ("key-1", 5, "KeyEnabled", "{%s}"),
    ("key-1", 6, "RotationPolicyChanged", '{%s,"rotation_seconds":0}'),
    ("key-1", 7, "DescriptionChanged", '{%s,"description":"é"}'),
    ("key-1", 8, "DeletionProtectionChanged", '{%s,"protected":true,"description":"why"}'),
    ("key-1", 9, "TagsChanged", '{%s,"tags":{}}'),
    ("key-1", 10, "MaterialRequested", '{%s,"ordinal":2,"version_id":"v2","material_id":"ff","suite":2,"how":"generate"}'),
    ("key-1", 11, "MaterialAbandoned", '{%s,"material_id":"ff"}'),
    ("key-1", 12, "DeletionScheduled", '{%s,"delete_at":{"_type_":"datetime_iso","_data_":"2030-01-08T00:00:00+00:00"}}'),
    ("key-1", 13, "DeletionCancelled", "{%s}"),
    ("key-1", 14, "DeletionScheduled", '{%s,"delete_at":{"_type_":"datetime_iso","_data_":"2030-01-08T00:00:00+00:00"}}'),
    ("key-1", 15, "DestructionStarted", '{%s,"material_ids":["00112233445566778899aabbccddeeff"]}'),
    ("key-1", 16, "MaterialDestroyed", '{%s,"material_id":"00112233445566778899aabbccddeeff"}'),
    ("key-1", 17, "KeyDestroyed", "{%s}"),
    ("alias/a", 1, "AliasBound", '{%s,"originator_topic":"Alias","key_id":"key-1"}'),
    ("alias/a", 2, "AliasRebound", '{%s,"key_id":"key-2","previous_key_id":"key-1"}'),
    ("alias/a", 3, "AliasDeleted", '{%s,"key_id":"key-2"}'),
    ("alias/a", 4, "AliasBound", '{%s,"originator_topic":"Alias","key_id":"key-3"}'),
]  # fmt: skip


def stored(stream: str, version: int, topic: str, state: str) -> StoredEvent:
    return StoredEvent(stream, version, topic, (state % TIME).encode())


def replay(rows: list[StoredEvent]) -> object:
    mapper = construct_mapper()
    aggregate = None
    for row in rows:
        aggregate = mapper.to_domain_event(row).mutate(aggregate)  # type: ignore[attr-defined]
    return aggregate


def test_topics_are_permanent() -> None:
    assert [event.TOPIC for event in events.EVENTS] == TOPICS  # type: ignore[attr-defined]
    assert {topic for _, _, topic, _ in RECORDED} == set(TOPICS)  # every event has recorded bytes below


def test_recorded_bytes_replay() -> None:
    key = replay([stored(*row) for row in RECORDED if row[0] == "key-1"])
    assert isinstance(key, Key)
    assert key.destroyed
    assert key.description == "é"
    assert key.protection_description == "why"
    assert key.created_on == datetime(2030, 1, 1, tzinfo=UTC)
    assert [v.version_id for v in key.versions] == ["v1"]
    assert key.delete_at == datetime(2030, 1, 8, tzinfo=UTC)
    alias = replay([stored(*row) for row in RECORDED if row[0] == "alias/a"])
    assert isinstance(alias, Alias)
    assert alias.key_id == "key-3"


@pytest.mark.parametrize("row", RECORDED, ids=lambda row: f"{row[2]}-{row[1]}")
def test_an_event_is_written_as_it_was(row: tuple[str, int, str, str]) -> None:
    mapper = construct_mapper()
    before = stored(*row)
    assert mapper.to_stored_event(mapper.to_domain_event(before)) == before


def test_a_live_aggregate_equals_the_reloaded_one() -> None:
    mapper = construct_mapper()
    later = By(BY.now + timedelta(days=9, microseconds=1), "1", "c2")
    key = new_key()
    key.tag({"a": "b"}, BY)
    key.describe("d", BY)
    key.change_rotation(7 * 86400, BY)
    key.want_material(NewMaterial("v2", b"\1" * 16, Suite.AES_GCM), BY)
    key.material_abandoned(b"\1" * 16, BY)
    key.protect(True, "p", BY)
    key.protect(False, "", BY)
    key.disable(BY)
    key.enable(BY)
    key.schedule_deletion(7, BY)
    key.cancel_deletion(BY)
    key.schedule_deletion(8, BY)
    key.start_destruction(later)
    key.finish_destruction(later)
    rows = [mapper.to_stored_event(event) for event in key.collect_events()]
    assert vars(replay(rows)) == vars(key)


class KeyFrozen(events.Event):
    """Stands for an event whose stored form has changed: version 1 had `days`, version 2 has `seconds`."""

    TOPIC = "TestKeyFrozen"
    class_version = 2
    seconds: int

    @staticmethod
    def upcast_v1_v2(state: dict[str, object]) -> None:
        days = state.pop("days")
        assert isinstance(days, int)
        state["seconds"] = days * 86400


register_topic(KeyFrozen.TOPIC, KeyFrozen)


def test_old_bytes_are_lifted_to_the_new_form() -> None:
    mapper = construct_mapper()
    old = stored("key-1", 2, "TestKeyFrozen", '{%s,"days":2}')
    event = mapper.to_domain_event(old)
    assert isinstance(event, KeyFrozen)
    assert event.seconds == 172800
    again = mapper.to_stored_event(event)
    assert b'"class_version":2' in again.state
    assert mapper.to_domain_event(again) == event
