"""The key ring: immutable views of keys, known to be fresh, with their material ready for use. The hot path looks here and nowhere else.

Built from events only, so material without a recorded outcome is never used. Knows no command and no event.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping

from kmscore.clock import Clock
from kmscore.custody.port import AeadKey, Buffer, Keeper, MaterialRef, keeper_at
from kmscore.domain.alias import alias_not_found
from kmscore.domain.envelope import NO_CONTEXT, pack_header, parse_header
from kmscore.domain.key import Key, Version
from kmscore.domain.names import ALIAS_PREFIX, Place
from kmscore.domain.specs import ContentKind, ProtectionLevel
from kmscore.domain.states import REFUSALS
from kmscore.engine.arguments import required
from kmscore.errors import KmsError, forked, key_not_found, undecryptable
from kmscore.store.freshness import Freshness
from kmscore.store.keystore import KeyStore
from kmscore.store.queries import Queries

KINDS = (ContentKind.RAW, ContentKind.TEXT)
USE = "Encrypt"  # the row of the state table that every use of material shares


class VersionUse:
    """One version of a key, ready to be used. `aead` is None until it is loaded, and again after it was idle."""

    __slots__ = ("aad", "aead", "header", "idle", "key_id", "left", "loading", "ref", "version_id")

    def __init__(self, key: Key, version: Version) -> None:
        self.key_id = key.id
        self.version_id = version.version_id
        self.ref = MaterialRef(bytes.fromhex(version.material_id), key.spec, version.suite)
        self.header = tuple(pack_header(version.suite, kind, version.version_id) for kind in KINDS)
        self.aad = tuple(header + NO_CONTEXT for header in self.header)
        self.aead: AeadKey | None = None
        self.loading = threading.Lock()
        self.idle = False
        self.left = 0  # suite 2: reserved uses that are left (crypto.py)


class KeyView:
    """What a use of a key needs to know. Replaced, never changed, when the key's events change."""

    __slots__ = ("key", "primary", "usable", "uses")

    def __init__(self, key: Key, before: KeyView | None) -> None:
        self.key = key
        self.usable = key.state not in REFUSALS[USE] and not key.destruction_started
        known: dict[str, VersionUse] = before.uses if before is not None else {}
        self.uses: dict[str, VersionUse] = {v.version_id: known.get(v.version_id) or VersionUse(key, v) for v in key.versions}
        self.primary = self.uses[key.primary.version_id]


class KeyRing:
    def __init__(
        self,
        store: KeyStore,
        queries: Queries,
        freshness: Freshness,
        keepers: Mapping[ProtectionLevel, Keeper],
        clock: Clock,
        place: Place,
    ) -> None:
        self._store = store
        self._queries = queries
        self._freshness = freshness
        self._gate = freshness.gate
        self._keepers = keepers
        self._clock = clock
        self._place = place
        self._lock = threading.RLock()
        self._views: dict[str, KeyView] = {}
        self._by_header: dict[bytes, tuple[KeyView, VersionUse, ContentKind]] = {}
        self._names: dict[str, str] = {}
        self._retired: list[AeadKey] = []
        self._loading: dict[str, str] = {}  # version id -> key id of what is being loaded now
        self._pid = os.getpid()
        self._position = queries.position()
        self._seen = -1
        self.refresh()

    # --- for the hot path --------------------------------------------------------------------------------------------------------

    def to_encrypt(self, reference: str) -> VersionUse:
        """The primary version of a key named by id, alias or ARN, loaded, known to be fresh and usable now.

        Raises KmsError: Forbidden.KeyNotFound, Forbidden.AliasNotFound, Rejected.<state>, Rejected.Unavailable.
        """
        if self._gate.generation != self._seen:
            self.refresh()
        view = self._views.get(reference) if type(reference) is str else None
        if view is None:
            view = self._view(self.resolve(reference))
        if not view.usable:
            self._refuse(view)
        return self._ready(view.primary, view)

    def to_decrypt(self, header: bytes, blob: Buffer) -> tuple[VersionUse, ContentKind]:
        """The version that the header of a blob names, loaded, known to be fresh and usable now, and the kind of the content.

        Raises as `to_encrypt` does, and the one opaque error for a blob that is malformed.
        """
        if self._gate.generation != self._seen:
            self.refresh()
        found = self._by_header.get(header)
        if found is None:
            found = self._find(header, blob)
        view, use, content = found
        if not view.usable:
            self._refuse(view)
        return self._ready(use, view), content

    def _find(self, header: bytes, blob: Buffer) -> tuple[KeyView, VersionUse, ContentKind]:
        """What a header means that no view of this process has: strictly parsed, then looked up."""
        claim = parse_header(blob)
        key_id = self._queries.key_of_version(claim.version_id)
        if key_id is None:
            raise key_not_found()
        self._view(key_id)
        found = self._by_header.get(header)
        if found is None:  # the version exists, and has another suite
            raise undecryptable()
        return found

    def _ready(self, use: VersionUse, view: KeyView) -> VersionUse:
        use.idle = False
        if use.aead is None:
            self._load(use, view)
        return use

    def _refuse(self, view: KeyView) -> None:
        view.key.check(USE, self._clock.now())
        raise KmsError("ServiceUnavailableTemporary", "the key is changing; try again")

    # --- names -------------------------------------------------------------------------------------------------------------------

    def resolve(self, reference: str) -> str:
        """A key id out of an id, an alias or an ARN. Whether the key exists is not looked at unless an alias says so."""
        name = self._place.strip(required(reference, "KeyId"))
        if not name.startswith(ALIAS_PREFIX):
            return name
        if self._gate.generation != self._seen:
            self.refresh()
        key_id = self._names.get(name)
        if key_id is None:
            self._check_process()
            with self._lock:  # from before the read until it is kept: a rebind in between is taken in by the refresh that waits for us
                key_id = self._queries.key_of_alias(name)
                if key_id is None:
                    raise alias_not_found()
                self._names[name] = key_id
        return key_id

    # --- freshness ---------------------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Take in what was committed since the views were built. Raises KmsError when the store cannot be read: no view is used then."""
        self._check_process()
        with self._lock:
            generation = self._gate.generation  # read before the events: a later bump brings us here again
            position, changed = self._queries.changed_since(self._position)
            for stream in changed:
                if stream.startswith(ALIAS_PREFIX):
                    self._names.pop(stream, None)
                elif stream in self._views and self._rebuild(stream).key.destroyed:
                    self._forget(stream)
            self._position = position
            self._seen = generation
        self.settle()

    def doubt(self) -> None:
        """Look at the store before the next use, whatever the generation says."""
        self._seen = -1

    def stale(self) -> bool:
        """Whether the log holds events that were never announced to this process: a writer died, or is between commit and bump."""
        return self._queries.position() != self._position

    def settle(self) -> None:
        """Publish what this process has seen, once no session key of a dropped view is left."""
        with self._lock:
            self._retired = [aead for aead in self._retired if not aead.retire()]
            forbidden = any(not self._views[key_id].usable for key_id in self._loading.values() if key_id in self._views)
            if not self._retired and not forbidden and self._seen >= 0:
                self._freshness.publish(self._seen)

    def drop_idle(self) -> None:
        """Give up session keys that were not used since the last call."""
        with self._lock:
            for view in self._views.values():
                for use in view.uses.values():
                    if use.aead is not None and use.idle:
                        self._unload(use)
                    use.idle = True
        self.settle()

    def reload(self, use: VersionUse) -> None:
        """Throw away what is loaded of a version whose material did not answer; the next use looks for it again."""
        with self._lock:
            self._unload(use)

    def close(self) -> None:
        with self._lock:
            for view in self._views.values():
                for use in view.uses.values():
                    self._unload(use)
            self._views.clear()
            self._by_header.clear()
            for aead in self._retired:
                aead.retire()

    # --- how -----------------------------------------------------------------------------------------------------------------------

    def _view(self, key_id: str) -> KeyView:
        self._check_process()
        with self._lock:
            return self._views.get(key_id) or self._rebuild(key_id)

    def _rebuild(self, key_id: str) -> KeyView:
        before = self._views.get(key_id)
        key = self._store.key(key_id)
        if key is None or key.system or not key.versions:
            raise key_not_found()
        view = KeyView(key, before)
        if not view.usable:
            for use in view.uses.values():
                self._unload(use)
        self._views[key_id] = view
        for use in view.uses.values():
            for kind in KINDS:
                self._by_header[use.header[kind]] = (view, use, kind)
        return view

    def _load(self, use: VersionUse, view: KeyView) -> None:
        """Load the material of a version. A custody that stalls holds up those who want this version, and nobody else."""
        self._check_process()
        keeper = keeper_at(self._keepers, view.key.level)
        with use.loading:
            with self._lock:
                self._check_current(use, view)
                if use.aead is not None:
                    return
                self._loading[use.version_id] = use.key_id
            try:
                aead = keeper.load(use.ref)
                with self._lock:
                    self._retired.append(aead)  # until it is known that it may be used
                    self._check_current(use, view)
                    self._retired.remove(aead)
                    use.aead = aead
            finally:
                with self._lock:
                    del self._loading[use.version_id]
                self.settle()

    def _check_current(self, use: VersionUse, view: KeyView) -> None:
        current = self._views.get(use.key_id)
        if current is None or not current.usable or current.uses.get(use.version_id) is not use:
            self._refuse(current or view)

    def _forget(self, key_id: str) -> None:
        """Drop what is known of a key that is destroyed."""
        for use in self._views.pop(key_id).uses.values():
            for kind in KINDS:
                self._by_header.pop(use.header[kind], None)

    def _check_process(self) -> None:
        # Before any lock: in a forked child it may be held for ever by a thread that is not there.
        if os.getpid() != self._pid:
            raise forked()

    def _unload(self, use: VersionUse) -> None:
        aead, use.aead = use.aead, None
        if aead is not None:
            self._retired.append(aead)
            aead.retire()
