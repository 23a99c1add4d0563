"""The Key aggregate: decides what may happen to a key, and says so in events. Pure: no I/O, clock or randomness.

Public methods decide and may raise KmsError; the `apply` side (`begin`, `request_material`, `activate_material` and the assignments in
events.py) only records. After a failed append the object must be thrown away: its pending events are gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Self

from eventsourcing.domain import BaseAggregate

from kmscore.domain import events
from kmscore.domain.by import By
from kmscore.domain.names import MAX_TAGS, check_description, check_tag_keys, check_tags
from kmscore.domain.schedule import deletion_instant
from kmscore.domain.specs import SPECS, Family, KeySpec, KeyUsage, Origin, ProtectionLevel, Suite
from kmscore.domain.states import KeyState, check_allowed
from kmscore.domain.versions import Attempt, Imported, NewKey, NewMaterial, Version
from kmscore.errors import KmsError, bad_material, invalid, invalid_import_token, key_not_found

MAX_FAILED_IMPORTS = 8  # of one import token, then it is dead


class Key(BaseAggregate[str]):
    """A customer master key. Its id is the KeyId."""

    TOPIC = "Key"

    def __init__(self) -> None:
        # What KeyCreated does not say; `begin` adds what it does.
        self.versions: tuple[Version, ...] = ()
        self.open_intent: Attempt | None = None
        self.enabled = True
        self.delete_at: datetime | None = None
        self.protected = False
        self.protection_description = ""
        self.policy = ""  # the text of the key policy; empty: none was set
        self.destruction_started = False
        self.doomed_materials: frozenset[str] = frozenset()
        self.destroyed_materials: frozenset[str] = frozenset()
        self.destroyed = False
        self.failed_imports: Mapping[str, int] = {}

    # --- creation and material ---------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, key_id: str, new: NewKey, material: NewMaterial | None, by: By, delete_at: datetime | None = None) -> Self:
        """CreateKey, as far as the intent: the key is invisible until its first material is active, unless that is to be imported.

        `delete_at` sets the end of a pair that is made for an import.
        """
        key = cls._create(
            events.KeyCreated,
            id=key_id,
            spec=new.spec.value,
            usage=new.usage.value,
            origin=new.origin.value,
            level=new.level.value,
            creator=new.creator,
            description=new.description,
            tags=dict(new.tags),
            rotation_seconds=new.rotation_seconds,
            instance_id=new.instance_id,
            system=new.system,
            **by.fields,
        )
        if delete_at is not None:
            key.trigger_event(events.DeletionScheduled, delete_at=delete_at, **by.fields)
        if new.policy:
            key.trigger_event(events.KeyPolicyChanged, policy=new.policy, **by.fields)
        if material is not None:
            key.want_material(material, by)
        return key

    def want_material(self, material: NewMaterial, by: By) -> None:
        """Open the intent for material of the next version, or, where it is imported again, of whichever it belongs to.

        The caller has checked that none is open.
        """
        assert self.settled and not self.destruction_started
        self.trigger_event(
            events.MaterialRequested,
            ordinal=len(self.versions) + 1,
            version_id=material.version_id,
            material_id=material.material_id.hex(),
            suite=material.suite.value,
            how="import" if material.offer else "generate",
            offer=material.offer,
            **by.fields,
        )

    def material_ready(self, material_id: bytes, facts: Mapping[str, str | int | bool], by: By) -> None:
        self.trigger_event(events.MaterialActivated, material_id=material_id.hex(), facts=dict(facts), **by.fields)

    def material_abandoned(self, material_id: bytes, by: By) -> None:
        self.trigger_event(events.MaterialAbandoned, material_id=material_id.hex(), **by.fields)

    # --- import ------------------------------------------------------------------------------------------------------------------

    def require_external(self) -> None:
        if self.origin is not Origin.EXTERNAL:
            raise KmsError("Unsupported.Origin", "This key origin is not valid for this api.")

    def check_import(self, operation: str, offer: str, primary_at: datetime | None, now: datetime) -> None:
        """Before an attempt is opened; `primary_at` None: at once. Raises InvalidImportToken once too many attempts by `offer` failed."""
        self.check(operation, now)
        self.require_external()
        if self.failed_imports.get(offer, 0) >= MAX_FAILED_IMPORTS:
            raise invalid_import_token()
        if operation == "ImportNextKeyMaterial":
            # "At once" follows whatever is primary already, also where another look at a clock dated that after `now`.
            before = self.versions if primary_at else [version for version in self.versions if not version.noted]
            if any((primary_at or now) < version.primary_at for version in before):
                raise invalid("KeyMaterialActivateUnix", "Each material follows the one that was imported before it.")

    def version_of(self, digest: str, *, following: bool) -> Version | None:
        """The version whose material has this digest; None when it makes a new version.

        Raises InvalidKeyMaterial for other material than the key had before; where `following`, for any that it had before.
        """
        same = next((version for version in self.versions if version.digest == digest), None)
        if (same is not None) if following else (same is None and self.versions):
            raise bad_material()
        return same

    def material_imported(self, attempt: Attempt, found: Imported, by: By) -> None:
        """The outcome of an attempt at import: a new version, or the material of an old one is there again, or has a new expiry.

        A key that waited for its material becomes Enabled; one that is disabled and has its material stays so (DECISIONS 32).
        """
        waited = self.state(by.now) is KeyState.PENDING_IMPORT
        same = next((version for version in self.versions if version.digest == found.digest), None)
        if same is not None and same.held and found.lost:
            self.trigger_event(events.MaterialDeleted, material_ids=[same.material_id], **by.fields)
            same = self.get_version(same.version_id)
        material_id = attempt.material_id
        if same is not None and same.held:  # nothing was made: it is there
            self.material_abandoned(bytes.fromhex(material_id), by)
            material_id = same.material_id
        self.trigger_event(
            events.MaterialImported,
            material_id=material_id,
            version_id=same.version_id if same is not None else attempt.version_id,
            facts=dict(found.facts),
            digest=found.digest,
            expires_at=found.expires_at,
            primary_at=same.primary_at if same is not None else found.primary_at or by.now,
            offer=attempt.offer,
            **by.fields,
        )
        if waited and not self.enabled:
            self.trigger_event(events.KeyEnabled, **by.fields)

    def delete_material(self, by: By) -> None:
        """DeleteKeyMaterial: from here on none of it is used. A key without any is left as it is (DECISIONS 31)."""
        self.check("DeleteKeyMaterial", by.now)
        self.require_external()
        if held := [version.material_id for version in self.versions if version.held]:
            self.trigger_event(events.MaterialDeleted, material_ids=held, **by.fields)

    def expired_materials(self, now: datetime) -> list[str]:
        return [version.material_id for version in self.versions if version.held and not version.usable(now)]

    def expire_material(self, by: By) -> None:
        if expired := self.expired_materials(by.now):
            self.trigger_event(events.MaterialExpired, material_ids=expired, **by.fields)

    def note_primary(self, by: By) -> None:
        """Let the log say that the next material became the primary one; its date has done it already."""
        for version in self.versions:
            if not version.noted and version.primary_at <= by.now:
                self.trigger_event(events.MaterialActivated, material_id=version.material_id, facts={}, **by.fields)

    # --- what it is now ----------------------------------------------------------------------------------------------------------

    @property
    def settled(self) -> bool:
        """No attempt at material and no removal of it is open."""
        return self.open_intent is None and not self.doomed_materials

    def visible(self, now: datetime) -> bool:
        """False for a key that is not finished, is being destroyed, or whose window is over (DECISIONS 40)."""
        begun = bool(self.versions) or self.origin is Origin.EXTERNAL
        return begun and not self.destruction_started and not self.due_for_deletion(now)

    def require_visible(self, now: datetime) -> None:
        if self.system or not self.visible(now):
            raise key_not_found()

    def due_for_deletion(self, now: datetime) -> bool:
        return self.delete_at is not None and now >= self.delete_at

    def state(self, now: datetime) -> KeyState:
        primary = self.primary(now)
        if self.delete_at is None and (primary is None or not primary.usable(now)):
            return KeyState.PENDING_IMPORT
        return self.state_with_material

    @property
    def state_with_material(self) -> KeyState:
        """The state as far as events alone decide it, and not the time that imported material has."""
        if self.delete_at is not None:
            return KeyState.PENDING_DELETION
        return KeyState.ENABLED if self.enabled else KeyState.DISABLED

    def primary(self, now: datetime) -> Version | None:
        """The version that encrypts: the last whose time has come. None until the first is there."""
        for version in reversed(self.versions):
            if version.noted or version.primary_at <= now:
                return version
        return None

    def last_rotation_at(self, now: datetime) -> datetime:
        """When the primary version became it; of the first version, when the key was made (SEMANTICS section 3)."""
        primary = self.primary(now)
        return self.created_on if primary is None or primary.ordinal == 1 else primary.primary_at

    def next_rotation_at(self, now: datetime) -> datetime | None:
        return self.last_rotation_at(now) + timedelta(seconds=self.rotation_seconds) if self.rotation_seconds else None

    @property
    def live_materials(self) -> tuple[str, ...]:
        """Material ids that a destruction of the key still has to see gone."""
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
        check_allowed(operation, self.state(now))

    def check_rotation(self, by: By) -> None:
        """RotateKey. Raises KmsError when the state refuses it, or keys of this kind have one material only."""
        self.check("RotateKey", by.now)
        self.check_rotatable()

    def check_rotatable(self) -> None:
        if not (SPECS[self.spec].new_versions and self.origin is Origin.KMS):
            raise KmsError("Rejected.UnsupportedOperation", "Keys of this kind do not rotate.")

    def check_new_version(self, now: datetime, *, min_days: int, max_versions: int) -> None:
        """CreateKeyVersion: at least `min_days` after the last one, at most `max_versions` in all (SEMANTICS section 3)."""
        self.check("CreateKeyVersion", now)
        self.check_rotatable()
        if len(self.versions) >= max_versions:
            raise KmsError("Rejected.LimitExceeded", f"A key has at most {max_versions} versions.")
        if now < self.last_rotation_at(now) + timedelta(days=min_days):
            raise KmsError("Rejected.UnsupportedOperation", f"Two CreateKeyVersion calls are at least {min_days} days apart.")

    def rotation_due(self, now: datetime) -> bool:
        due = self.next_rotation_at(now)
        return due is not None and now >= due and self.visible(now) and self.state(now) is KeyState.ENABLED

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

    def set_policy(self, policy: str, by: By) -> None:
        """SetKeyPolicy. The caller has checked the text."""
        self.check("SetKeyPolicy", by.now)
        if policy != self.policy:
            self.trigger_event(events.KeyPolicyChanged, policy=policy, **by.fields)

    def change_rotation(self, seconds: int, by: By, *, extended: bool = False) -> None:
        """`extended` lets asymmetric keys rotate by themselves, too; the API itself refuses that."""
        self.check("UpdateRotationPolicy", by.now)
        self.check_rotatable()
        if SPECS[self.spec].family is not Family.AES and not extended:
            raise KmsError("Rejected.UnsupportedOperation", "Only symmetric keys rotate by this policy.")
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

    def end_now(self, by: By) -> None:
        """An import pair that is of no use any more is due at once."""
        assert self.system
        if not self.destruction_started and not self.due_for_deletion(by.now):
            self.trigger_event(events.DeletionScheduled, delete_at=by.now, **by.fields)

    def start_destruction(self, by: By) -> None:
        """The point of no return, when the window is over. The caller has made sure that no intent is open."""
        assert self.due_for_deletion(by.now) and self.settled
        self.trigger_event(events.DestructionStarted, material_ids=list(self.live_materials), **by.fields)

    def finish_removal(self, by: By) -> None:
        """Every doomed material is gone; with the last of a key that is being destroyed, the key."""
        for material_id in sorted(self.doomed_materials):
            self.trigger_event(events.MaterialDestroyed, material_id=material_id, **by.fields)
        if self.destruction_started:
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
        self.open_intent = Attempt(event.ordinal, event.version_id, event.material_id, Suite(event.suite), event.offer)
        if event.offer:  # counted before it is tried; an import takes it back
            self.failed_imports = {**self.failed_imports, event.offer: self.failed_imports.get(event.offer, 0) + 1}

    def activate_material(self, event: events.MaterialActivated) -> None:
        intent = self.open_intent
        if intent is None or intent.material_id != event.material_id:  # the date of an imported one has come
            self.versions = tuple(replace(v, noted=True) if v.material_id == event.material_id else v for v in self.versions)
            return
        at = event.timestamp
        public_key = bytes.fromhex(str(event.facts.get("public_key", "")))
        version = Version(intent.ordinal, intent.version_id, intent.material_id, intent.suite, at, at, public_key)
        self.versions = (*self.versions, version)
        self.open_intent = None

    def import_material(self, event: events.MaterialImported) -> None:
        same = next((v for v in self.versions if v.version_id == event.version_id), None)
        if same is not None:
            again = replace(same, material_id=event.material_id, held=True, expires_at=event.expires_at)
            self.versions = tuple(again if v is same else v for v in self.versions)
        else:
            intent = self.open_intent
            assert intent is not None
            version = Version(
                intent.ordinal,
                intent.version_id,
                intent.material_id,
                intent.suite,
                event.timestamp,
                event.primary_at,
                bytes.fromhex(str(event.facts.get("public_key", ""))),
                event.digest,
                event.expires_at,
                noted=event.primary_at <= event.timestamp,
            )
            self.versions = (*self.versions, version)
        self.open_intent = None
        self.failed_imports = {**self.failed_imports, event.offer: self.failed_imports.get(event.offer, 1) - 1}

    def doom(self, material_ids: Iterable[str]) -> None:
        gone = frozenset(material_ids)
        self.doomed_materials = self.doomed_materials | gone
        self.versions = tuple(replace(v, held=False) if v.material_id in gone else v for v in self.versions)


__all__ = ["MAX_FAILED_IMPORTS", "Key"]
