"""Every operation in every state, against the table of SEMANTICS section 1, written here a second time and by hand."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from kmscore.domain.by import By
from kmscore.domain.key import Key
from kmscore.domain.specs import KeySpec, KeyUsage, Origin, ProtectionLevel, Suite
from kmscore.domain.states import REFUSALS, KeyState, check_allowed
from kmscore.domain.versions import Imported, NewKey, NewMaterial
from kmscore.errors import KmsError

NOW = datetime(2030, 1, 1, tzinfo=UTC)
BY = By(NOW, "1", "command")

ok = None
dis, pd, pi, sm = "Rejected.Disabled", "Rejected.PendingDeletion", "Rejected.PendingImport", "Rejected.StateModifiedFailed"

# Enabled, Disabled, PendingDeletion, PendingImport
TABLE = {
    "DescribeKey": (ok, ok, ok, ok),
    "ListKeys": (ok, ok, ok, ok),
    "DeleteAlias": (ok, ok, ok, ok),
    "ListAliases": (ok, ok, ok, ok),
    "ListAliasesByKeyId": (ok, ok, ok, ok),
    "ListResourceTags": (ok, ok, ok, ok),
    "ListTagResources": (ok, ok, ok, ok),
    "DescribeKeyVersion": (ok, ok, ok, ok),
    "ListKeyVersions": (ok, ok, ok, ok),
    "Encrypt": (ok, dis, pd, pi),
    "Decrypt": (ok, dis, pd, pi),
    "ReEncrypt": (ok, dis, pd, pi),
    "GenerateDataKey": (ok, dis, pd, pi),
    "GenerateDataKeyWithoutPlaintext": (ok, dis, pd, pi),
    "ExportDataKey": (ok, dis, pd, pi),
    "GenerateAndExportDataKey": (ok, dis, pd, pi),
    "AsymmetricEncrypt": (ok, dis, pd, pi),
    "AsymmetricDecrypt": (ok, dis, pd, pi),
    "AsymmetricSign": (ok, dis, pd, pi),
    "AsymmetricVerify": (ok, dis, pd, pi),
    "GetPublicKey": (ok, dis, pd, pi),
    "GenerateMac": (ok, dis, pd, pi),
    "VerifyMac": (ok, dis, pd, pi),
    "GetParametersForImport": (ok, ok, ok, ok),
    "ImportKeyMaterial": (ok, ok, sm, ok),
    "ImportNextKeyMaterial": (ok, ok, sm, pi),
    "DeleteKeyMaterial": (ok, ok, ok, ok),
    "CreateKeyVersion": (ok, dis, pd, pi),
    "RotateKey": (ok, dis, pd, pi),
    "UpdateRotationPolicy": (ok, dis, pd, pi),
    "UpdateKeyDescription": (ok, ok, pd, ok),
    "TagResource": (ok, ok, pd, ok),
    "UntagResource": (ok, ok, pd, ok),
    "TagResources": (ok, ok, pd, ok),
    "UntagResources": (ok, ok, pd, ok),
    "SetDeletionProtection": (ok, ok, pd, ok),
    "SetKeyPolicy": (ok, ok, pd, ok),
    "GetKeyPolicy": (ok, ok, ok, ok),
    "UpdateAlias": (ok, ok, pd, ok),
    "CreateAlias": (ok, ok, sm, ok),
    "EnableKey": (ok, ok, sm, sm),
    "DisableKey": (ok, ok, sm, sm),
    "ScheduleKeyDeletion": (ok, ok, sm, ok),
    "CancelKeyDeletion": (sm, sm, ok, sm),
}


def new_key() -> Key:
    new = NewKey(KeySpec.AES_256, KeyUsage.ENCRYPT_DECRYPT, Origin.KMS, ProtectionLevel.SOFTWARE, creator="1")
    key = Key.create("key-1", new, NewMaterial("v1", bytes(16), Suite.XAES_256_GCM), BY)
    key.material_ready(bytes(16), {}, BY)
    return key


def external_key() -> Key:
    new = NewKey(KeySpec.AES_256, KeyUsage.ENCRYPT_DECRYPT, Origin.EXTERNAL, ProtectionLevel.SOFTWARE, creator="1")
    return Key.create("key-1", new, None, BY)


def imported(digest: str = "d1", expires_at: datetime | None = None, primary_at: datetime = NOW) -> Imported:
    return Imported({"value_len": 32}, digest, expires_at, primary_at)


def take_in(key: Key, number: int, found: Imported, by: By = BY, offer: str = "import/key-1/o") -> None:
    key.want_material(NewMaterial(f"v{number}", bytes([number]) * 16, Suite.XAES_256_GCM, offer), by)
    assert key.open_intent is not None
    key.material_imported(key.open_intent, found, by)


def in_state(state: KeyState) -> Key:
    key = external_key() if state is KeyState.PENDING_IMPORT else new_key()
    if state is KeyState.DISABLED:
        key.disable(BY)
    if state is KeyState.PENDING_DELETION:
        key.schedule_deletion(7, BY)
    key.collect_events()
    assert key.state(NOW) is state
    return key


def test_the_table_names_the_same_operations() -> None:
    assert set(TABLE) == set(REFUSALS)


@pytest.mark.parametrize(("operation", "index"), [(o, i) for o in TABLE for i in range(4)])
def test_every_cell(operation: str, index: int) -> None:
    state = list(KeyState)[index]
    expected = TABLE[operation][index]
    if expected is None:
        check_allowed(operation, state)
    else:
        with pytest.raises(KmsError) as refused:
            check_allowed(operation, state)
        assert refused.value.code == expected
        assert refused.value.status == 409


DECISIONS = {
    "EnableKey": lambda key: key.enable(BY),
    "DisableKey": lambda key: key.disable(BY),
    "ScheduleKeyDeletion": lambda key: key.schedule_deletion(7, BY),
    "CancelKeyDeletion": lambda key: key.cancel_deletion(BY),
    "UpdateKeyDescription": lambda key: key.describe("other", BY),
    "UpdateRotationPolicy": lambda key: key.change_rotation(8 * 86400, BY),
    "TagResource": lambda key: key.tag({"a": "b"}, BY),
    "UntagResource": lambda key: key.untag(None, BY),
    "SetDeletionProtection": lambda key: key.protect(True, "", BY),
    "SetKeyPolicy": lambda key: key.set_policy("a text", BY),
    "CreateKeyVersion": lambda key: key.check_new_version(NOW, min_days=0, max_versions=50),
}


@pytest.mark.parametrize("operation", DECISIONS)
@pytest.mark.parametrize("state", KeyState)
def test_an_aggregate_follows_the_table_and_a_refusal_changes_nothing(operation: str, state: KeyState) -> None:
    key = in_state(state)
    before = dict(vars(key))
    expected = TABLE[operation][list(KeyState).index(state)]
    if expected is None:
        if operation == "CreateKeyVersion":
            return  # only checks; what it leads to is the engine's
        DECISIONS[operation](key)
        return
    with pytest.raises(KmsError) as refused:
        DECISIONS[operation](key)
    assert refused.value.code == expected
    assert dict(vars(key)) == before
    assert not key.pending_events


def test_enable_and_disable_are_idempotent() -> None:
    key = in_state(KeyState.ENABLED)
    key.enable(BY)
    assert not key.pending_events
    key.disable(BY)
    key.disable(BY)
    assert len(key.pending_events) == 1


def test_cancel_enables_a_key_that_was_disabled() -> None:
    key = in_state(KeyState.DISABLED)
    key.schedule_deletion(7, BY)
    key.cancel_deletion(BY)
    assert key.state(NOW) is KeyState.ENABLED
