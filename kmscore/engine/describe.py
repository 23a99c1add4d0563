"""From aggregates to the results that callers see. Pure."""

from __future__ import annotations

from kmscore.domain.key import Key, Version
from kmscore.domain.names import Place
from kmscore.domain.states import KeyState
from kmscore.results import Alias, KeyMetadata, KeyVersion


def key_metadata(key: Key, place: Place, *, with_protection: bool = True) -> KeyMetadata:
    """A key as DescribeKey tells it; `with_protection` False as CreateKey does (SEMANTICS section 10)."""
    rotation = "Disabled"
    if key.rotation_seconds:
        rotation = "Enabled" if key.state is KeyState.ENABLED else "Suspended"
    return KeyMetadata(
        key_id=key.id,
        arn=place.key_arn(key.id),
        creator=key.creator,
        creation_date=key.created_on,
        key_state=key.state.value,
        key_spec=key.spec.value,
        key_usage=key.usage.value,
        protection_level=key.level.value,
        origin=key.origin.value,
        description=key.description,
        automatic_rotation=rotation,
        last_rotation_date=key.last_rotation_at,
        primary_key_version=key.primary.version_id,
        rotation_interval=f"{key.rotation_seconds}s" if key.rotation_seconds else None,
        next_rotation_date=key.next_rotation_at,
        delete_date=key.delete_at,
        deletion_protection=("Enabled" if key.protected else "Disabled") if with_protection else None,
        deletion_protection_description=(key.protection_description or None) if with_protection else None,
    )


def key_version(key: Key, version: Version) -> KeyVersion:
    assert version.activated_at is not None
    return KeyVersion(key.id, version.version_id, key.created_on if version.ordinal == 1 else version.activated_at)


def alias_item(key_id: str, name: str, place: Place) -> Alias:
    return Alias(key_id, name, place.alias_arn(name))
