"""The event store of keys and aliases: load an aggregate, append what it decided. The read side is queries.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, cast

from eventsourcing.persistence import (
    DatetimeAsISO,
    EventStore,
    IntegrityError,
    JSONTranscoder,
    Mapper,
    PersistenceError,
)

from kmscore.domain.alias import Alias
from kmscore.domain.events import Event
from kmscore.domain.key import Key
from kmscore.domain.user import User
from kmscore.errors import Conflict, KmsError
from kmscore.store.datastore import Statement, unavailable
from kmscore.store.readmodel import Aggregate, statements
from kmscore.store.recorder import ChainedRecorder


def construct_mapper() -> Mapper[str]:
    """Events to and from stored bytes: JSON, times as ISO 8601."""
    transcoder = JSONTranscoder()
    transcoder.register(DatetimeAsISO())
    return Mapper(transcoder)


Loaded = TypeVar("Loaded", Key, Alias, User)


class KeyStore:
    """Append-only streams of events, one for each key, alias name and user name."""

    def __init__(self, recorder: ChainedRecorder, owner: str) -> None:
        """`owner` names this process; it stands beside every intent that this process opens."""
        self._recorder = recorder
        self._mapper = construct_mapper()
        self._events: EventStore[str] = EventStore(self._mapper, recorder)
        self._owner = owner
        self.position = 0
        """Not before that of the last event that was appended here."""

    def key(self, key_id: str) -> Key | None:
        return self._of(Key, key_id)

    def alias(self, name: str) -> Alias | None:
        return self._of(Alias, name)

    def user(self, stream: str) -> User | None:
        return self._of(User, stream)

    def events(self, stream: str) -> Iterator[Event]:
        """Every event of a stream, oldest first."""
        with unavailable("read"):
            yield from cast("Iterator[Event]", self._events.get(stream))

    def append(self, *aggregates: Aggregate, beside: Sequence[Statement] = ()) -> None:
        """Append the pending events of these aggregates, with their rows, in one transaction; durable on return. `beside`: more rows,
        of what no event tells.

        Raises Conflict when another writer was first: nothing is stored, load and decide again. Raises KmsError
        ServiceUnavailableTemporary when the store cannot be written; nothing is stored then either, as far as it can be read.
        The aggregates must be thrown away after any error.
        """
        pending: list[Event] = []
        rows: list[Statement] = []
        # Aliases first: a key's row cannot go while an alias refers to it.
        for aggregate in sorted(aggregates, key=lambda a: isinstance(a, Key)):
            collected = cast("list[Event]", list(aggregate.collect_events()))
            if collected:
                pending += collected
                rows += statements(aggregate, collected, self._owner)
        if not pending:
            return
        rows += beside
        try:
            *_, last = self._events.put(pending, statements=rows)
            self.position = max(self.position, last.notification.id)
        except IntegrityError:
            raise Conflict(pending[0].originator_id) from None
        except PersistenceError as error:
            # The commit may or may not have happened: only the stream can tell (RELIABILITY 1.3 fact 6).
            if not self._stored(pending):
                raise KmsError("ServiceUnavailableTemporary", f"the store cannot write: {error}") from error

    def _stored(self, pending: list[Event]) -> bool:
        last = pending[-1]
        with unavailable("say whether a commit happened"):
            stored = self._recorder.stored(last.originator_id, last.originator_version)
        return stored is not None and cast("Event", self._mapper.to_domain_event(stored)).command_id == last.command_id

    def _of(self, kind: type[Loaded], stream: str) -> Loaded | None:
        """None also for a stream of another kind: callers choose what they ask for."""
        found = self._load(stream)
        return found if isinstance(found, kind) else None

    def _load(self, stream: str) -> Any:
        # Our own loop: the library's asks a runtime-checkable Protocol about every event, most of the cost (STYLE part A, 2).
        aggregate: Any = None
        for event in self.events(stream):
            aggregate = event.mutate(aggregate)
        return aggregate
