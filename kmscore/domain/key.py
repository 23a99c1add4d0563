"""The Key aggregate: decides what may happen to a key, and says so in events. Pure: no I/O, clock or randomness.

Public methods decide and may raise KmsError; the `apply` side (`begin`, `request_material`, `activate_material` and the assignments in
events.py) only records. After a failed append the object must be thrown away: its pending events are gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Self

from eventsourcing.domain import BaseAggregate

from kmscore.domain import events
from kmscore.domain.by import By
from kmscore.domain.names import MAX_TAGS, check_description, check_tag_keys, check_tags
from kmscore.domain.schedule import deletion_instant
from kmscore.domain.specs import SPECS, KeySpec, KeyUsage, Origin, ProtectionLevel, Suite
from kmscore.domain.states import KeyState, check_allowed
from kmscore.errors import KmsError, invalid, key_not_found


@dataclass(frozen=True, slots=True)
class Version:
    """One material of a key. `ordinal` counts from 1; `material_id` is 32 hex digits; `activated_at` is None while it is requested."""

    ordinal: int
    version_id: str
    material_id: str
    suite: Suite
    activated_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class NewMaterial:
    """Identifiers of one attempt, drawn by the engine before it asks."""

    version_id: str
    material_id: bytes
    suite: Suite


@dataclass(frozen=True, slots=True)
class NewKey:
    """A validated CreateKey. Raises KmsError InvalidParameter on construction."""

    spec: KeySpec
    usage: KeyUsage
    origin: Origin
    level: ProtectionLevel
    creator: str  # the account
    description: str = ""
    tags: Mapping[str, str] | None = None
    rotation_seconds: int = 0
    instance_id: str = ""
    system: bool = False

    def __post_init__(self) -> None:
        facts = SPECS[self.spec]
        if self.usage not in facts.usages:
            raise invalid("KeyUsage", f"{self.spec.value} keys are for {' or '.join(usage.value for usage in facts.usages)}.")
        if self.rotation_seconds and not (facts.rotates and self.origin is Origin.KMS):
            raise KmsError("UnsupportedOperation", "Keys of this kind do not rotate automatically.")
        check_description(self.description)
        check_tags(self.tags or {})


class Key(BaseAggregate[str]):
    """A customer master key. Its id is the KeyId."""

    TOPIC = "Key"

    def __init__(self) -> None:
        # What KeyCreated does not say; `begin` adds what it does.
        self.versions: tuple[Version, ...] = ()
        self.open_intent: Version | None = None
        self.enabled = True
        self.delete_at: datetime | None = None
        self.protected = False
        self.protection_description = ""
        self.destruction_started = False
        self.destroyed_materials: frozenset[str] = frozenset()
        self.destroyed = False

    # --- creation and material ---------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, key_id: str, new: NewKey, material: NewMaterial, by: By) -> Self:
        """CreateKey, as far as the intent: the key is invisible until its first material is active."""
        key = cls._create(
            events.KeyCreated,
            id=key_id,
            spec=new.spec.value,
            usage=new.usage.value,
            origin=new.origin.value,
            level=new.level.value,
            creator=new.creator,
            description=new.description,
            tags=dict(new.tags or {}),
            rotation_seconds=new.rotation_seconds,
            instance_id=new.instance_id,
            system=new.system,
            **by.fields,
        )
        key.want_material(material, by)
        return key

    def want_material(self, material: NewMaterial, by: By) -> None:
        """Open the intent for the next version. The caller has checked that none is open."""
        assert self.open_intent is None and not self.destruction_started
        self.trigger_event(
            events.MaterialRequested,
            ordinal=len(self.versions) + 1,
            version_id=material.version_id,
            material_id=material.material_id.hex(),
            suite=material.suite.value,
            how="generate",
            **by.fields,
        )

    def material_ready(self, material_id: bytes, facts: Mapping[str, str | int | bool], by: By) -> None:
        self.trigger_event(events.MaterialActivated, material_id=material_id.hex(), facts=dict(facts), **by.fields)

    def material_abandoned(self, material_id: bytes, by: By) -> None:
        self.trigger_event(events.MaterialAbandoned, material_id=material_id.hex(), **by.fields)

    # --- what it is now ----------------------------------------------------------------------------------------------------------

    def visible(self, now: datetime) -> bool:
        """False for a key that is not finished, is being destroyed, or whose window is over (DECISIONS 40)."""
        return bool(self.versions) and not self.destruction_started and not self.due_for_deletion(now)

    def require_visible(self, now: datetime) -> None:
        if self.system or not self.visible(now):
            raise key_not_found()

    def due_for_deletion(self, now: datetime) -> bool:
        return self.delete_at is not None and now >= self.delete_at

    @property
    def state(self) -> KeyState:
        if self.delete_at is not None:
            return KeyState.PENDING_DELETION
        return KeyState.ENABLED if self.enabled else KeyState.DISABLED

    @property
    def primary(self) -> Version:
        return self.versions[-1]

    @property
    def last_rotation_at(self) -> datetime:
        """When the primary version was made; of the first version, when the key was (SEMANTICS section 3)."""
        activated = self.primary.activated_at
        assert activated is not None
        return self.created_on if len(self.versions) == 1 else activated

    @property
    def next_rotation_at(self) -> datetime | None:
        return self.last_rotation_at + timedelta(seconds=self.rotation_seconds) if self.rotation_seconds else None

    @property
    def live_materials(self) -> tuple[str, ...]:
        """Material ids that a destruction still has to see gone."""
        return tuple(v.material_id for v in self.versions if v.material_id not in self.destroyed_materials)

    def get_version(self, version_id: str) -> Version:
        for version in self.versions:
            if version.version_id == version_id:
                return version
        raise KmsError("Forbidden.KeyVersionNotFound", "The specified KeyVersion is not found.")

    # --- decisions ---------------------------------------------------------------------------------------------------------------

    def check(self, operation: str, now: datetime) -> None:
        """Raise when the key is not visible, or its state refuses the operation."""
        self.require_visible(now)
        check_allowed(operation, self.state)

    def check_rotatable(self) -> None:
        if not (SPECS[self.spec].rotates and self.origin is Origin.KMS):
            raise KmsError("Rejected.UnsupportedOperation", "Keys of this kind do not rotate.")

    def check_new_version(self, now: datetime, *, min_days: int, max_versions: int) -> None:
        """CreateKeyVersion: at least `min_days` after the last one, at most `max_versions` in all (SEMANTICS section 3)."""
        self.check("CreateKeyVersion", now)
        self.check_rotatable()
        if len(self.versions) >= max_versions:
            raise KmsError("Rejected.LimitExceeded", f"A key has at most {max_versions} versions.")
        if now < self.last_rotation_at + timedelta(days=min_days):
            raise KmsError("Rejected.UnsupportedOperation", f"Two CreateKeyVersion calls are at least {min_days} days apart.")

    def rotation_due(self, now: datetime) -> bool:
        due = self.next_rotation_at
        return due is not None and now >= due and self.visible(now) and self.state is KeyState.ENABLED

    def enable(self, by: By) -> None:
        self.check("EnableKey", by.now)
        if not self.enabled:
            self.trigger_event(events.KeyEnabled, **by.fields)

    def disable(self, by: By) -> None:
        self.check("DisableKey", by.now)
        if self.enabled:
            self.trigger_event(events.KeyDisabled, **by.fields)

    def schedule_deletion(self, window_days: int, by: By) -> None:
        self.check("ScheduleKeyDeletion", by.now)
        delete_at = deletion_instant(by.now, window_days)
        if self.protected:
            raise KmsError("Rejected.UnsupportedOperation", "Deletion protection is enabled for this key; disable it first.")
        self.trigger_event(events.DeletionScheduled, delete_at=delete_at, **by.fields)

    def cancel_deletion(self, by: By) -> None:
        self.check("CancelKeyDeletion", by.now)
        self.trigger_event(events.DeletionCancelled, **by.fields)

    def protect(self, protected: bool, description: str, by: By) -> None:
        self.check("SetDeletionProtection", by.now)
        text = check_description(description) if protected else ""
        if (protected, text) != (self.protected, self.protection_description):
            self.trigger_event(events.DeletionProtectionChanged, protected=protected, description=text, **by.fields)

    def describe(self, description: str, by: By) -> None:
        self.check("UpdateKeyDescription", by.now)
        if check_description(description) != self.description:
            self.trigger_event(events.DescriptionChanged, description=description, **by.fields)

    def change_rotation(self, seconds: int, by: By) -> None:
        self.check("UpdateRotationPolicy", by.now)
        self.check_rotatable()
        if seconds != self.rotation_seconds:
            self.trigger_event(events.RotationPolicyChanged, rotation_seconds=seconds, **by.fields)

    def tag(self, tags: Mapping[str, str], by: By) -> None:
        self.check("TagResource", by.now)
        after = {**self.tags, **check_tags(tags)}
        if len(after) > MAX_TAGS:
            raise KmsError("Rejected.LimitExceeded", f"A key has at most {MAX_TAGS} tags.")
        self._change_tags(after, by)

    def untag(self, keys: Iterable[str] | None, by: By) -> None:
        """Take these tags away, or all of them for None. Keys that it does not have are ignored (SEMANTICS section 7)."""
        self.check("UntagResource", by.now)
        gone = self.tags if keys is None else check_tag_keys(keys)
        self._change_tags({key: value for key, value in self.tags.items() if key not in gone}, by)

    def start_destruction(self, by: By) -> None:
        """The point of no return, when the window is over. The caller has made sure that no intent is open."""
        assert self.due_for_deletion(by.now) and self.open_intent is None
        self.trigger_event(events.DestructionStarted, material_ids=list(self.live_materials), **by.fields)

    def finish_destruction(self, by: By) -> None:
        assert self.destruction_started
        for material_id in self.live_materials:
            self.trigger_event(events.MaterialDestroyed, material_id=material_id, **by.fields)
        self.trigger_event(events.KeyDestroyed, **by.fields)

    def _change_tags(self, after: dict[str, str], by: By) -> None:
        if after != self.tags:
            self.trigger_event(events.TagsChanged, tags=after, **by.fields)

    # --- the apply side: events.py calls these; they only assign -------------------------------------------------------------------

    def begin(self, event: events.KeyCreated) -> None:
        self.spec = KeySpec(event.spec)
        self.usage = KeyUsage(event.usage)
        self.origin = Origin(event.origin)
        self.level = ProtectionLevel(event.level)
        self.creator = event.creator
        self.instance_id = event.instance_id
        self.system = event.system
        self.description = event.description
        self.tags = dict(event.tags)
        self.rotation_seconds = event.rotation_seconds

    def request_material(self, event: events.MaterialRequested) -> None:
        self.open_intent = Version(event.ordinal, event.version_id, event.material_id, Suite(event.suite))

    def activate_material(self, event: events.MaterialActivated) -> None:
        assert self.open_intent is not None and self.open_intent.material_id == event.material_id
        self.versions = (*self.versions, replace(self.open_intent, activated_at=event.timestamp))
        self.open_intent = None


__all__ = ["Key", "NewKey", "NewMaterial", "Version"]
