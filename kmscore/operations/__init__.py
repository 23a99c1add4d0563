"""The operations as every door offers them: `invoke` takes the wire's parameters as strings and answers the wire's JSON.

Knows the engine only as an object with one method for each operation, and one that says who may do what.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kmscore.domain.names import ALIAS_PREFIX
from kmscore.errors import KmsError, api_not_found
from kmscore.ids import new_request_id
from kmscore.operations.kinds import Kind, Operation, Param, Target
from kmscore.operations.parse import arguments, wants_dry_run
from kmscore.operations.table import GROUPS, OPERATIONS, SECRETS, UNOFFERED

__all__ = ["GROUPS", "OPERATIONS", "SECRETS", "UNOFFERED", "Kind", "Operation", "Param", "find", "invoke"]

NO_PERMISSION = "Forbidden.NoPermission"


def find(name: str) -> Operation:
    """Raises KmsError UnsupportedOperation for an operation of the API that is not offered, InvalidApi.NotFound for any other name."""
    operation = OPERATIONS.get(name)
    if operation is None:
        if name in UNOFFERED:
            raise KmsError("UnsupportedOperation", f"{name} is not offered by this service.")
        raise api_not_found()
    return operation


def invoke(kms: Any, name: str, params: Mapping[str, str], request_id: str = "", caller: Any = None) -> dict[str, Any]:
    """Carry out the operation `name` for `caller`, if they may; None is the owner of the home, who may do everything.

    The answer, and the events, have the given RequestId, or a new one. Raises KmsError: InvalidApi.NotFound, UnsupportedOperation,
    MissingParameter, InvalidParameter, Forbidden.NoPermission, or what the engine refuses with.
    """
    operation = find(name)
    request_id = request_id or new_request_id()
    with kms.acting(caller, request_id, name):
        if wants_dry_run(operation, params):
            _rehearse(kms, operation, params, caller)
        keywords = arguments(operation, params)
        if caller is not None:
            _authorise(kms, operation, keywords, caller)
        answer = operation.answer(getattr(kms, operation.method)(**keywords))
    answer["RequestId"] = request_id
    return dict(sorted(answer.items()))


def _authorise(kms: Any, operation: Operation, keywords: dict[str, Any], caller: Any) -> None:
    """Replaces what names a key by the id of the key that was judged."""
    keys: list[str] = []
    blobs: list[bytes] = []
    aliases: list[str] = []
    pinned = []
    for param in operation.targets:
        value = keywords.get(param.argument)
        if not value or param.target_unless in keywords:
            continue
        items = value if isinstance(value, list) else [value]
        target = param.target
        if target is Target.KEY:
            keys += items
            pinned.append(param.argument)
        elif target is Target.OWN_ID:
            keys += [item for item in items if not item.startswith(ALIAS_PREFIX)]  # the engine refuses those
        elif target is Target.BLOB:
            blobs += items
        else:
            aliases += items
    ids = kms.authorise(caller, operation.action, keys=keys, blobs=blobs, aliases=aliases, collection=operation.collection)
    for argument in pinned:
        keywords[argument] = ids[keywords[argument]]


def _rehearse(kms: Any, operation: Operation, params: Mapping[str, str], caller: Any) -> None:
    """DryRun: always raises; what it raises says what the call would have come to (DECISIONS 27)."""
    try:
        keywords = arguments(operation, params)
        if caller is not None:
            _authorise(kms, operation, keywords, caller)
        kms.rehearse(operation.name, keywords)
    except KmsError as error:
        if error.code == NO_PERMISSION:
            raise KmsError("AccessDeniedError", error.message) from None
        if error.retryable:
            raise
        raise KmsError("ValidationError", f"{error.code}: {error.message}") from None
    raise KmsError("DryRunOperationError", "The request would have succeeded; DryRun is set.")
