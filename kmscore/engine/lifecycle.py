"""Lifecycle commands: load, decide, append, and for those that need a custody: intent, effect, outcome (docs/KEY-CYCLE.md).

Every command decides on a fresh load. One that loses the race for a stream's next version decides again, for a bounded time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import TypeVar

from kmscore.clock import Clock
from kmscore.custody.port import Keeper, MaterialRef, keeper_at
from kmscore.domain.alias import Alias, alias_not_found
from kmscore.domain.by import By
from kmscore.domain.key import Key
from kmscore.domain.names import check_alias
from kmscore.domain.specs import Origin, ProtectionLevel
from kmscore.domain.versions import NewKey, NewMaterial
from kmscore.engine.acting import ASKED
from kmscore.engine.effects import Effects
from kmscore.errors import Conflict, KmsError, key_not_found
from kmscore.ids import Ids
from kmscore.store.keystore import KeyStore
from kmscore.store.queries import Queries

Answer = TypeVar("Answer")

INTENT_POLL_SECONDS = 0.02  # while another's open intent is waited for


class Lifecycle:
    def __init__(
        self,
        store: KeyStore,
        queries: Queries,
        effects: Effects,
        keepers: Mapping[ProtectionLevel, Keeper],
        clock: Clock,
        ids: Ids,
        actor: str,
        patience: float,
    ) -> None:
        """`actor` stands in every event; `patience` is how many seconds a command waits for another's open intent or lost races."""
        self._store = store
        self._queries = queries
        self._effects = effects
        self._keepers = keepers
        self._clock = clock
        self._ids = ids
        self._actor = actor
        self._patience = patience

    # --- commands that are one append --------------------------------------------------------------------------------------------

    def change(self, key_ids: tuple[str, ...], decide: Callable[[Key, By], None]) -> tuple[Key, ...]:
        """Let `decide` act on these keys, and append it all in one transaction. When it returns, no process acts on the older state.

        Raises what `decide` raises, and Forbidden.KeyNotFound.
        """

        def attempt(by: By) -> tuple[Key, ...]:
            keys = tuple(self.load(key_id) for key_id in key_ids)
            for key in keys:
                decide(key, by)
            self._store.append(*keys)
            self._effects.announce()  # also where nothing was to change: whoever changed it may have died before this
            return keys

        return self.decide(attempt)

    def bind_alias(self, name: str, key_id: str) -> None:
        def attempt(by: By) -> None:
            check_alias(name, create=True)
            self.load(key_id).check("CreateAlias", by.now)
            self._append_alias(Alias.bind(self._store.alias(name), name, key_id, by))

        self.decide(attempt)

    def rebind_alias(self, name: str, key_id: str) -> None:
        def attempt(by: By) -> None:
            alias = self._alias(name)
            self.load(key_id).check("UpdateAlias", by.now)
            alias.rebind(key_id, by)
            self._append_alias(alias)

        self.decide(attempt)

    def delete_alias(self, name: str) -> None:
        def attempt(by: By) -> None:
            alias = self._alias(name)
            alias.delete(by)
            self._append_alias(alias)

        self.decide(attempt)

    # --- commands with an effect -------------------------------------------------------------------------------------------------

    def create(self, new: NewKey, key_id: str | None = None, delete_at: datetime | None = None) -> Key:
        """CreateKey: visible, enabled and durable on return; one that waits for its import has no material yet.

        `key_id` is given for the service's own keys only, `delete_at` for those that end by themselves.
        Raises KmsError: the custody's refusal of the spec before anything is written; ServiceUnavailableTemporary when it failed.
        """
        keeper = keeper_at(self._keepers, new.level)
        key_id = key_id or self._ids.key_id()
        suite = keeper.suite_for(new.spec, new.usage)
        if new.origin is Origin.EXTERNAL:
            self._store.append(Key.create(key_id, new, None, self.by()))
            return self._found(key_id)
        material = NewMaterial(self._ids.version_id(), self._ids.material_id(), suite)
        ref = MaterialRef(material.material_id, new.spec, material.suite, new.usage)
        with self._effects.attempt(ref):
            self._store.append(Key.create(key_id, new, material, self.by(), delete_at))  # C1
            self._effects.generate(key_id, keeper, ref, self.by)  # C2-C5
        return self._found(key_id)

    def rotate(self, key_id: str, check: Callable[[Key, By], None]) -> Key:
        """Give the key a new primary version. `check` raises when it may not be, each time it is decided again.

        Raises also ServiceUnavailableTemporary when another attempt on the key is not over in time, or the custody failed.
        """

        def generate(key: Key, keeper: Keeper, ref: MaterialRef) -> None:
            self._effects.generate(key_id, keeper, ref, self.by)  # R2-R5

        return self.obtain(key_id, check, generate)

    def obtain(
        self, key_id: str, check: Callable[[Key, By], None], effect: Callable[[Key, Keeper, MaterialRef], None], offer: str = ""
    ) -> Key:
        """Open an intent for material of a key, and let `effect` carry it out; `offer` names the import it comes through."""

        def attempt(by: By) -> Key:
            key = self._settled(key_id)
            check(key, by)
            keeper = keeper_at(self._keepers, key.level)
            # What is imported may be an older version's material, whose ciphertext has its suite.
            suite = key.versions[-1].suite if offer and key.versions else keeper.suite_for(key.spec, key.usage)
            material = NewMaterial(self._ids.version_id(), self._ids.material_id(), suite, offer)
            ref = MaterialRef(material.material_id, key.spec, material.suite, key.usage, imported=bool(offer))
            key.want_material(material, by)
            with self._effects.attempt(ref):
                self._store.append(key)  # R1
                effect(key, keeper, ref)
            self._effects.announce()
            return self._found(key_id)

        return self.decide(attempt)

    def remove_material(self, key_id: str, decide: Callable[[Key, By], None], eviction_wait: float) -> bool:
        """Let `decide` doom imported material of a key, and destroy it; False when it doomed none.

        Raises KmsError ServiceUnavailableTemporary when it could not be finished now: from its start on none is used, and it is taken up
        again.
        """

        def attempt(by: By) -> bool:
            key = self._settled(key_id)
            decide(key, by)
            if not key.pending_events:
                return False
            self._store.append(key)
            self._effects.destroy(key_id, keeper_at(self._keepers, key.level), self.by, eviction_wait)
            return True

        return self.decide(attempt)

    def destroy(self, key_id: str, eviction_wait: float, *, early: bool = False) -> bool:
        """Destroy a key whose window is over; False when there is nothing to destroy (any more). `early`: an import pair before its time.

        `eviction_wait`: how many seconds other processes get to drop its session keys.

        Raises KmsError ServiceUnavailableTemporary when it could not be finished now: it stays started, and is taken up again.
        """

        def attempt(by: By) -> bool:
            key = self._found(key_id)
            if not (key.destroyed or key.destruction_started):
                key = self._settled(key_id, eviction_wait)
            if key.destroyed:
                return False
            if not key.destruction_started:
                if early:
                    key.end_now(by)
                if not key.due_for_deletion(by.now):
                    return False
                key.start_destruction(by)
                self._store.append(key)  # D1
            self._effects.destroy(key_id, keeper_at(self._keepers, key.level), self.by, eviction_wait)  # D2-D5
            return True

        done = self.decide(attempt)
        if done:
            for offer, _ in self._queries.live_imports(key_id):  # one that stays is destroyed when its own time is over
                with suppress(KmsError):
                    self.destroy(offer, eviction_wait, early=True)
        return done

    def finish(self, key_id: str, eviction_wait: float) -> bool:
        """Finish a removal that was started; True when the key is gone with it."""
        self._effects.settle(key_id, self.by, eviction_wait)
        return self._found(key_id).destroyed

    def decide(self, attempt: Callable[[By], Answer]) -> Answer:
        """Let `attempt` decide and append, again on the fresh state as long as another writer is first, for a bounded time."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return attempt(self.by())
            except Conflict:
                if time.monotonic() >= deadline:
                    raise

    # --- loading -----------------------------------------------------------------------------------------------------------------

    def load(self, key_id: str) -> Key:
        """A key that a caller may see. Raises Forbidden.KeyNotFound."""
        key = self._store.key(key_id)
        if key is None:
            raise key_not_found()
        key.require_visible(self._clock.now())
        return key

    # --- how -----------------------------------------------------------------------------------------------------------------------

    def _settled(self, key_id: str, eviction_wait: float = 0) -> Key:
        """The key, once neither an attempt at material nor a removal is open on it; what a dead process left is settled on the way."""
        deadline = time.monotonic() + self._patience
        while True:
            key = self._found(key_id)
            if key.settled:
                return key
            if not self._effects.settle(key_id, self.by, eviction_wait):
                if time.monotonic() >= deadline:
                    raise KmsError("ServiceUnavailableTemporary", "another change of this key is under way; try again")
                time.sleep(INTENT_POLL_SECONDS)

    def _found(self, key_id: str) -> Key:
        key = self._store.key(key_id)
        if key is None:
            raise key_not_found()
        return key

    def _alias(self, name: str) -> Alias:
        check_alias(name, create=False)
        alias = self._store.alias(name)
        if alias is None:
            raise alias_not_found()
        alias.require_bound()
        return alias

    def _append_alias(self, alias: Alias) -> None:
        self._store.append(alias)
        self._effects.announce()

    def by(self) -> By:
        """Now, for whom the engine acts, and by which command: of a request it is the RequestId."""
        asked = ASKED.get()
        if asked is None:
            return By(self._clock.now(), self._actor, self._ids.command_id())
        return By(self._clock.now(), asked.actor or self._actor, asked.request_id)
