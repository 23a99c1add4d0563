"""The irreversible stretch: what happens between an intent and its outcome, and what is done about intents that were interrupted.

No other path makes or destroys material. Step names are those of docs/KEY-CYCLE.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from kmscore.custody.port import Facts, Keeper, MaterialRef
from kmscore.domain.alias import Alias
from kmscore.domain.by import By
from kmscore.domain.key import Key
from kmscore.domain.specs import ProtectionLevel
from kmscore.engine.keyring import KeyRing
from kmscore.errors import Conflict, KmsError
from kmscore.process import Process
from kmscore.store.freshness import Freshness
from kmscore.store.keystore import KeyStore
from kmscore.store.queries import OpenIntent, Queries
from kmscore.store.readmodel import MATERIAL
from kmscore.tracing import span

Now = Callable[[], By]
Outcome = Callable[[Key, Facts, By], None]

# What this process is at work on: of all its engines, since the owner that stands beside an intent is the process.
_under_way: set[bytes] = set()
_under_way_lock = threading.Lock()


class Effects:
    def __init__(
        self,
        store: KeyStore,
        queries: Queries,
        freshness: Freshness,
        ring: KeyRing,
        keepers: Mapping[ProtectionLevel, Keeper],
        me: Process,
    ) -> None:
        self._store = store
        self._queries = queries
        self._freshness = freshness
        self._ring = ring
        self._keepers = keepers
        self._me = str(me)

    def announce(self) -> int:
        """After a commit, before its acknowledgement: from here on no process acts on the older state."""
        generation = self._freshness.announce()
        self._ring.refresh()
        return generation

    # --- material ----------------------------------------------------------------------------------------------------------------

    @contextmanager
    def attempt(self, ref: MaterialRef) -> Iterator[None]:
        """Marks the attempt as under way in this process, from before its intent: no recovery of ours touches it meanwhile."""
        with _under_way_lock:
            _under_way.add(ref.material_id)
        try:
            yield
        finally:
            with _under_way_lock:
                _under_way.discard(ref.material_id)

    def generate(self, key_id: str, keeper: Keeper, ref: MaterialRef, now: Now) -> None:
        """Effect and outcome of an open intent: generate, verified and durable, then MaterialActivated (C2-C5)."""

        def outcome(key: Key, facts: Facts, by: By) -> None:
            key.material_ready(ref.material_id, facts, by)

        def make() -> Facts:
            with span("custody.generate", key_id=key_id, level=keeper.level.value, spec=ref.spec.value):
                return keeper.generate(ref)

        self.obtain(key_id, keeper, ref.material_id, make, outcome, now)

    def obtain(self, key_id: str, keeper: Keeper, material_id: bytes, make: Callable[[], Facts], outcome: Outcome, now: Now) -> None:
        """Do what an open intent announced, and append its outcome.

        Raises KmsError after an attempt to clear away what the failure left; an intent that stays open is settled later.
        """
        try:
            facts = make()
        except Exception as error:
            with suppress(Exception):  # the first error is the answer; an intent that stays open is settled later
                self._abandon(key_id, keeper, material_id, now)
            if isinstance(error, KmsError):
                raise
            raise KmsError("InternalFailure", f"the custody failed: {type(error).__name__}: {error}") from error

        def decide(key: Key) -> None:
            if any(version.material_id == material_id.hex() for version in key.versions):
                return  # an append of ours that looked lost was not
            if key.open_intent is None or key.open_intent.material_id != material_id.hex():
                # Only a recovery that took this process for dead can have closed it: what came into being since is destroyed, too.
                _destroy(key_id, keeper, material_id)
                raise KmsError("ServiceUnavailableTemporary", "the attempt was given up by another process; try again")
            outcome(key, facts, now())

        self._append(key_id, decide)

    def _abandon(self, key_id: str, keeper: Keeper, material_id: bytes, now: Now) -> bool:
        """Destroy by id, never adopt, and record it. Idempotent."""
        _destroy(key_id, keeper, material_id)
        done = False

        def outcome(key: Key) -> None:
            nonlocal done
            done = key.open_intent is not None and key.open_intent.material_id == material_id.hex()
            if done:
                key.material_abandoned(material_id, now())

        self._append(key_id, outcome)
        return done

    # --- destruction -------------------------------------------------------------------------------------------------------------

    def destroy(self, key_id: str, keeper: Keeper, now: Now, eviction_wait: float) -> None:
        """Effect and outcome of a removal that was started: of imported material, or of a key with all that it has.

        Every step may be repeated; nothing is acknowledged before the last. Waits at most `eviction_wait` seconds for other processes to
        let go; raises ServiceUnavailableTemporary when they did not.
        """
        waited_for: object = None
        while True:
            key = self._store.key(key_id)
            assert key is not None
            ends = key.destruction_started
            if key.destroyed or not (ends or key.doomed_materials):
                return
            if waited_for != (ends, key.doomed_materials):  # at first, and when another removal came in between
                generation = self.announce()
                with span("eviction", key_id=key_id):
                    self._freshness.wait_until_seen(generation, eviction_wait)  # D2: no process holds a session key of it
                waited_for = ends, key.doomed_materials
                continue
            for material_id in sorted(key.doomed_materials):
                _destroy(key_id, keeper, bytes.fromhex(material_id))  # D3, D4
            by = now()
            key.finish_removal(by)
            with suppress(Conflict):  # someone finished it first, or moved an alias: look again
                self._store.append(key, *(self._dependants(key_id, by) if ends else ()))  # D5
                self.announce()
                return

    def _dependants(self, key_id: str, by: By) -> Iterator[Key | Alias]:
        """What goes with a key: its aliases, and the pairs of its import offers, which are due from then on."""
        for name in self._queries.aliases_of(key_id):
            alias = self._store.alias(name)
            if alias is not None and alias.key_id == key_id:
                alias.delete(by)
                yield alias
        for offer, _ in self._queries.live_imports(key_id):
            pair = self._store.key(offer)
            if pair is not None:
                pair.end_now(by)
                yield pair

    # --- recovery ----------------------------------------------------------------------------------------------------------------

    def settle(self, key_id: str, now: Now, eviction_wait: float) -> str | None:
        """Settle the open intent of a key if no one is working on it: answers the abandoned material id, or the key id of a finished
        destruction; None when there is nothing to settle, or its owner is alive.

        Raises KmsError when the custody or the store cannot be used now; the intent stays open.
        """
        intent = next(iter(self._queries.open_intents(key_id)), None)
        # The owner first, the stream after: one that is gone appends nothing more, so what is read now is how its attempt ended. The
        # other way round, an attempt that ends in between looks interrupted, and its live material would be destroyed.
        if intent is None or (intent.kind == MATERIAL and self._owner_works(intent)):
            return None
        key = self._store.key(key_id)
        assert key is not None
        keeper = self._keepers.get(key.level)
        if keeper is None:
            raise KmsError("ServiceUnavailableTemporary", f"{key_id} needs the token, and none is configured")
        if intent.kind != MATERIAL:
            self.destroy(key_id, keeper, now, eviction_wait)
            return key_id
        if key.open_intent is None or key.open_intent.material_id != intent.material_id.hex():
            return None
        return intent.material_id.hex() if self._abandon(key_id, keeper, intent.material_id, now) else None

    def _owner_works(self, intent: OpenIntent) -> bool:
        if intent.owner == self._me:
            with _under_way_lock:
                return intent.material_id in _under_way
        return Process.parse(intent.owner).alive()

    def _append(self, key_id: str, decide: Callable[[Key], None]) -> None:
        while True:
            key = self._store.key(key_id)
            assert key is not None
            decide(key)
            with suppress(Conflict):
                self._store.append(key)
                return


def _destroy(key_id: str, keeper: Keeper, material_id: bytes) -> None:
    with span("custody.destroy", key_id=key_id, level=keeper.level.value):
        keeper.destroy(material_id)
