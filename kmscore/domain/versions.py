"""One version of a key and the attempt that makes one. Pure values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from kmscore.domain.names import check_description, check_tags
from kmscore.domain.specs import SPECS, Family, KeySpec, KeyUsage, Origin, ProtectionLevel, Suite
from kmscore.errors import KmsError, invalid


@dataclass(frozen=True, slots=True)
class Version:
    """`ordinal` counts from 1; `material_id` is 32 hex digits. `primary_at`: from when on it is the primary one."""

    ordinal: int
    version_id: str
    material_id: str
    suite: Suite
    activated_at: datetime
    primary_at: datetime
    public_key: bytes = b""
    """Of asymmetric keys: SubjectPublicKeyInfo, DER."""
    digest: str = ""
    """Of imported material: a keyed digest of its check value, so that only the same material is taken again."""
    expires_at: datetime | None = None
    held: bool = True
    """False once its material was deleted or recorded as expired; the same material can be imported again."""
    noted: bool = True
    """False while the log does not say yet that it became the primary one."""

    def usable(self, now: datetime) -> bool:
        """Whether its material may be used: also where no scheduler has recorded an expiry yet."""
        return self.held and self.in_time(now)

    def in_time(self, now: datetime) -> bool:
        return self.expires_at is None or now < self.expires_at


@dataclass(frozen=True, slots=True)
class Attempt:
    """An open intent: material that was asked for and is not there yet. `offer` names the import offer it comes through, if any."""

    ordinal: int
    version_id: str
    material_id: str
    suite: Suite
    offer: str


@dataclass(frozen=True, slots=True)
class NewMaterial:
    """Identifiers of one attempt, drawn by the engine before it asks."""

    version_id: str
    material_id: bytes
    suite: Suite
    offer: str = ""


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import found and what its caller wants of it. `digest` is 64 hex digits; `primary_at` None: at once.

    `lost`: the custody no longer has what the key's events say it has; what came now takes its place.
    """

    facts: Mapping[str, str | int | bool]
    digest: str
    expires_at: datetime | None
    primary_at: datetime | None
    lost: bool = False


@dataclass(frozen=True, slots=True)
class NewKey:
    """A validated CreateKey. Raises KmsError InvalidParameter or UnsupportedOperation on construction."""

    spec: KeySpec
    usage: KeyUsage
    origin: Origin
    level: ProtectionLevel
    creator: str  # the account
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    rotation_seconds: int = 0
    instance_id: str = ""
    policy: str = ""  # a key policy that was checked; empty: none
    system: bool = False

    def __post_init__(self) -> None:
        facts = SPECS[self.spec]
        if self.usage not in facts.usages and not self.system:
            raise invalid("KeyUsage", f"{self.spec.value} keys are for {' or '.join(usage.value for usage in facts.usages)}.")
        if self.origin is Origin.EXTERNAL and not facts.importable:
            raise KmsError("UnsupportedOperation", f"Import of {self.spec.value} material is not offered.")
        if self.rotation_seconds and not (facts.family is Family.AES and self.origin is Origin.KMS):
            raise KmsError("UnsupportedOperation", "Keys of this kind do not rotate automatically.")
        check_description(self.description)
        check_tags(self.tags)
