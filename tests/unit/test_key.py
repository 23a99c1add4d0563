"""The rules of the Key and Alias aggregates beyond the state table."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from test_states import BY, NOW, new_key

from kmscore.domain.alias import Alias
from kmscore.domain.by import By
from kmscore.domain.key import Key
from kmscore.domain.schedule import rotation_seconds
from kmscore.domain.specs import KeySpec, KeyUsage, Origin, ProtectionLevel, Suite
from kmscore.domain.versions import NewKey, NewMaterial
from kmscore.errors import KmsError


def at(days: float) -> By:
    return By(NOW + timedelta(days=days), "1", "later")


def code(call: object, *args: object) -> str:
    with pytest.raises(KmsError) as refused:
        call(*args)  # type: ignore[operator]
    return refused.value.code


def rotate(key: Key, ordinal: int, by: By) -> None:
    material = bytes([ordinal]) * 16
    key.want_material(NewMaterial(f"v{ordinal}", material, Suite.XAES_256_GCM), by)
    key.material_ready(material, {}, by)


def test_a_key_without_active_material_is_invisible() -> None:
    new = NewKey(KeySpec.AES_256, KeyUsage.ENCRYPT_DECRYPT, Origin.KMS, ProtectionLevel.HSM, creator="1")
    key = Key.create("key-1", new, NewMaterial("v1", bytes(16), Suite.XAES_256_GCM), BY)
    assert code(key.require_visible, NOW) == "Forbidden.KeyNotFound"
    key.material_abandoned(bytes(16), BY)
    assert key.open_intent is None
    assert code(key.require_visible, NOW) == "Forbidden.KeyNotFound"


def test_rotation_dates() -> None:
    key = new_key()
    assert key.next_rotation_at(NOW) is None
    key.change_rotation(rotation_seconds("30d"), BY)
    assert key.last_rotation_at(NOW) == NOW
    assert key.next_rotation_at(NOW) == NOW + timedelta(days=30)
    assert not key.rotation_due(NOW + timedelta(days=30) - timedelta(microseconds=1))
    assert key.rotation_due(NOW + timedelta(days=30))
    rotate(key, 2, at(31))
    assert key.last_rotation_at(at(31).now) == NOW + timedelta(days=31)
    primary = key.primary(at(31).now)
    assert primary is not None and primary.version_id == "v2"
    assert [v.ordinal for v in key.versions] == [1, 2]
    assert not key.rotation_due(NOW + timedelta(days=60))


def test_rotation_is_suspended_while_disabled_and_resumes() -> None:
    key = new_key()
    key.change_rotation(rotation_seconds("7d"), BY)
    key.disable(BY)
    assert not key.rotation_due(NOW + timedelta(days=100))
    key.enable(BY)
    assert key.rotation_due(NOW + timedelta(days=100))


@pytest.mark.parametrize("text", ["7d", "168h", "10080m", "604800s", "730d", "63072000s"])
def test_rotation_intervals(text: str) -> None:
    assert 604800 <= rotation_seconds(text) <= 63072000


@pytest.mark.parametrize("text", ["6d", "604799s", "731d", "63072001s", "7", "d", "-7d", "7 d", "7D", "7.5d", "٧d", "9" * 30 + "d", "7d\n"])
def test_bad_rotation_intervals(text: str) -> None:
    assert code(rotation_seconds, text) == "InvalidParameter"


def test_rotation_without_interval_is_missing() -> None:
    assert code(rotation_seconds, None) == "MissingParameter"


@pytest.mark.parametrize("days", [6, 367, 0, -1])
def test_bad_deletion_windows(days: int) -> None:
    key = new_key()
    key.collect_events()
    assert code(key.schedule_deletion, days, BY) == "InvalidParameter"
    assert not key.pending_events


def test_deletion_hides_the_key_from_the_very_instant() -> None:
    key = new_key()
    key.schedule_deletion(7, BY)
    due = NOW + timedelta(days=7)
    key.require_visible(due - timedelta(microseconds=1))
    assert code(key.require_visible, due) == "Forbidden.KeyNotFound"
    assert code(key.cancel_deletion, at(7)) == "Forbidden.KeyNotFound"


def test_deletion_protection() -> None:
    key = new_key()
    key.protect(True, "payroll", BY)
    assert code(key.schedule_deletion, 7, BY) == "Rejected.UnsupportedOperation"
    key.protect(False, "ignored", BY)
    assert key.protection_description == ""
    key.schedule_deletion(7, BY)


def test_destruction_names_every_material_and_ends_the_key() -> None:
    key = new_key()
    rotate(key, 2, at(1))
    key.schedule_deletion(7, at(1))
    key.start_destruction(at(8))
    assert key.live_materials == (bytes(16).hex(), (b"\2" * 16).hex())
    key.finish_removal(at(8))
    assert key.destroyed
    assert key.live_materials == ()
    assert code(key.require_visible, NOW) == "Forbidden.KeyNotFound"


def test_create_key_version_waits_seven_days_and_stops_at_fifty() -> None:
    key = new_key()
    assert code(lambda: key.check_new_version(NOW + timedelta(days=6), min_days=7, max_versions=50)) == "Rejected.UnsupportedOperation"
    key.check_new_version(NOW + timedelta(days=7), min_days=7, max_versions=50)
    for ordinal in range(2, 51):
        rotate(key, ordinal, BY)
    assert code(lambda: key.check_new_version(NOW + timedelta(days=7), min_days=7, max_versions=50)) == "Rejected.LimitExceeded"


def test_tags() -> None:
    key = new_key()
    key.tag({"team": "a", "env": "prod"}, BY)
    key.tag({"team": "b"}, BY)
    assert key.tags == {"team": "b", "env": "prod"}
    key.untag(["env", "never-there"], BY)
    assert key.tags == {"team": "b"}
    key.untag(None, BY)
    assert key.tags == {}
    assert code(key.tag, {"aliyun-x": "a"}, BY) == "InvalidParameter.TagKey"
    assert code(key.tag, {"acs:x": "a"}, BY) == "InvalidParameter.TagKey"
    assert code(key.tag, {"": "a"}, BY) == "InvalidParameter.TagKey"
    assert code(key.tag, {"a b": "a"}, BY) == "InvalidParameter.TagKey"
    assert code(key.tag, {"a": "x" * 129}, BY) == "InvalidParameter.TagValue"
    assert code(key.tag, {str(i): "" for i in range(21)}, BY) == "InvalidParameter"
    key.tag({str(i): "" for i in range(20)}, BY)
    assert code(key.tag, {"one-more": ""}, BY) == "Rejected.LimitExceeded"


def test_descriptions() -> None:
    key = new_key()
    key.describe("x" * 8192, BY)
    assert code(key.describe, "x" * 8193, BY) == "InvalidParameter"
    assert code(key.describe, "\ud800", BY) == "InvalidParameter"


def test_an_asymmetric_usage_of_a_symmetric_spec_is_refused() -> None:
    new = NewKey(KeySpec.AES_256, KeyUsage.ENCRYPT_DECRYPT, Origin.KMS, ProtectionLevel.HSM, creator="1")
    assert code(lambda: replace(new, usage=KeyUsage.SIGN_VERIFY)) == "InvalidParameter"


def test_alias_life() -> None:
    alias = Alias.bind(None, "alias/a", "key-1", BY)
    assert code(Alias.bind, alias, "alias/a", "key-2", BY) == "AliasAlreadyExists"
    alias.rebind("key-1", BY)
    assert len(alias.pending_events) == 1  # bound to that key already: nothing happened
    alias.rebind("key-2", BY)
    alias.delete(BY)
    assert code(alias.delete, BY) == "Forbidden.AliasNotFound"
    assert code(alias.rebind, "key-1", BY) == "Forbidden.AliasNotFound"
    assert Alias.bind(alias, "alias/a", "key-3", BY).key_id == "key-3"


@pytest.mark.parametrize("name", ["a", "alias/", "alias/acs", "alias/acs-x", "alias/ü", "alias/a b", "alias/" + "x" * 250, "alias/a\n"])
def test_bad_alias_names(name: str) -> None:
    assert code(Alias.bind, None, name, "key-1", BY) == "InvalidParameter"
