"""Imported material in the aggregate: the first, the same again, the next; expiry and deletion; failed attempts."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from test_key import at, code
from test_states import BY, NOW, external_key, imported, in_state, new_key, take_in

from kmscore.domain.key import MAX_FAILED_IMPORTS, Key
from kmscore.domain.specs import Suite
from kmscore.domain.states import KeyState
from kmscore.domain.versions import NewMaterial, Version
from kmscore.errors import KmsError

OFFER = "import/key-1/o"


def days(number: float) -> datetime:
    return NOW + timedelta(days=number)


def primary(key: Key, now: datetime = NOW) -> Version:
    found = key.primary(now)
    assert found is not None
    return found


def test_a_new_external_key_is_there_and_waits() -> None:
    key = external_key()
    key.require_visible(NOW)
    assert key.state(NOW) is KeyState.PENDING_IMPORT
    assert key.primary(NOW) is None
    assert key.last_rotation_at(NOW) == NOW


def test_the_first_material_enables_it() -> None:
    key = external_key()
    take_in(key, 1, imported())
    assert key.state(NOW) is KeyState.ENABLED
    assert primary(key).version_id == "v1"
    assert key.settled


def test_only_the_same_material_comes_again() -> None:
    key = external_key()
    assert key.version_of("d1", following=False) is None
    take_in(key, 1, imported())
    same = key.version_of("d1", following=False)
    assert same is not None and same.version_id == "v1"
    assert code(lambda: key.version_of("d2", following=False)) == "InvalidKeyMaterial"
    assert code(lambda: key.version_of("d1", following=True)) == "InvalidKeyMaterial"
    assert key.version_of("d2", following=True) is None


def test_the_same_material_again_changes_the_expiry_only() -> None:
    key = external_key()
    take_in(key, 1, imported("d1", days(3)))
    take_in(key, 2, imported("d1", days(9)))
    assert [(v.version_id, v.material_id, v.expires_at) for v in key.versions] == [("v1", (b"\1" * 16).hex(), days(9))]
    take_in(key, 3, imported("d1"))
    assert primary(key).expires_at is None


def test_a_disabled_key_stays_disabled_when_its_material_comes_again() -> None:
    key = external_key()
    take_in(key, 1, imported())
    key.disable(BY)
    take_in(key, 2, imported())
    assert key.state(NOW) is KeyState.DISABLED


def test_expiry_needs_no_scheduler() -> None:
    key = external_key()
    take_in(key, 1, imported("d1", days(1)))
    assert key.state(days(1) - timedelta(microseconds=1)) is KeyState.ENABLED
    assert key.state(days(1)) is KeyState.PENDING_IMPORT
    assert code(key.check, "Encrypt", days(1)) == "Rejected.PendingImport"
    key.expire_material(at(1))
    assert key.doomed_materials == {(b"\1" * 16).hex()}
    assert not key.settled
    key.finish_removal(at(1))
    assert key.settled
    assert key.live_materials == ()
    take_in(key, 2, imported("d1"), at(2))
    assert primary(key).version_id == "v1"  # old ciphertext is readable again
    assert primary(key).material_id == (b"\2" * 16).hex()
    assert key.state(days(2)) is KeyState.ENABLED
    assert key.live_materials == ((b"\2" * 16).hex(),)


def test_nothing_expires_twice_or_early() -> None:
    key = external_key()
    take_in(key, 1, imported("d1", days(1)))
    key.collect_events()
    key.expire_material(BY)
    assert not key.pending_events
    key.expire_material(at(1))
    key.expire_material(at(1))
    assert len(key.pending_events) == 1


def test_deletion_of_material() -> None:
    key = external_key()
    key.collect_events()
    key.delete_material(BY)
    assert not key.pending_events  # DECISIONS 31
    take_in(key, 1, imported())
    key.disable(BY)
    key.delete_material(BY)
    assert key.state(NOW) is KeyState.PENDING_IMPORT
    key.finish_removal(BY)
    take_in(key, 2, imported())
    assert key.state(NOW) is KeyState.ENABLED
    assert code(new_key().delete_material, BY) == "Unsupported.Origin"


def test_deletion_of_material_leaves_a_scheduled_deletion_as_it_is() -> None:
    key = external_key()
    take_in(key, 1, imported())
    key.schedule_deletion(7, BY)
    key.delete_material(BY)
    assert (key.state(NOW), key.delete_at) == (KeyState.PENDING_DELETION, days(7))
    key.finish_removal(BY)
    key.cancel_deletion(BY)
    assert key.state(NOW) is KeyState.PENDING_IMPORT  # DECISIONS 9


def test_the_next_material_takes_over_at_its_date() -> None:
    key = external_key()
    take_in(key, 1, imported())
    take_in(key, 2, imported("d2", None, days(5)))
    assert primary(key, days(4)).version_id == "v1"
    assert primary(key, days(5)).version_id == "v2"
    assert key.last_rotation_at(days(5)) == days(5)
    assert code(lambda: key.check_import("ImportNextKeyMaterial", OFFER, days(4), NOW)) == "InvalidParameter"
    key.check_import("ImportNextKeyMaterial", OFFER, days(5), NOW)
    key.collect_events()
    key.note_primary(at(4))
    assert not key.pending_events
    key.note_primary(at(5))
    key.note_primary(at(5))
    assert len(key.pending_events) == 1
    assert primary(key, days(4)).version_id == "v2"  # said by the log: a clock that is set back changes nothing any more


def test_at_once_follows_what_is_primary_already_whatever_a_clock_says() -> None:
    """The instant of a decision is read before the key is; another's import may be dated between the two."""
    key = external_key()
    take_in(key, 1, imported())
    key.check_import("ImportNextKeyMaterial", OFFER, None, days(-1))
    assert code(lambda: key.check_import("ImportNextKeyMaterial", OFFER, days(-1), NOW)) == "InvalidParameter"
    take_in(key, 2, imported("d2", None, days(5)))
    assert code(lambda: key.check_import("ImportNextKeyMaterial", OFFER, None, NOW)) == "InvalidParameter"


def test_an_older_material_ends_without_the_key() -> None:
    key = external_key()
    take_in(key, 1, imported("d1", days(3)))
    take_in(key, 2, imported("d2", None, days(1)))
    assert key.state(days(3)) is KeyState.ENABLED
    assert [v.usable(days(3)) for v in key.versions] == [False, True]


def test_too_many_failed_attempts_kill_a_token_and_no_other() -> None:
    key = external_key()
    for number in range(1, MAX_FAILED_IMPORTS + 1):
        key.check_import("ImportKeyMaterial", OFFER, NOW, NOW)
        key.want_material(NewMaterial("v", bytes([number]) * 16, Suite.XAES_256_GCM, OFFER), BY)
        key.material_abandoned(bytes([number]) * 16, BY)
    assert code(lambda: key.check_import("ImportKeyMaterial", OFFER, NOW, NOW)) == "InvalidImportToken"
    key.check_import("ImportKeyMaterial", OFFER + "2", NOW, NOW)


def test_a_good_import_does_not_count_as_a_failure() -> None:
    key = external_key()
    for number in range(1, 20):
        take_in(key, number, imported())
    key.check_import("ImportKeyMaterial", OFFER, NOW, NOW)


@pytest.mark.parametrize(("state", "refusal"), [(KeyState.PENDING_DELETION, "Rejected.StateModifiedFailed"), (KeyState.ENABLED, "")])
def test_states_of_an_import(state: KeyState, refusal: str) -> None:
    key = external_key()
    take_in(key, 1, imported())
    if state is KeyState.PENDING_DELETION:
        key.schedule_deletion(7, BY)
    try:
        key.check_import("ImportKeyMaterial", OFFER, NOW, NOW)
    except KmsError as error:
        assert error.code == refusal
    else:
        assert refusal == ""


def test_a_key_of_ours_takes_no_material() -> None:
    assert code(lambda: in_state(KeyState.ENABLED).check_import("ImportKeyMaterial", OFFER, NOW, NOW)) == "Unsupported.Origin"
