"""Stored bytes: what was recorded must be readable for ever, and a reloaded aggregate must equal the live one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from eventsourcing.persistence import StoredEvent
from eventsourcing.utils import register_topic
from test_states import BY, external_key, imported, new_key, take_in

from kmscore.domain import events
from kmscore.domain.alias import Alias
from kmscore.domain.by import By
from kmscore.domain.key import Key
from kmscore.domain.specs import Suite
from kmscore.domain.user import User
from kmscore.domain.versions import NewMaterial
from kmscore.store.keystore import construct_mapper

TOPICS = """KeyCreated MaterialRequested MaterialActivated MaterialAbandoned MaterialImported MaterialExpired MaterialDeleted KeyEnabled KeyDisabled DeletionScheduled DeletionCancelled
DestructionStarted MaterialDestroyed KeyDestroyed RotationPolicyChanged DescriptionChanged DeletionProtectionChanged TagsChanged AliasBound
AliasRebound AliasDeleted KeyPolicyChanged UserCreated UserPolicyChanged UserDeleted AccessKeyCreated AccessKeyDisabled AccessKeyEnabled
AccessKeyDeleted""".split()

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
    ("key-2", 1, "KeyCreated", '{%s,"originator_topic":"Key","spec":"Aliyun_AES_256","usage":"ENCRYPT/DECRYPT","origin":"EXTERNAL",'
     '"level":"SOFTWARE","creator":"1","description":"","tags":{},"rotation_seconds":0,"instance_id":"","system":false}'),
    ("key-2", 2, "MaterialRequested", '{%s,"ordinal":1,"version_id":"v1","material_id":"aa","suite":1,"how":"import","offer":"import/key-2/o",'
     '"class_version":2}'),
    ("key-2", 3, "MaterialImported", '{%s,"material_id":"aa","version_id":"v1","facts":{"value_len":32},"digest":"d1",'
     '"expires_at":{"_type_":"datetime_iso","_data_":"2030-01-08T00:00:00+00:00"},'
     '"primary_at":{"_type_":"datetime_iso","_data_":"2030-01-01T00:00:00+00:00"},"offer":"import/key-2/o"}'),
    ("key-2", 4, "MaterialRequested", '{%s,"ordinal":2,"version_id":"v2","material_id":"bb","suite":1,"how":"import","offer":"import/key-2/o",'
     '"class_version":2}'),
    ("key-2", 5, "MaterialImported", '{%s,"material_id":"bb","version_id":"v2","facts":{},"digest":"d2","expires_at":null,'
     '"primary_at":{"_type_":"datetime_iso","_data_":"2030-01-09T00:00:00+00:00"},"offer":"import/key-2/o"}'),
    ("key-2", 6, "MaterialActivated", '{%s,"material_id":"bb","facts":{}}'),
    ("key-2", 7, "MaterialExpired", '{%s,"material_ids":["aa"]}'),
    ("key-2", 8, "MaterialDestroyed", '{%s,"material_id":"aa"}'),
    ("key-2", 9, "MaterialDeleted", '{%s,"material_ids":["bb"]}'),
    ("alias/a", 1, "AliasBound", '{%s,"originator_topic":"Alias","key_id":"key-1"}'),
    ("alias/a", 2, "AliasRebound", '{%s,"key_id":"key-2","previous_key_id":"key-1"}'),
    ("alias/a", 3, "AliasDeleted", '{%s,"key_id":"key-2"}'),
    ("alias/a", 4, "AliasBound", '{%s,"originator_topic":"Alias","key_id":"key-3"}'),
    ("key-2", 10, "KeyPolicyChanged", '{%s,"policy":"a text"}'),
    ("user/ann", 1, "UserCreated", '{%s,"originator_topic":"User","policy":""}'),
    ("user/ann", 2, "AccessKeyCreated", '{%s,"access_key_id":"KMS1"}'),
    ("user/ann", 3, "AccessKeyDisabled", '{%s,"access_key_id":"KMS1"}'),
    ("user/ann", 4, "AccessKeyEnabled", '{%s,"access_key_id":"KMS1"}'),
    ("user/ann", 5, "AccessKeyDeleted", '{%s,"access_key_id":"KMS1"}'),
    ("user/ann", 6, "UserDeleted", "{%s}"),
    ("user/ann", 7, "UserCreated", '{%s,"originator_topic":"User","policy":"a text"}'),
    ("user/ann", 8, "UserPolicyChanged", '{%s,"policy":"another"}'),
    ("user/ann", 9, "AccessKeyCreated", '{%s,"access_key_id":"KMS2"}'),
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
    external = replay([stored(*row) for row in RECORDED if row[0] == "key-2"])
    assert isinstance(external, Key)
    assert [(v.version_id, v.digest, v.held, v.noted) for v in external.versions] == [("v1", "d1", False, True), ("v2", "d2", False, True)]
    assert external.doomed_materials == {"bb"}
    assert external.failed_imports == {"import/key-2/o": 0}
    assert external.policy == "a text"
    user = replay([stored(*row) for row in RECORDED if row[0] == "user/ann"])
    assert isinstance(user, User)
    assert (user.name, user.exists, user.policy, user.access_keys) == ("ann", True, "another", {"KMS2": True})
    assert user.created == {"KMS2": datetime(2030, 1, 1, tzinfo=UTC)}
    alias = replay([stored(*row) for row in RECORDED if row[0] == "alias/a"])
    assert isinstance(alias, Alias)
    assert alias.key_id == "key-3"


# Written by version 1; what is written now is version 2 of it.
OLD = [row for row in RECORDED if row[2] == "MaterialRequested" and "class_version" not in row[3]]


def test_old_requests_are_lifted() -> None:
    mapper = construct_mapper()
    assert len(OLD) == 2
    for row in OLD:
        event = mapper.to_domain_event(stored(*row))
        assert isinstance(event, events.MaterialRequested)
        assert event.offer == ""
        assert mapper.to_domain_event(mapper.to_stored_event(event)) == event


@pytest.mark.parametrize("row", [row for row in RECORDED if row not in OLD], ids=lambda row: f"{row[2]}-{row[1]}")
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
    key.finish_removal(later)
    rows = [mapper.to_stored_event(event) for event in key.collect_events()]
    assert vars(replay(rows)) == vars(key)


def test_a_live_external_key_equals_the_reloaded_one() -> None:
    mapper = construct_mapper()
    day = timedelta(days=1)
    later = By(BY.now + 2 * day, "1", "c2")
    key = external_key()
    take_in(key, 1, imported("d1", BY.now + day))
    key.disable(BY)
    key.expire_material(later)
    key.finish_removal(later)
    take_in(key, 2, imported("d1"), later)
    take_in(key, 3, imported("d2", None, later.now + day), later)
    take_in(key, 4, imported("d1", later.now + 9 * day), later)
    key.note_primary(By(later.now + day, "1", "c3"))
    key.delete_material(later)
    key.finish_removal(later)
    rows = [mapper.to_stored_event(event) for event in key.collect_events()]
    assert vars(replay(rows)) == vars(key)
    assert [v.version_id for v in key.versions] == ["v1", "v3"]


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
