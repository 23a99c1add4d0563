"""For whom the engine acts in this thread of control: what events say of who asked, and by which request."""

from __future__ import annotations

from contextvars import Token

from kmscore.asked import ASKED, Asked
from kmscore.domain.access import Caller

__all__ = ["ASKED", "Acting"]


class Acting:
    """A context: within it, what is done is done for `caller` (None: the owner of the home) by the request `request_id`."""

    __slots__ = ("_asked", "_token")

    def __init__(self, caller: Caller | None, request_id: str, operation: str = "") -> None:
        self._asked = Asked("" if caller is None else caller.arn, request_id, operation)

    def __enter__(self) -> None:
        self._token: Token[Asked | None] = ASKED.set(self._asked)

    def __exit__(self, *_: object) -> None:
        ASKED.reset(self._token)
