"""From aggregates to the results that callers see. Pure."""

from __future__ import annotations

from datetime import datetime

from kmscore.domain.key import Key
from kmscore.domain.names import Place
from kmscore.domain.specs import SPECS
from kmscore.domain.states import KeyState
from kmscore.domain.versions import Version
from kmscore.results import Alias, KeyMetadata, KeyVersion


def key_metadata(key: Key, place: Place, now: datetime, *, with_protection: bool = True) -> KeyMetadata:
    """A key as DescribeKey tells it now; `with_protection` False as CreateKey does (SEMANTICS section 10)."""
    state, primary = key.state(now), key.primary(now)
    rotation = "Disabled"
    if key.rotation_seconds:
        rotation = "Enabled" if state is KeyState.ENABLED else "Suspended"
    return KeyMetadata(
        key_id=key.id,
        arn=place.key_arn(key.id),
        creator=key.creator,
        creation_date=key.created_on,
        key_state=state.value,
        key_spec=key.spec.value,
        key_usage=key.usage.value,
        protection_level=key.level.value,
        origin=key.origin.value,
        description=key.description,
        automatic_rotation=rotation,
        last_rotation_date=key.last_rotation_at(now),
        primary_key_version=primary.version_id if primary and not SPECS[key.spec].is_asymmetric else None,
        rotation_interval=f"{key.rotation_seconds}s" if key.rotation_seconds else None,
        next_rotation_date=key.next_rotation_at(now),
        delete_date=key.delete_at,
        # Kept after it is over, until the material comes again (DECISIONS 12); gone with material that was deleted before.
        material_expire_time=primary.expires_at if primary and (primary.held or not primary.in_time(now)) else None,
        deletion_protection=("Enabled" if key.protected else "Disabled") if with_protection else None,
        deletion_protection_description=(key.protection_description or None) if with_protection else None,
        dkms_instance_id=key.instance_id or None,
    )


def key_version(key: Key, version: Version) -> KeyVersion:
    return KeyVersion(key.id, version.version_id, key.created_on if version.ordinal == 1 else version.activated_at)


def alias_item(key_id: str, name: str, place: Place) -> Alias:
    return Alias(key_id, name, place.alias_arn(name))
