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
from kmscore.store.freshness import Freshness, Point
from kmscore.store.keystore import KeyStore
from kmscore.store.material import Remains
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
        remains: Remains,
    ) -> None:
        self._store = store
        self._queries = queries
        self._freshness = freshness
        self._ring = ring
        self._keepers = keepers
        self._remains = remains

    def announce(self) -> Point:
        """After a commit, before its acknowledgement: when it returns, no process acts on the older state.

        Raises KmsError ServiceUnavailableTemporary when that is not known; the change stands, and the next call finds out.
        """
        self._freshness.announce()
        point = self._ring.refresh()
        self._freshness.wait_until_taken_in(point)
        return point

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
        """Record that an attempt is given up, and destroy by id what it left; never adopt. False when it ended otherwise meanwhile.

        The record first: the stream decides between us and an owner that was taken for dead and is not. Who destroyed first could
        destroy live material whose outcome the owner is just appending.
        """
        done = False

        def outcome(key: Key) -> None:
            nonlocal done
            done = key.open_intent is not None and key.open_intent.material_id == material_id.hex()
            if done:
                key.material_abandoned(material_id, now())

        self._append(key_id, outcome)
        if done:
            self._clear(keeper, material_id)
        return done

    def clear_remains(self) -> None:
        """Destroy what attempts left that were given up, where whoever gave them up did not come to it. Raises KmsError as custodies do."""
        for material_id, level in self._remains.all():
            keeper = self._keepers.get(ProtectionLevel(level))
            if keeper is not None:
                self._clear(keeper, material_id)

    def _clear(self, keeper: Keeper, material_id: bytes) -> None:
        keeper.destroy(material_id)
        self._remains.cleared(material_id)

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
                point = self.announce()
                with span("eviction", key_id=key_id):
                    self._freshness.wait_until_settled(point, eviction_wait)  # D2: no process holds a session key of it
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
        # The owner first, the stream after: of one that is gone, what is read now is how its attempt ended.
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
        if intent.owner == self._freshness.owner:
            with _under_way_lock:
                return intent.material_id in _under_way
        return self._freshness.works(intent.owner)

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
