"""A KeyStore that can be watched: a span for each load and append, a line in the log for each change, a number for each failure."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import cast

from kmscore.counts import STORE_ERRORS, count
from kmscore.domain.alias import Alias
from kmscore.domain.events import Event
from kmscore.domain.key import Key
from kmscore.domain.user import User
from kmscore.errors import Conflict, KmsError
from kmscore.logs import told
from kmscore.store.datastore import Statement
from kmscore.store.keystore import KeyStore
from kmscore.store.readmodel import Aggregate
from kmscore.tracing import span

log = logging.getLogger("kmscore")


class WatchedKeyStore(KeyStore):
    def key(self, key_id: str) -> Key | None:
        with span("store.read", key_id=key_id):
            return super().key(key_id)

    def alias(self, name: str) -> Alias | None:
        with span("store.read"):
            return super().alias(name)

    def user(self, stream: str) -> User | None:
        with span("store.read"):
            return super().user(stream)

    def append(self, *aggregates: Aggregate, beside: Sequence[Statement] = ()) -> None:
        changes = [(aggregate, cast("list[Event]", list(aggregate.pending_events))) for aggregate in aggregates if aggregate.pending_events]
        with span("store.append", events=sum(len(events) for _, events in changes)):
            try:
                super().append(*aggregates, beside=beside)
            except KmsError as error:
                if not isinstance(error, Conflict):
                    count(STORE_ERRORS, "write")
                raise
        if log.isEnabledFor(logging.INFO):
            for aggregate, events in changes:
                names = [type(event).__name__ for event in events]
                fields = told(
                    **{"key_id" if isinstance(aggregate, Key) else "stream": aggregate.id},
                    events=names,
                    request_id=events[-1].command_id,
                    caller=events[-1].actor,
                )
                log.info("%s: %s", aggregate.id, ", ".join(names), extra=fields)
