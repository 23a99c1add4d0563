"""By whom and by which request this thread of control was asked: what events and log lines say of it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import NamedTuple


class Asked(NamedTuple):
    actor: str  # an ARN; empty: the owner of the home
    request_id: str
    operation: str = ""


ASKED: ContextVar[Asked | None] = ContextVar("kmscore-asked", default=None)
