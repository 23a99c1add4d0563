"""The operations as every door offers them: `invoke` takes the wire's parameters as strings and answers the wire's JSON.

Knows the engine only as an object with one method for each operation.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from kmscore.errors import KmsError
from kmscore.operations.kinds import Kind, Operation, Param
from kmscore.operations.parse import arguments
from kmscore.operations.table import GROUPS, OPERATIONS

__all__ = ["GROUPS", "OPERATIONS", "Kind", "Operation", "Param", "find", "invoke"]


def find(name: str) -> Operation:
    """Raises KmsError InvalidApi.NotFound for an operation that is not offered."""
    operation = OPERATIONS.get(name)
    if operation is None:
        raise KmsError("InvalidApi.NotFound", "The specified api is not found, please check your url and method.")
    return operation


def invoke(kms: object, name: str, params: Mapping[str, str], request_id: str = "") -> dict[str, Any]:
    """Carry out the operation `name`. The answer has the given RequestId, or a new one.

    Raises KmsError: InvalidApi.NotFound, MissingParameter, InvalidParameter, or what the engine refuses with.
    """
    operation = find(name)
    keywords = arguments(operation, params)
    answer = operation.answer(getattr(kms, operation.method)(**keywords))
    answer["RequestId"] = request_id or str(uuid.uuid4())
    return dict(sorted(answer.items()))
