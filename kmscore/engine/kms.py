"""Kms: one method for each operation of the API. Checks what the caller passed, resolves names, and hands over to the rooms that work."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kmscore.config import Settings
from kmscore.custody.port import Buffer
from kmscore.domain.by import By
from kmscore.domain.key import Key, NewKey
from kmscore.domain.schedule import MAX_DELETION_DAYS, MIN_DELETION_DAYS, rotation_seconds
from kmscore.domain.specs import SPECS, ContentKind, KeySpec, KeyUsage, Origin, ProtectionLevel
from kmscore.engine.arguments import choice, filter_map, flag, items, key_id_only, page_bounds, required, string_map, whole
from kmscore.engine.crypto import Context
from kmscore.engine.describe import alias_item, key_metadata, key_version
from kmscore.engine.keyring import KINDS
from kmscore.engine.services import Services
from kmscore.errors import KmsError, SetupError, forked, invalid, key_not_found, missing
from kmscore.results import (
    Alias,
    DataKey,
    Decrypted,
    DueReport,
    Encrypted,
    Finding,
    KeyItem,
    KeyMetadata,
    KeyVersion,
    Page,
    ReconcileReport,
    Tag,
    TagPage,
)


class Kms:
    """An open engine on one home. Made by `kmscore.open_kms`; thread-safe; not usable in a forked child."""

    def __init__(self, services: Services, close: Callable[[], None]) -> None:
        self._services = services
        self._crypto = services.crypto
        self._close: Callable[[], None] | None = close
        self._pid = os.getpid()
        atexit.register(self.close)  # before the interpreter takes the module's memory away

    @property
    def _s(self) -> Services:
        if os.getpid() != self._pid:  # encrypt and decrypt do not come by here: the core refuses by itself
            raise forked()
        if self._close is None:
            raise closed()
        return self._services

    @property
    def settings(self) -> Settings:
        return self._services.settings

    def close(self) -> None:
        """Stop the threads, drop every session key, leave the token. Idempotent."""
        atexit.unregister(self.close)
        close, self._close = self._close, None
        self._crypto = _Closed()  # type: ignore[assignment]
        if close is not None and os.getpid() == self._pid:
            close()

    def __enter__(self) -> Kms:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- keys --------------------------------------------------------------------------------------------------------------------

    def create_key(
        self,
        *,
        key_spec: str = KeySpec.AES_256,
        key_usage: str | None = None,
        origin: str = Origin.KMS,
        protection_level: str | None = None,
        description: str = "",
        enable_automatic_rotation: bool = False,
        rotation_interval: str | None = None,
        tags: Mapping[str, str] | None = None,
        dkms_instance_id: str | None = None,
    ) -> KeyMetadata:
        """Make a key. Durable, verified and usable on return; level SOFTWARE unless asked otherwise."""
        spec = choice(KeySpec, key_spec, "KeySpec")
        if choice(Origin, origin, "Origin") is Origin.EXTERNAL:
            raise KmsError("Unsupported.Origin", "Import of key material is not offered.")
        if dkms_instance_id:
            raise KmsError("Forbidden.DKMSInstanceNotFound", "The specified KMS instance is not found.")
        new = NewKey(
            spec=spec,
            usage=choice(KeyUsage, key_usage, "KeyUsage") if key_usage else SPECS[spec].usages[0],
            origin=Origin.KMS,
            level=choice(ProtectionLevel, protection_level or ProtectionLevel.SOFTWARE, "ProtectionLevel"),
            creator=self._s.settings.account_id,
            description=description,
            tags=string_map(tags, "Tags") if tags else None,
            rotation_seconds=_rotation(enable_automatic_rotation, rotation_interval),
        )
        self._check_quota("keys", self._s.settings.max_keys)
        return key_metadata(self._s.lifecycle.create(new), self._s.place, with_protection=False)

    def describe_key(self, key_id: str) -> KeyMetadata:
        return key_metadata(self._load(key_id), self._s.place)

    def list_keys(self, *, page_number: int = 1, page_size: int = 10, filters: Mapping[str, Sequence[str]] | None = None) -> Page[KeyItem]:
        limit, offset = page_bounds(page_number, page_size)
        ids, total = self._s.queries.list_keys(self._s.clock.now(), filter_map(filters), limit, offset)
        return Page(tuple(KeyItem(i, self._s.place.key_arn(i)) for i in ids), page_number, page_size, total)

    def update_key_description(self, key_id: str, *, description: str) -> None:
        self._change(key_id, lambda key, by: key.describe(description, by))

    def enable_key(self, key_id: str) -> None:
        self._change(key_id, Key.enable)

    def disable_key(self, key_id: str) -> None:
        """When it returns, every use of the key that starts later is refused, in every process on this home."""
        self._change(key_id, Key.disable)

    def schedule_key_deletion(self, key_id: str, *, pending_window_in_days: int) -> None:
        whole(pending_window_in_days, "PendingWindowInDays", MIN_DELETION_DAYS, MAX_DELETION_DAYS)
        self._change(key_id, lambda key, by: key.schedule_deletion(pending_window_in_days, by))

    def cancel_key_deletion(self, key_id: str) -> None:
        self._change(key_id, Key.cancel_deletion)

    def set_deletion_protection(
        self,
        key_id: str | None = None,
        *,
        enable_deletion_protection: bool,
        deletion_protection_description: str | None = None,
        protected_resource_arn: str | None = None,
    ) -> None:
        """The key is named by its id, or by its ARN in `protected_resource_arn`; when both are given they must agree."""
        if not key_id and not protected_resource_arn:
            raise missing("ProtectedResourceArn")
        named = self._own_id(protected_resource_arn or key_id)
        if key_id and self._own_id(key_id) != named:
            raise invalid("ProtectedResourceArn", "It names another key than KeyId.")
        protected = flag(enable_deletion_protection, "EnableDeletionProtection")
        text = deletion_protection_description or ""
        self._change(named, lambda key, by: key.protect(protected, text, by))

    # --- versions and rotation ---------------------------------------------------------------------------------------------------

    def create_key_version(self, key_id: str) -> KeyVersion:
        limits = self._s.settings

        def check(key: Key, by: By) -> None:
            key.check_new_version(by.now, min_days=limits.key_version_min_days, max_versions=limits.max_key_versions)

        return self._rotate(key_id, check)

    def rotate_key(self, key_id: str) -> KeyVersion:
        """Rotate now, whatever the policy says: a new version becomes the primary one, older ones still decrypt."""

        def check(key: Key, by: By) -> None:
            key.check("RotateKey", by.now)
            key.check_rotatable()

        return self._rotate(key_id, check)

    def describe_key_version(self, key_id: str, *, key_version_id: str) -> KeyVersion:
        key = self._load(key_id)
        return key_version(key, key.get_version(required(key_version_id, "KeyVersionId")))

    def list_key_versions(self, key_id: str, *, page_number: int = 1, page_size: int = 10) -> Page[KeyVersion]:
        limit, offset = page_bounds(page_number, page_size)
        key = self._load(key_id)
        chosen = key.versions[offset : offset + limit]
        return Page(tuple(key_version(key, v) for v in chosen), page_number, page_size, len(key.versions))

    def update_rotation_policy(self, key_id: str, *, enable_automatic_rotation: bool, rotation_interval: str | None = None) -> None:
        seconds = _rotation(enable_automatic_rotation, rotation_interval)
        (key,) = self._change(key_id, lambda key, by: key.change_rotation(seconds, by))
        if key.rotation_due(self._s.clock.now()):  # the interval is over already: rotation is immediate (SEMANTICS section 3)
            self._s.due.rotate(key.id)

    # --- aliases -----------------------------------------------------------------------------------------------------------------

    def create_alias(self, key_id: str, *, alias_name: str) -> None:
        self._check_quota("aliases", self._s.settings.max_aliases)
        self._s.lifecycle.bind_alias(required(alias_name, "AliasName"), self._own_id(key_id))

    def update_alias(self, key_id: str, *, alias_name: str) -> None:
        self._s.lifecycle.rebind_alias(required(alias_name, "AliasName"), self._own_id(key_id))

    def delete_alias(self, *, alias_name: str) -> None:
        self._s.lifecycle.delete_alias(required(alias_name, "AliasName"))

    def list_aliases(self, *, page_number: int = 1, page_size: int = 10) -> Page[Alias]:
        return self._aliases(None, page_number, page_size)

    def list_aliases_by_key_id(self, key_id: str, *, page_number: int = 1, page_size: int = 10) -> Page[Alias]:
        named = self._own_id(key_id)
        self._s.lifecycle.load(named)
        return self._aliases(named, page_number, page_size)

    # --- tags --------------------------------------------------------------------------------------------------------------------

    def tag_resource(self, key_id: str, *, tags: Mapping[str, str]) -> None:
        self._s.tagging.tag(key_id, tags)

    def untag_resource(self, key_id: str, *, tag_keys: Sequence[str]) -> None:
        self._s.tagging.untag(key_id, tag_keys)

    def list_resource_tags(self, key_id: str) -> tuple[Tag, ...]:
        return self._s.tagging.of(key_id)

    def tag_resources(
        self, *, resource_id: Sequence[str], tag: Mapping[str, str], resource_type: str = "key", region_id: str | None = None
    ) -> None:
        """Tag up to 50 keys, all or none of them."""
        self._s.tagging.tag_all(resource_id, tag, resource_type)

    def untag_resources(
        self,
        *,
        resource_id: Sequence[str],
        tag_key: Sequence[str] = (),
        all: bool = False,
        resource_type: str = "key",
        region_id: str | None = None,
    ) -> None:
        self._s.tagging.untag_all(resource_id, tag_key, all, resource_type)

    def list_tag_resources(
        self,
        *,
        resource_id: Sequence[str] = (),
        tag: Mapping[str, str | None] | None = None,
        next_token: str = "",
        resource_type: str = "key",
        region_id: str | None = None,
    ) -> TagPage:
        return self._s.tagging.list(resource_id, tag, next_token, resource_type)

    # --- cryptography ------------------------------------------------------------------------------------------------------------

    def encrypt(
        self, key_id: str, plaintext: Buffer, encryption_context: Context = None, *, content: ContentKind = ContentKind.RAW
    ) -> Encrypted:
        """Encrypt 1 to 6,144 bytes under the primary version of a key named by id, alias or ARN."""
        kind = content if content in KINDS else choice(ContentKind, "", "Content")
        return self._crypto.encrypt(key_id, plaintext, encryption_context, kind)

    def decrypt(self, ciphertext_blob: Buffer, encryption_context: Context = None) -> Decrypted:
        return self._crypto.decrypt(ciphertext_blob, encryption_context)

    def encrypt_batch(self, key_id: str, plaintexts: Sequence[Buffer], encryption_context: Context = None) -> list[bytes]:
        """One blob for each plaintext. Raises the KmsError of the first item that failed, named by its index."""
        return _all_or_raise(self._crypto.encrypt_batch(key_id, items(plaintexts, "Plaintexts"), encryption_context))

    def decrypt_batch(self, ciphertext_blobs: Sequence[Buffer], encryption_context: Context = None) -> list[bytes]:
        """One plaintext for each blob, of one or several keys. Raises as `encrypt_batch` does."""
        return _all_or_raise(self._crypto.decrypt_batch(items(ciphertext_blobs, "CiphertextBlobs"), encryption_context))

    def try_encrypt_batch(self, key_id: str, plaintexts: Sequence[Buffer], encryption_context: Context = None) -> list[bytes | KmsError]:
        """As `encrypt_batch`, with the KmsError of a failed item in its place."""
        return self._crypto.encrypt_batch(key_id, items(plaintexts, "Plaintexts"), encryption_context)

    def try_decrypt_batch(self, ciphertext_blobs: Sequence[Buffer], encryption_context: Context = None) -> list[bytes | KmsError]:
        """As `decrypt_batch`, with the KmsError of a failed item in its place."""
        return self._crypto.decrypt_batch(items(ciphertext_blobs, "CiphertextBlobs"), encryption_context)

    def re_encrypt(
        self,
        ciphertext_blob: Buffer,
        *,
        destination_key_id: str,
        source_encryption_context: Context = None,
        destination_encryption_context: Context = None,
    ) -> Encrypted:
        """Encrypt the content of a blob anew. The plaintext stays in the core; the answer names the source key (DECISIONS 29)."""
        return self._crypto.re_encrypt(
            ciphertext_blob,
            required(destination_key_id, "DestinationKeyId"),
            source_encryption_context,
            destination_encryption_context,
        )

    def generate_data_key(
        self,
        key_id: str,
        *,
        key_spec: str | None = None,
        number_of_bytes: int | None = None,
        encryption_context: Context = None,
    ) -> DataKey:
        return self._crypto.data_key(key_id, key_spec, number_of_bytes, encryption_context, reveal=True)

    def generate_data_key_without_plaintext(
        self,
        key_id: str,
        *,
        key_spec: str | None = None,
        number_of_bytes: int | None = None,
        encryption_context: Context = None,
    ) -> DataKey:
        return self._crypto.data_key(key_id, key_spec, number_of_bytes, encryption_context, reveal=False)

    # --- beyond the wire ---------------------------------------------------------------------------------------------------------

    def run_due(self) -> DueReport:
        """Rotate and destroy whatever is due now."""
        return self._s.due.run()

    def reconcile(self) -> ReconcileReport:
        """Finish or give up interrupted work, and compare every object of every custody with the events."""
        return self._s.reconciler.reconcile()

    def doctor(self) -> list[Finding]:
        """What is as it must be, what is not, and what to do about it."""
        return self._s.examine()

    def history(self, key_id: str) -> list[dict[str, Any]]:
        """Every event of a key, oldest first, also of one that is destroyed: `event`, `time`, `actor` and its own fields."""
        named = self._own_id(key_id)
        key = self._s.store.key(named)
        if key is None or key.system:
            raise key_not_found()
        events = []
        for event in self._s.store.events(named):
            facts = dict(vars(event))
            for name in ("originator_id", "originator_topic", "command_id"):
                facts.pop(name, None)
            events.append(
                {
                    "version": facts.pop("originator_version"),
                    "time": facts.pop("timestamp"),
                    "event": type(event).__name__,
                    "actor": facts.pop("actor"),
                    "facts": facts,
                }
            )
        return events

    # --- how -----------------------------------------------------------------------------------------------------------------------

    def _load(self, reference: str) -> Key:
        return self._s.lifecycle.load(self._s.ring.resolve(reference))

    def _change(self, key_id: str, decide: Callable[[Key, By], None]) -> tuple[Key, ...]:
        return self._s.lifecycle.change((self._own_id(key_id),), decide)

    def _rotate(self, reference: str, check: Callable[[Key, By], None]) -> KeyVersion:
        key = self._s.lifecycle.rotate(self._s.ring.resolve(reference), check)
        return key_version(key, key.primary)

    def _own_id(self, reference: str | None) -> str:
        return key_id_only(reference, self._s.place)

    def _aliases(self, key_id: str | None, page_number: int, page_size: int) -> Page[Alias]:
        limit, offset = page_bounds(page_number, page_size)
        rows, total = self._s.queries.list_aliases(self._s.clock.now(), key_id, limit, offset)
        return Page(tuple(alias_item(key, name, self._s.place) for key, name in rows), page_number, page_size, total)

    def _check_quota(self, table: str, limit: int) -> None:
        if limit and self._s.queries.count(table) >= limit:
            raise KmsError("Rejected.LimitExceeded", f"The quota of {limit} {table} is used up.")


class _Closed:
    """In the place of the cryptography of an engine that was closed."""

    def __getattr__(self, name: str) -> None:
        raise closed()


def closed() -> SetupError:
    return SetupError("this engine is closed")


def _rotation(enabled: bool, interval: str | None) -> int:
    return rotation_seconds(interval) if flag(enabled, "EnableAutomaticRotation") else 0


def _all_or_raise(results: Iterable[bytes | KmsError]) -> list[bytes]:
    answers = []
    for index, item in enumerate(results):
        if isinstance(item, KmsError):
            raise KmsError(item.code, f"item {index}: {item.message}")
        answers.append(item)
    return answers
