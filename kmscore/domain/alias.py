"""The Alias aggregate: one stream per name, so that a name is unique by construction and rebinding is one event."""

from __future__ import annotations

from typing import Self

from eventsourcing.domain import BaseAggregate

from kmscore.domain.by import By
from kmscore.domain.events import AliasBound, AliasDeleted, AliasRebound
from kmscore.domain.names import check_alias
from kmscore.errors import KmsError


class Alias(BaseAggregate[str]):
    """A name that stands for one key at a time. Its id is the name itself, `alias/…`."""

    TOPIC = "Alias"

    key_id = ""
    """The key it names; empty while it names none."""

    @classmethod
    def bind(cls, existing: Self | None, name: str, key_id: str, by: By) -> Self:
        """CreateAlias. Raises KmsError InvalidParameter or AliasAlreadyExists."""
        check_alias(name, create=True)
        if existing is None:
            return cls._create(AliasBound, id=name, key_id=key_id, **by.fields)
        if existing.key_id:
            raise KmsError("AliasAlreadyExists", f"{name} already exists.")
        existing.trigger_event(AliasBound, originator_topic=cls.TOPIC, key_id=key_id, **by.fields)
        return existing

    def rebind(self, key_id: str, by: By) -> None:
        """UpdateAlias. Bound to that key already: nothing happens (DECISIONS 26)."""
        self.require_bound()
        if key_id != self.key_id:
            self.trigger_event(AliasRebound, key_id=key_id, previous_key_id=self.key_id, **by.fields)

    def delete(self, by: By) -> None:
        self.require_bound()
        self.trigger_event(AliasDeleted, key_id=self.key_id, **by.fields)

    def require_bound(self) -> None:
        if not self.key_id:
            raise alias_not_found()


def alias_not_found() -> KmsError:
    return KmsError("Forbidden.AliasNotFound", "The specified Alias is not found.")
