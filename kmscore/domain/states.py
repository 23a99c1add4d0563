"""Which operation is allowed in which key state. This file holds the whole table and nothing else (SEMANTICS section 1, DECISIONS 8).

An operation that a table does not name is allowed in every state.
"""

from __future__ import annotations

from enum import StrEnum

from kmscore.errors import KmsError


class KeyState(StrEnum):
    """The values of the wire's KeyState. A key that is not yet, or no longer, visible has none."""

    ENABLED = "Enabled"
    DISABLED = "Disabled"
    PENDING_DELETION = "PendingDeletion"
    PENDING_IMPORT = "PendingImport"


_E, _D, _P, _I = KeyState.ENABLED, KeyState.DISABLED, KeyState.PENDING_DELETION, KeyState.PENDING_IMPORT

DISABLED = "Rejected.Disabled"
PENDING_DELETION = "Rejected.PendingDeletion"
PENDING_IMPORT = "Rejected.PendingImport"
MODIFIED_FAILED = "Rejected.StateModifiedFailed"

# Refusals, by state. Each operation names its row; what a row does not name is allowed.
_USE = {_D: DISABLED, _P: PENDING_DELETION, _I: PENDING_IMPORT}
_ALWAYS: dict[KeyState, str] = {}
_NOT_WHILE_DELETING = {_P: PENDING_DELETION}
_NOT_MODIFIABLE = {_P: MODIFIED_FAILED}
_SWITCH = {_P: MODIFIED_FAILED, _I: MODIFIED_FAILED}
_NEXT_IMPORT = {_P: MODIFIED_FAILED, _I: PENDING_IMPORT}
_ONLY_WHILE_DELETING = {_E: MODIFIED_FAILED, _D: MODIFIED_FAILED, _I: MODIFIED_FAILED}

REFUSALS: dict[str, dict[KeyState, str]] = {
    "DescribeKey": _ALWAYS,
    "GetKeyPolicy": _ALWAYS,
    "DeleteAlias": _ALWAYS,
    "ListAliases": _ALWAYS,
    "ListAliasesByKeyId": _ALWAYS,
    "ListKeys": _ALWAYS,
    "ListResourceTags": _ALWAYS,
    "ListTagResources": _ALWAYS,
    "DescribeKeyVersion": _ALWAYS,
    "ListKeyVersions": _ALWAYS,
    "Encrypt": _USE,
    "Decrypt": _USE,
    "ReEncrypt": _USE,
    "GenerateDataKey": _USE,
    "GenerateDataKeyWithoutPlaintext": _USE,
    "ExportDataKey": _USE,
    "GenerateAndExportDataKey": _USE,
    "AsymmetricEncrypt": _USE,
    "AsymmetricDecrypt": _USE,
    "AsymmetricSign": _USE,
    "AsymmetricVerify": _USE,
    "GetPublicKey": _USE,
    "GenerateMac": _USE,
    "VerifyMac": _USE,
    "GetParametersForImport": _ALWAYS,
    "ImportKeyMaterial": _NOT_MODIFIABLE,
    "ImportNextKeyMaterial": _NEXT_IMPORT,
    "DeleteKeyMaterial": _ALWAYS,
    "CreateKeyVersion": _USE,
    "RotateKey": _USE,
    "UpdateRotationPolicy": _USE,
    "UpdateKeyDescription": _NOT_WHILE_DELETING,
    "TagResource": _NOT_WHILE_DELETING,
    "UntagResource": _NOT_WHILE_DELETING,
    "TagResources": _NOT_WHILE_DELETING,
    "UntagResources": _NOT_WHILE_DELETING,
    "SetDeletionProtection": _NOT_WHILE_DELETING,
    "SetKeyPolicy": _NOT_WHILE_DELETING,
    "UpdateAlias": _NOT_WHILE_DELETING,
    "CreateAlias": _NOT_MODIFIABLE,
    "EnableKey": _SWITCH,
    "DisableKey": _SWITCH,
    "ScheduleKeyDeletion": _NOT_MODIFIABLE,
    "CancelKeyDeletion": _ONLY_WHILE_DELETING,
}


def check_allowed(operation: str, state: KeyState) -> None:
    """Raise KmsError with the code of the table when `operation` is refused in `state`. Changes nothing."""
    code = REFUSALS[operation].get(state)
    if code is None:
        return
    if code == MODIFIED_FAILED:
        raise KmsError(code, "Keystate modified failed.")
    raise KmsError(code, f"The request was rejected because the key state is {state.value}.")
