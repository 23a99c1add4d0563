"""The key ring: immutable views of keys, known to be fresh, with their material ready for use. The hot path looks here and nowhere else.

Built from events only, so material without a recorded outcome is never used. Knows no command and no event.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping

from kmscore.clock import Clock
from kmscore.counts import KEY_LOADS, KEY_VIEWS_BUILT, count
from kmscore.custody.port import Buffer, Keeper, Loaded, keeper_at
from kmscore.domain.access import USER_PREFIX
from kmscore.domain.alias import alias_not_found
from kmscore.domain.envelope import parse_header
from kmscore.domain.key import Key
from kmscore.domain.names import ALIAS_PREFIX, Place
from kmscore.domain.policy import KeyPolicy
from kmscore.domain.specs import HEADER_BYTES, ContentKind, KeyUsage, Origin, ProtectionLevel
from kmscore.domain.states import KeyState, check_allowed
from kmscore.engine.arguments import required
from kmscore.engine.views import KINDS, KeyView, VersionUse
from kmscore.errors import KmsError, forked, key_not_found, undecryptable
from kmscore.store.freshness import Freshness, Point
from kmscore.store.keystore import KeyStore
from kmscore.store.queries import Queries
from kmscore.tracing import span, traced

REFRESH_SECONDS = 2.0  # for a thread that takes changes in just now; more means that the store does not answer
USE = "Encrypt"  # the row of the state table that every use of material shares


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
        self._retired: list[Loaded] = []
        self._keys_loaded = 0
        self._loading: dict[str, str] = {}  # version id -> key id of what is being loaded now
        self._pid = os.getpid()
        self._position = queries.position()
        self._seen = -1
        self._point = Point(-1)
        self.on_user_change: Callable[[str], None] = lambda stream: None  # told before a view counts as fresh
        self.refresh()

    # --- for the hot path --------------------------------------------------------------------------------------------------------

    def to_encrypt(self, reference: str) -> VersionUse:
        """The primary version of a key named by id, alias or ARN, loaded, known to be fresh and usable now.

        Raises KmsError: Forbidden.KeyNotFound, Forbidden.AliasNotFound, Rejected.<state>, Rejected.UnsupportedOperation for a key that
        makes no blobs, Rejected.Unavailable.
        """
        if self._gate.fresh != self._seen:
            self.refresh()
        view = self._views.get(reference) if type(reference) is str else None
        if view is None:
            view = self._view(self.resolve(reference))
        if view.timed:
            view = self._now(view)
        use = view.primary
        if use is None or not view.encrypts:
            raise self._refusal(view, None)
        return self._ready(use, view)

    def to_decrypt(self, header: bytes, blob: Buffer) -> tuple[VersionUse, ContentKind]:
        """The version that the header of a blob names, loaded, known to be fresh and usable now, and the kind of the content.

        Raises as `to_encrypt` does, and the one opaque error for a blob that is malformed.
        """
        if self._gate.fresh != self._seen:
            self.refresh()
        found = self._by_header.get(header)
        if found is None:
            found = self._find(header, blob)
        view, use, content = found
        if view.timed:
            view = self._now(view)
            use = view.uses[use.version_id]
        if not view.usable or not use.usable:
            raise self._refusal(view, use)
        return self._ready(use, view), content

    def to_use(self, reference: str, version_id: str | None, usage: KeyUsage, operation: str) -> VersionUse:
        """A version of a key for an operation that makes no blobs; None: the primary one. Not loaded: see `ready`.

        Raises as `to_encrypt` does, and Forbidden.KeyVersionNotFound.
        """
        view = self._fresh_view(reference)
        view.key.check(operation, self._clock.now())
        if view.key.usage is not usage:
            raise unsupported(view.key)
        use = view.primary
        if version_id is not None:
            use = view.uses[view.key.get_version(version_id).version_id]
        if use is None or not view.usable or not use.usable:
            raise self._refusal(view, use)
        return use

    def ready(self, use: VersionUse) -> VersionUse:
        """Load the material of a version that `to_use` answered."""
        view = self._views.get(use.key_id)
        if view is None:
            raise changing()
        return self._ready(use, view)

    def view(self, reference: str, operation: str) -> Key:
        """A key as of now, from its view. Raises KmsError when it is not visible, or its state refuses the operation."""
        key = self._fresh_view(reference).key
        key.check(operation, self._clock.now())
        return key

    def key_of_blob(self, blob: Buffer) -> str:
        """The id of the key that made a blob, whatever its state. Raises Forbidden.KeyNotFound, and the one opaque error."""
        self.require_fresh()
        header = bytes(blob[:HEADER_BYTES])
        found = self._by_header.get(header)
        return (self._find(header, blob) if found is None else found)[0].key.id

    def policy_of(self, key_id: str) -> KeyPolicy | None:
        """The key policy of a key by its id; None where none was set, or where there is no such key."""
        self.require_fresh()
        view = self._views.get(key_id)
        if view is None:
            try:
                view = self._view(key_id)
            except KmsError as error:
                if error.code != "Forbidden.KeyNotFound":
                    raise
                return None
        return view.policy

    def require_fresh(self) -> None:
        """Take in what was committed, where something was."""
        if self._gate.fresh != self._seen:
            self.refresh()

    def _fresh_view(self, reference: str) -> KeyView:
        self.require_fresh()
        view = self._view(self.resolve(reference))
        return self._now(view) if view.timed else view

    def _now(self, view: KeyView) -> KeyView:
        """The view, built anew when this is not its time."""
        if view.true_at(self._clock.now()):
            return view
        with self._lock:
            return self._rebuild(view.key.id) or view

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
        if use.loaded is None:
            self._load(use, view)
        return use

    def _refusal(self, view: KeyView, use: VersionUse | None) -> KmsError:
        """Why a version (None: the primary one) is not used."""
        now = self._clock.now()
        try:
            view.key.check(USE, now)
            if use is not None and not use.usable:  # an older version whose material has gone
                check_allowed(USE, KeyState.PENDING_IMPORT)
        except KmsError as error:
            return error
        primary = view.primary
        return unsupported(view.key) if primary is not None and not primary.header else changing()

    # --- names -------------------------------------------------------------------------------------------------------------------

    def resolve(self, reference: str) -> str:
        """A key id out of an id, an alias or an ARN. Whether the key exists is not looked at unless an alias says so."""
        name = self._place.strip(required(reference, "KeyId"))
        if not name.startswith(ALIAS_PREFIX):
            return name
        self.require_fresh()
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

    def refresh(self) -> Point:
        """Take in what was committed since the views were built; answers up to where. Raises KmsError when the store cannot be read, or a
        lease of it not renewed: no view is used then."""
        self._check_process()
        if not self._lock.acquire(timeout=REFRESH_SECONDS):
            raise changing()
        try:
            while True:
                point = self._freshness.begin()
                position, changed = self._queries.changed_since(self._position)
                for stream in changed:
                    if stream.startswith(ALIAS_PREFIX):
                        self._names.pop(stream, None)
                    elif stream.startswith(USER_PREFIX):
                        self.on_user_change(stream)
                    elif stream in self._views:
                        self._rebuild(stream)
                self._position = position
                self._seen = point.generation
                self._point = point._replace(position=position)
                if self._freshness.taken_in(self._point, self._clean()):
                    return self._point
        except KmsError:
            self._freshness.failed()
            raise
        finally:
            self._lock.release()

    @property
    def position(self) -> int:
        """Up to where in the log the views are true."""
        return self._position

    def doubt(self) -> None:
        """Look at the store before the next use, whatever the generation says."""
        self._seen = -1

    def settle(self) -> None:
        """Tell what this process has seen, once no session key of a dropped view is left."""
        with self._lock:
            if self._clean() and self._seen >= 0:
                self._freshness.settle(self._point)

    def _clean(self) -> bool:
        self._retired = [loaded for loaded in self._retired if not loaded.retire()]
        return not self._retired and not any(self._forbidden(*pair) for pair in self._loading.items())

    def drop_idle(self) -> None:
        """Give up session keys that were not used since the last call."""
        with self._lock:
            for view in self._views.values():
                for use in view.uses.values():
                    if use.loaded is not None and use.idle:
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
            for loaded in self._retired:
                loaded.retire()

    def held(self) -> tuple[int, int]:
        """How many views of keys there are, and how many versions have their material loaded."""
        return len(self._views), self._keys_loaded

    # --- how -----------------------------------------------------------------------------------------------------------------------

    def _view(self, key_id: str) -> KeyView:
        self._check_process()
        with self._lock:
            view = self._views.get(key_id) or self._rebuild(key_id)
        if view is None:
            raise key_not_found()
        return view

    def _rebuild(self, key_id: str) -> KeyView | None:
        """A new view from the events; None, and nothing is kept, for a key that is not there (any more)."""
        before = self._views.get(key_id)
        key = self._store.key(key_id)
        if key is None or key.system or key.destroyed or not (key.versions or key.origin is Origin.EXTERNAL):
            self._forget(key_id)
            return None
        count(KEY_VIEWS_BUILT)
        view = KeyView(key, before, self._clock.now(), self._place.account_id)
        if before is not None:
            for use in before.uses.values():
                if view.uses.get(use.version_id) is not use:
                    self._unload(use)
        for use in view.uses.values():
            if not (view.usable and use.usable):
                self._unload(use)
        self._views[key_id] = view
        for use in view.uses.values():
            for kind, header in zip(KINDS, use.header, strict=False):
                self._by_header[header] = (view, use, kind)
        return view

    def _forbidden(self, version_id: str, key_id: str) -> bool:
        """Whether what is being loaded must not be used any more."""
        view = self._views.get(key_id)
        use = view.uses.get(version_id) if view is not None else None
        return view is not None and (use is None or not (view.usable and use.usable))

    def _load(self, use: VersionUse, view: KeyView) -> None:
        """Load the material of a version. A custody that stalls holds up those who want this version, and nobody else."""
        self._check_process()
        keeper = keeper_at(self._keepers, view.key.level)
        with use.loading:
            with self._lock:
                self._check_current(use, view)
                if use.loaded is not None:
                    return
                self._loading[use.version_id] = use.key_id
            level = view.key.level.value
            outcome = "failed"
            try:
                with span("custody.load", key_id=use.key_id, level=level):
                    loaded = traced(keeper.load(use.ref), key_id=use.key_id, level=level)
                with self._lock:
                    self._retired.append(loaded)  # until it is known that it may be used
                    self._check_current(use, view)
                    self._retired.remove(loaded)
                    use.loaded = loaded
                    self._keys_loaded += 1
                outcome = "OK"
            finally:
                count(KEY_LOADS, level, outcome)
                with self._lock:
                    del self._loading[use.version_id]
                self.settle()

    def _check_current(self, use: VersionUse, view: KeyView) -> None:
        current = self._views.get(use.key_id)
        if current is None or current.uses.get(use.version_id) is not use or not (current.usable and use.usable):
            raise self._refusal(current or view, use)

    def _forget(self, key_id: str) -> None:
        """Drop what is known of a key that is destroyed."""
        view = self._views.pop(key_id, None)
        for use in view.uses.values() if view is not None else ():
            self._unload(use)
            for header in use.header:
                self._by_header.pop(header, None)

    def _check_process(self) -> None:
        # Before any lock: in a forked child it may be held for ever by a thread that is not there.
        if os.getpid() != self._pid:
            raise forked()

    def _unload(self, use: VersionUse) -> None:
        loaded, use.loaded = use.loaded, None
        if loaded is not None:
            self._keys_loaded -= 1
            self._retired.append(loaded)
            loaded.retire()


def unsupported(key: Key) -> KmsError:
    return KmsError("Rejected.UnsupportedOperation", f"{key.spec.value} keys for {key.usage.value} do not do this.")


def changing() -> KmsError:
    return KmsError("ServiceUnavailableTemporary", "the key is changing; try again")
