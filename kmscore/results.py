"""What the operations answer: frozen objects whose fields are the wire's in snake case. Times are timezone-aware datetimes, UTC."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, Literal, TypeVar

from kmscore.domain.specs import ContentKind

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class KeyMetadata:
    """A key as DescribeKey tells it (SEMANTICS section 10). CreateKey answers it with `deletion_protection` None."""

    key_id: str
    arn: str
    creator: str
    creation_date: datetime
    key_state: str
    key_spec: str
    key_usage: str
    protection_level: str
    origin: str
    description: str
    automatic_rotation: str  # Enabled, Disabled, Suspended
    last_rotation_date: datetime
    primary_key_version: str | None = None  # symmetric keys
    rotation_interval: str | None = None  # seconds with the suffix s; Enabled or Suspended only
    next_rotation_date: datetime | None = None
    delete_date: datetime | None = None  # PendingDeletion only
    material_expire_time: datetime | None = None
    deletion_protection: str | None = None  # Enabled, Disabled
    deletion_protection_description: str | None = None
    dkms_instance_id: str | None = None


@dataclass(frozen=True, slots=True)
class KeyItem:
    key_id: str
    key_arn: str


@dataclass(frozen=True, slots=True)
class KeyVersion:
    key_id: str
    key_version_id: str
    creation_date: datetime


@dataclass(frozen=True, slots=True)
class Alias:
    key_id: str
    alias_name: str
    alias_arn: str


@dataclass(frozen=True, slots=True)
class Tag:
    key_id: str
    tag_key: str
    tag_value: str


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list; `total_count` counts the whole list."""

    items: tuple[T, ...]
    page_number: int
    page_size: int
    total_count: int


@dataclass(frozen=True, slots=True)
class TagPage:
    """`next_token` is empty at the end."""

    items: tuple[Tag, ...]
    next_token: str


@dataclass(frozen=True, slots=True)
class Encrypted:
    """Answer of encrypt and re_encrypt. re_encrypt names the source key and version (DECISIONS 29)."""

    ciphertext_blob: bytes
    key_id: str
    key_version_id: str


@dataclass(frozen=True, slots=True)
class Decrypted:
    plaintext: bytes = field(repr=False)
    key_id: str
    key_version_id: str
    content: ContentKind


@dataclass(frozen=True, slots=True)
class DataKey:
    """`plaintext` is None from generate_data_key_without_plaintext."""

    ciphertext_blob: bytes
    key_id: str
    key_version_id: str
    plaintext: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ExportedDataKey:
    """`exported_data_key` is the data key under the caller's public key; `ciphertext_blob` is None from export_data_key."""

    key_id: str
    key_version_id: str
    exported_data_key: bytes
    ciphertext_blob: bytes | None = None


@dataclass(frozen=True, slots=True)
class Signature:
    """RSA signatures are as long as the modulus, ECDSA ones DER (SEC 1 appendix C.8)."""

    key_id: str
    key_version_id: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Verified:
    key_id: str
    key_version_id: str
    value: bool


@dataclass(frozen=True, slots=True)
class AsymmetricEncrypted:
    key_id: str
    key_version_id: str
    ciphertext_blob: bytes


@dataclass(frozen=True, slots=True)
class AsymmetricDecrypted:
    plaintext: bytes = field(repr=False)
    key_id: str
    key_version_id: str


@dataclass(frozen=True, slots=True)
class PublicKey:
    """`public_key` is SubjectPublicKeyInfo in PEM."""

    key_id: str
    key_version_id: str
    public_key: str


@dataclass(frozen=True, slots=True)
class Mac:
    key_id: str
    algorithm: str
    mac: bytes


@dataclass(frozen=True, slots=True)
class MacVerified:
    key_id: str
    algorithm: str
    value: bool


@dataclass(frozen=True, slots=True)
class ImportParameters:
    """`public_key` is SubjectPublicKeyInfo in DER; it and `import_token` belong together."""

    key_id: str
    import_token: bytes
    public_key: bytes
    token_expire_time: datetime


@dataclass(frozen=True, slots=True)
class DueReport:
    """What run_due did: key ids. `expired`: imported material whose time was over was destroyed."""

    rotated: tuple[str, ...] = ()
    destroyed: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()  # (key id, code)
    expired: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DueStatus:
    """How due work stands. What is parked is in no backlog: it waits for a person, or for an hour."""

    backlog: int  # due and not done
    oldest_due_seconds: float  # of business time; 0 when nothing is due
    parked: int
    last_sweep_seconds_ago: float | None  # None: the scheduler never swept
    workers_alive: int  # processes of the scheduler


@dataclass(frozen=True, slots=True)
class SchedulerWorker:
    """A process of the scheduler, as it said of itself. Times are the machine's."""

    host: str
    pid: int
    started_at: datetime
    seen_at: datetime
    worked_at: datetime | None
    done: int
    failed: int
    alive: bool  # seen within the last half minute


@dataclass(frozen=True, slots=True)
class ReconcileReport:
    """What reconcile did and found."""

    abandoned: tuple[str, ...] = ()  # material ids of interrupted attempts, destroyed and recorded as abandoned
    finished: tuple[str, ...] = ()  # key ids whose interrupted destruction was finished
    removed: tuple[str, ...] = ()  # material ids that had been destroyed and were found again
    swept: int = 0  # nameless remains of killed calls
    quarantined: tuple[str, ...] = ()  # objects that no event explains: left alone, reported
    missing: tuple[str, ...] = ()  # live material ids that their custody no longer has
    pending: tuple[str, ...] = ()  # open intents that could not be settled now


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a doctor's report: `what` was found, and `do` says what to do about it (empty when nothing)."""

    level: Literal["ok", "warn", "fail"]
    what: str
    do: str = ""


# --- custodies, as the API calls them ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InstanceItem:
    kms_instance_id: str
    kms_instance_arn: str


@dataclass(frozen=True, slots=True)
class Instance:
    """A custody. `product_type` is its protection level, `product_version` what the token or this program says of itself."""

    instance_id: str
    instance_name: str
    status: str  # Connected, Error
    create_time: datetime  # of the home
    product_type: str
    product_version: str
    key_num: int
    ca_certificate_chain_pem: str = ""


@dataclass(frozen=True, slots=True)
class Moved:
    """A store that was moved to another database."""

    where: str
    events: int
    rows: int  # with the events
    already: bool  # it had been copied before; only the mark was missing, or nothing
    kept: str = ""  # what became of the database that lay where this one is now


# --- who may do what ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UserItem:
    user_name: str
    arn: str
    policy: str  # the text of it; empty: none


@dataclass(frozen=True, slots=True)
class AccessKey:
    access_key_id: str
    user_name: str
    status: str  # Active, Inactive
    create_date: datetime
    last_used_date: datetime | None  # exact to a minute; None: never


@dataclass(frozen=True, slots=True)
class NewAccessKey:
    access_key_id: str
    access_key_secret: str = field(repr=False)
    user_name: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a simulation says of one caller. `able`: they have an access key that is enabled."""

    arn: str
    allowed: bool
    why: str
    able: bool
