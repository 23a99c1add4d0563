"""For whom the engine acts in this thread of control: what events say of who asked, and by which request."""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import NamedTuple

from kmscore.domain.access import Caller


class Asked(NamedTuple):
    actor: str  # an ARN; empty: the owner of the home
    request_id: str


ASKED: ContextVar[Asked | None] = ContextVar("kmscore-asked", default=None)


class Acting:
    """A context: within it, what is done is done for `caller` (None: the owner of the home) by the request `request_id`."""

    __slots__ = ("_asked", "_token")

    def __init__(self, caller: Caller | None, request_id: str) -> None:
        self._asked = Asked("" if caller is None else caller.arn, request_id)

    def __enter__(self) -> None:
        self._token: Token[Asked | None] = ASKED.set(self._asked)

    def __exit__(self, *_: object) -> None:
        ASKED.reset(self._token)
