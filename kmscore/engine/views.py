"""What the key ring holds of a key: immutable views, with the material of each version ready for use or not."""

from __future__ import annotations

import threading
from datetime import datetime

from kmscore.custody.port import Loaded, MaterialRef
from kmscore.domain.envelope import NO_CONTEXT, pack_header
from kmscore.domain.key import Key
from kmscore.domain.policy import KeyPolicy, parse_key_policy
from kmscore.domain.specs import ContentKind, Origin, Suite
from kmscore.domain.versions import Version
from kmscore.errors import KmsError

KINDS = (ContentKind.RAW, ContentKind.TEXT)


class VersionUse:
    """One version of a key, ready to be used. `loaded` is None until it is loaded, and again after it was idle."""

    __slots__ = ("aad", "header", "idle", "key_id", "left", "loaded", "loading", "ref", "usable", "version_id")

    def __init__(self, key: Key, version: Version) -> None:
        self.key_id = key.id
        self.version_id = version.version_id
        self.ref = material_ref(key, version)
        self.header: tuple[bytes, ...] = ()
        if version.suite is not Suite.NONE:
            self.header = tuple(pack_header(version.suite, kind, version.version_id) for kind in KINDS)
        self.aad = tuple(header + NO_CONTEXT for header in self.header)
        self.loaded: Loaded | None = None
        self.loading = threading.Lock()
        self.usable = True  # as the view says that it is in
        self.idle = False
        self.left = 0  # suite 2: reserved uses that are left (crypto.py)


class KeyView:
    """What a use of a key needs to know. Replaced, never changed, when the key's events change.

    `timed`: it is true only from `since` to `until`, because imported material ends, or takes over; a clock may also go back.
    """

    __slots__ = ("encrypts", "key", "policy", "primary", "since", "timed", "until", "usable", "uses")

    def __init__(self, key: Key, before: KeyView | None, now: datetime, account_id: str) -> None:
        self.key = key
        self.policy = _policy(key.policy, account_id)
        self.usable = not key.destruction_started and key.delete_at is None and key.enabled
        self.uses: dict[str, VersionUse] = {}
        for version in key.versions:
            use = before.uses.get(version.version_id) if before is not None else None
            if use is None or use.ref.material_id.hex() != version.material_id:  # imported again
                use = VersionUse(key, version)
            use.usable = version.usable(now)
            self.uses[version.version_id] = use
        primary = key.primary(now)
        self.primary = self.uses[primary.version_id] if primary is not None else None
        self.encrypts = self.usable and self.primary is not None and self.primary.usable and bool(self.primary.header)
        instants = [v.expires_at for v in key.versions if v.held] + [v.primary_at for v in key.versions if not v.noted]
        told = [instant for instant in instants if instant is not None]
        self.timed = bool(told)
        self.since = max((instant for instant in told if instant <= now), default=None)
        self.until = min((instant for instant in told if instant > now), default=None)

    def true_at(self, now: datetime) -> bool:
        return (self.since is None or now >= self.since) and (self.until is None or now < self.until)


def _policy(text: str, account_id: str) -> KeyPolicy | None:
    """One that is not understood (the account has another id now, say) allows nobody anything, but for the owner of the home."""
    try:
        return parse_key_policy(text, account_id) if text else None
    except KmsError:
        return KeyPolicy(())


def material_ref(key: Key, version: Version) -> MaterialRef:
    """What a custody knows of a version."""
    imported = key.origin is Origin.EXTERNAL
    return MaterialRef(bytes.fromhex(version.material_id), key.spec, version.suite, key.usage, imported, version.public_key)
