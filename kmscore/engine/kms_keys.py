"""Operations on keys: create, describe, switch, rotate, import, delete; their aliases and tags."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from kmscore.custody.port import Buffer
from kmscore.domain.by import By
from kmscore.domain.key import Key
from kmscore.domain.schedule import MAX_DELETION_DAYS, MIN_DELETION_DAYS, rotation_seconds
from kmscore.domain.specs import CALLER_USAGES, SPECS, KeySpec, KeyUsage, Origin, ProtectionLevel
from kmscore.domain.versions import NewKey
from kmscore.engine.arguments import choice, filter_map, flag, page_bounds, required, string_map, whole
from kmscore.engine.describe import alias_item, key_metadata, key_version
from kmscore.engine.engine import Engine
from kmscore.errors import KmsError, invalid, missing
from kmscore.results import Alias, ImportParameters, KeyItem, KeyMetadata, KeyVersion, Page, Tag, TagPage


class KeyOperations(Engine):
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
        policy: str | None = None,
    ) -> KeyMetadata:
        """Make a key. Durable, verified and usable on return; level SOFTWARE unless asked otherwise.

        Origin EXTERNAL: without material, in state PendingImport; see get_parameters_for_import. `dkms_instance_id` names a custody, and
        with it the level; `policy` is a key policy (set_key_policy).
        """
        spec = choice(KeySpec, key_spec, "KeySpec")
        level = choice(ProtectionLevel, protection_level or ProtectionLevel.SOFTWARE, "ProtectionLevel")
        if dkms_instance_id:
            named = self._s.instances.level_of(dkms_instance_id)
            if protection_level and level is not named:
                raise invalid("ProtectionLevel", f"The instance {dkms_instance_id} is of level {named.value}.")
            level = named
        if policy:
            self._s.authority.check_policy(policy, "new")
        new = NewKey(
            spec=spec,
            usage=_usage(key_usage) if key_usage else SPECS[spec].usages[0],
            origin=choice(Origin, origin, "Origin"),
            level=level,
            creator=self._s.settings.account_id,
            description=description,
            tags=string_map(tags, "Tags") if tags else {},
            rotation_seconds=_rotation(enable_automatic_rotation, rotation_interval),
            instance_id=dkms_instance_id or "",
            policy=policy or "",
        )
        self._check_quota("keys", self._s.settings.max_keys)
        return key_metadata(self._s.lifecycle.create(new), self._s.place, self._s.clock.now(), with_protection=False)

    def describe_key(self, key_id: str) -> KeyMetadata:
        return key_metadata(self._s.ring.view(key_id, "DescribeKey"), self._s.place, self._s.clock.now())

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
        return self._rotate(key_id, Key.check_rotation)

    def describe_key_version(self, key_id: str, *, key_version_id: str) -> KeyVersion:
        key = self._load(key_id)
        return key_version(key, key.get_version(required(key_version_id, "KeyVersionId")))

    def list_key_versions(self, key_id: str, *, page_number: int = 1, page_size: int = 10) -> Page[KeyVersion]:
        limit, offset = page_bounds(page_number, page_size)
        key = self._load(key_id)
        chosen = key.versions[offset : offset + limit]
        return Page(tuple(key_version(key, v) for v in chosen), page_number, page_size, len(key.versions))

    def update_rotation_policy(self, key_id: str, *, enable_automatic_rotation: bool, rotation_interval: str | None = None) -> None:
        self._change_rotation(key_id, enable_automatic_rotation, rotation_interval, extended=False)

    def update_extended_rotation_policy(
        self, key_id: str, *, enable_automatic_rotation: bool, rotation_interval: str | None = None
    ) -> None:
        """As update_rotation_policy, for asymmetric keys as well: an extension. Callers name the version they use, so nothing breaks."""
        self._change_rotation(key_id, enable_automatic_rotation, rotation_interval, extended=True)

    # --- import ------------------------------------------------------------------------------------------------------------------

    def get_parameters_for_import(self, key_id: str, *, wrapping_algorithm: str, wrapping_key_spec: str) -> ImportParameters:
        """A public key to wrap material under, and the import token that belongs to it: good for 24 hours, and for 8 failed attempts."""
        return self._s.importing.parameters(self._own_id(key_id), wrapping_algorithm, wrapping_key_spec)

    def import_key_material(
        self, key_id: str, *, encrypted_key_material: Buffer, import_token: Buffer, key_material_expire_unix: int | None = None
    ) -> None:
        """Give a key its material, or the same material again. Durable, compared and self-tested on return.

        `key_material_expire_unix`: from then on it is not used, and destroyed; 0 or None: it does not expire.
        """
        named = self._own_id(key_id)
        self._s.importing.import_material(named, encrypted_key_material, import_token, key_material_expire_unix, None, following=False)

    def import_next_key_material(
        self,
        key_id: str,
        *,
        encrypted_key_material: Buffer,
        import_token: Buffer,
        key_material_activate_unix: int | None = None,
        key_material_expire_unix: int | None = None,
    ) -> None:
        """Import the material of the next version ahead: an extension. It becomes the primary one at its date, now if none is given."""
        self._s.importing.import_material(
            self._own_id(key_id),
            encrypted_key_material,
            import_token,
            key_material_expire_unix,
            key_material_activate_unix,
            following=True,
        )

    def delete_key_material(self, key_id: str) -> None:
        """Destroy all imported material of a key, durably; importing the same again restores the use of older ciphertext."""
        self._s.importing.delete(self._own_id(key_id))

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

    # --- how -----------------------------------------------------------------------------------------------------------------------

    def _change_rotation(self, key_id: str, enabled: bool, interval: str | None, *, extended: bool) -> None:
        seconds = _rotation(enabled, interval)
        (key,) = self._change(key_id, lambda key, by: key.change_rotation(seconds, by, extended=extended))
        if key.rotation_due(self._s.clock.now()):  # the interval is over already: rotation is immediate (SEMANTICS section 3)
            self._s.due.rotate(key.id)

    def _rotate(self, reference: str, check: Callable[[Key, By], None]) -> KeyVersion:
        key = self._s.lifecycle.rotate(self._s.ring.resolve(reference), check)
        return key_version(key, key.versions[-1])

    def _aliases(self, key_id: str | None, page_number: int, page_size: int) -> Page[Alias]:
        limit, offset = page_bounds(page_number, page_size)
        rows, total = self._s.queries.list_aliases(self._s.clock.now(), key_id, limit, offset)
        return Page(tuple(alias_item(key, name, self._s.place) for key, name in rows), page_number, page_size, total)

    def _check_quota(self, table: str, limit: int) -> None:
        if limit and self._s.queries.count(table) >= limit:
            raise KmsError("Rejected.LimitExceeded", f"The quota of {limit} {table} is used up.")


def _rotation(enabled: bool, interval: str | None) -> int:
    return rotation_seconds(interval) if flag(enabled, "EnableAutomaticRotation") else 0


def _usage(value: str) -> KeyUsage:
    usage = choice(KeyUsage, value, "KeyUsage")
    if usage not in CALLER_USAGES:
        raise invalid("KeyUsage", f"It is one of {', '.join(CALLER_USAGES)}.")
    return usage
