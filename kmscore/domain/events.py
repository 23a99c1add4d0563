"""The events of a key and of an alias: facts, in the past tense, with permanent topics (DESIGN section 9).

Fields are str, int, bool, None, list, dict and datetime only, so that a reloaded event equals the live one. Never change a stored
field: raise `class_version` and add an upcaster. `apply` only assigns; what is decided is decided in key.py and alias.py.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from eventsourcing.domain import CanInitAggregate, CanMutateAggregate, MetaDomainEvent
from eventsourcing.utils import register_topic

if TYPE_CHECKING:
    from kmscore.domain.alias import Alias
    from kmscore.domain.key import Key
    from kmscore.domain.user import User


class Event(CanMutateAggregate[str], metaclass=MetaDomainEvent):
    """What every event carries: whose it is, when, who asked, and by which command."""

    originator_id: str
    originator_version: int
    timestamp: datetime
    actor: str
    command_id: str


def mutate_again(event: Any, aggregate: Any) -> Any:
    """Of an event that begins a stream, and may come again in it."""
    return CanInitAggregate.mutate(event, None) if aggregate is None else CanMutateAggregate.mutate(event, aggregate)


# --- a key's life ----------------------------------------------------------------------------------------------------------------


class KeyCreated(Event, CanInitAggregate[str]):
    TOPIC = "KeyCreated"
    originator_topic: str
    spec: str
    usage: str
    origin: str
    level: str
    creator: str
    description: str
    tags: dict[str, str]
    rotation_seconds: int  # 0: no automatic rotation
    instance_id: str  # empty: none was named
    system: bool  # the service's own key: in no list, for no caller

    def apply(self, aggregate: Key) -> None:
        aggregate.begin(self)


class MaterialRequested(Event):
    """Intent: the custody is about to be asked for material under `material_id` (32 hex digits)."""

    TOPIC = "MaterialRequested"
    ordinal: int
    version_id: str
    material_id: str
    suite: int
    how: str  # generate or import
    offer: str  # the stream of the import offer it comes through; empty: none
    class_version = 2

    @staticmethod
    def upcast_v1_v2(state: dict[str, Any]) -> None:
        state["offer"] = ""

    def apply(self, aggregate: Key) -> None:
        aggregate.request_material(self)


class MaterialActivated(Event):
    """Outcome: the material is durable and verified; its version is now the primary one. `facts` is what the custody stated.

    Of material that was imported ahead: its date has come; it was verified when it was imported.
    """

    TOPIC = "MaterialActivated"
    material_id: str
    facts: dict[str, str | int | bool]

    def apply(self, aggregate: Key) -> None:
        aggregate.activate_material(self)


class MaterialAbandoned(Event):
    """Outcome: the attempt failed or was interrupted; whatever it left under `material_id` has been destroyed."""

    TOPIC = "MaterialAbandoned"
    material_id: str

    def apply(self, aggregate: Key) -> None:
        aggregate.open_intent = None


class MaterialImported(Event):
    """Outcome: imported material is durable and verified, for the version that is named. Again, for one that has it: a new expiry.

    `digest` is a keyed digest of a check value, 64 hex digits. `primary_at`: from when on the version is the primary one.
    """

    TOPIC = "MaterialImported"
    material_id: str
    version_id: str
    facts: dict[str, str | int | bool]
    digest: str
    expires_at: datetime | None
    primary_at: datetime
    offer: str

    def apply(self, aggregate: Key) -> None:
        aggregate.import_material(self)


class MaterialExpired(Event):
    """Intent: the time of these imported materials is over; they are about to be destroyed."""

    TOPIC = "MaterialExpired"
    material_ids: list[str]

    def apply(self, aggregate: Key) -> None:
        aggregate.doom(self.material_ids)


class MaterialDeleted(Event):
    """Intent: these imported materials were deleted by a command; they are about to be destroyed."""

    TOPIC = "MaterialDeleted"
    material_ids: list[str]

    def apply(self, aggregate: Key) -> None:
        aggregate.doom(self.material_ids)


class KeyEnabled(Event):
    TOPIC = "KeyEnabled"

    def apply(self, aggregate: Key) -> None:
        aggregate.enabled = True


class KeyDisabled(Event):
    TOPIC = "KeyDisabled"

    def apply(self, aggregate: Key) -> None:
        aggregate.enabled = False


class DeletionScheduled(Event):
    TOPIC = "DeletionScheduled"
    delete_at: datetime

    def apply(self, aggregate: Key) -> None:
        aggregate.delete_at = self.delete_at


class DeletionCancelled(Event):
    TOPIC = "DeletionCancelled"

    def apply(self, aggregate: Key) -> None:
        aggregate.delete_at = None
        aggregate.enabled = True


class DestructionStarted(Event):
    """Intent, and the point of no return: these materials are about to be destroyed."""

    TOPIC = "DestructionStarted"
    material_ids: list[str]

    def apply(self, aggregate: Key) -> None:
        aggregate.destruction_started = True
        aggregate.doom(self.material_ids)


class MaterialDestroyed(Event):
    """Outcome: a fresh look no longer finds the material, durably."""

    TOPIC = "MaterialDestroyed"
    material_id: str

    def apply(self, aggregate: Key) -> None:
        aggregate.destroyed_materials = aggregate.destroyed_materials | {self.material_id}
        aggregate.doomed_materials = aggregate.doomed_materials - {self.material_id}


class KeyDestroyed(Event):
    TOPIC = "KeyDestroyed"

    def apply(self, aggregate: Key) -> None:
        aggregate.destroyed = True


class RotationPolicyChanged(Event):
    TOPIC = "RotationPolicyChanged"
    rotation_seconds: int  # 0: no automatic rotation

    def apply(self, aggregate: Key) -> None:
        aggregate.rotation_seconds = self.rotation_seconds


class DescriptionChanged(Event):
    TOPIC = "DescriptionChanged"
    description: str

    def apply(self, aggregate: Key) -> None:
        aggregate.description = self.description


class DeletionProtectionChanged(Event):
    TOPIC = "DeletionProtectionChanged"
    protected: bool
    description: str

    def apply(self, aggregate: Key) -> None:
        aggregate.protected = self.protected
        aggregate.protection_description = self.description


class TagsChanged(Event):
    TOPIC = "TagsChanged"
    tags: dict[str, str]  # all of them, after the change

    def apply(self, aggregate: Key) -> None:
        aggregate.tags = dict(self.tags)


class KeyPolicyChanged(Event):
    TOPIC = "KeyPolicyChanged"
    policy: str  # the text of all of it

    def apply(self, aggregate: Key) -> None:
        aggregate.policy = self.policy


# --- an alias's life -------------------------------------------------------------------------------------------------------------


class AliasBound(Event, CanInitAggregate[str]):
    """The alias names a key: the first event of its stream, and again after each AliasDeleted."""

    TOPIC = "AliasBound"
    originator_topic: str
    key_id: str

    def mutate(self, aggregate: Any) -> Any:
        return mutate_again(self, aggregate)

    def apply(self, aggregate: Alias) -> None:
        aggregate.key_id = self.key_id


class AliasRebound(Event):
    TOPIC = "AliasRebound"
    key_id: str
    previous_key_id: str

    def apply(self, aggregate: Alias) -> None:
        aggregate.key_id = self.key_id


class AliasDeleted(Event):
    TOPIC = "AliasDeleted"
    key_id: str

    def apply(self, aggregate: Alias) -> None:
        aggregate.key_id = ""


# --- a user's life ---------------------------------------------------------------------------------------------------------------


class UserCreated(Event, CanInitAggregate[str]):
    """The first event of a user's stream, and again after each UserDeleted."""

    TOPIC = "UserCreated"
    originator_topic: str
    policy: str  # the text of it; empty: none

    def mutate(self, aggregate: Any) -> Any:
        return mutate_again(self, aggregate)

    def apply(self, aggregate: User) -> None:
        aggregate.exists = True
        aggregate.policy = self.policy


class UserPolicyChanged(Event):
    TOPIC = "UserPolicyChanged"
    policy: str

    def apply(self, aggregate: User) -> None:
        aggregate.policy = self.policy


class UserDeleted(Event):
    TOPIC = "UserDeleted"

    def apply(self, aggregate: User) -> None:
        aggregate.exists = False
        aggregate.policy = ""


class AccessKeyCreated(Event):
    TOPIC = "AccessKeyCreated"
    access_key_id: str

    def apply(self, aggregate: User) -> None:
        aggregate.access_keys = {**aggregate.access_keys, self.access_key_id: True}
        aggregate.created = {**aggregate.created, self.access_key_id: self.timestamp}


class AccessKeyDisabled(Event):
    TOPIC = "AccessKeyDisabled"
    access_key_id: str

    def apply(self, aggregate: User) -> None:
        aggregate.access_keys = {**aggregate.access_keys, self.access_key_id: False}


class AccessKeyEnabled(Event):
    TOPIC = "AccessKeyEnabled"
    access_key_id: str

    def apply(self, aggregate: User) -> None:
        aggregate.access_keys = {**aggregate.access_keys, self.access_key_id: True}


class AccessKeyDeleted(Event):
    TOPIC = "AccessKeyDeleted"
    access_key_id: str

    def apply(self, aggregate: User) -> None:
        aggregate.access_keys = {k: v for k, v in aggregate.access_keys.items() if k != self.access_key_id}
        aggregate.created = {k: v for k, v in aggregate.created.items() if k != self.access_key_id}


EVENTS: tuple[type[Event], ...] = (
    KeyCreated,
    MaterialRequested,
    MaterialActivated,
    MaterialAbandoned,
    MaterialImported,
    MaterialExpired,
    MaterialDeleted,
    KeyEnabled,
    KeyDisabled,
    DeletionScheduled,
    DeletionCancelled,
    DestructionStarted,
    MaterialDestroyed,
    KeyDestroyed,
    RotationPolicyChanged,
    DescriptionChanged,
    DeletionProtectionChanged,
    TagsChanged,
    AliasBound,
    AliasRebound,
    AliasDeleted,
    KeyPolicyChanged,
    UserCreated,
    UserPolicyChanged,
    UserDeleted,
    AccessKeyCreated,
    AccessKeyDisabled,
    AccessKeyEnabled,
    AccessKeyDeleted,
)

for _event in EVENTS:
    register_topic(_event.TOPIC, _event)  # type: ignore[attr-defined]
