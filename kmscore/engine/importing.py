"""The import ceremony: offers (a wrapping pair and a token), the import itself, deletion of imported material.

An offer is a key of the service's own, in the stream `import/KEY/…`: its pair is made, kept, found by recovery and destroyed like any other
material. Failed attempts are counted in the events of the key, before they are tried. Step names are those of docs/KEY-CYCLE.md.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from kmscore.custody.port import AlreadyHeld, Buffer, Facts, Keeper, MaterialRef, keeper_at
from kmscore.domain.algorithms import WrappingAlgorithm, WrappingKeySpec
from kmscore.domain.by import By
from kmscore.domain.importtoken import ImportClaims
from kmscore.domain.key import MAX_FAILED_IMPORTS, Key
from kmscore.domain.names import import_prefix
from kmscore.domain.schedule import LAST_UNIX
from kmscore.domain.specs import KeySpec, Origin, ProtectionLevel
from kmscore.domain.versions import Imported, NewKey
from kmscore.engine.arguments import buffer, choice, required
from kmscore.engine.effects import Effects
from kmscore.engine.lifecycle import Lifecycle
from kmscore.engine.seals import Digests, TokenSeal
from kmscore.engine.views import material_ref
from kmscore.errors import KmsError, bad_material, invalid, invalid_import_token
from kmscore.ids import Ids
from kmscore.results import ImportParameters
from kmscore.store.keystore import KeyStore
from kmscore.store.queries import Queries
from kmscore.tracing import span

VALIDITY = timedelta(hours=24)
MAX_OFFERS = 8  # live ones of a key
MAX_WRAPPED_BYTES = 8192


class Importing:
    def __init__(
        self,
        store: KeyStore,
        queries: Queries,
        lifecycle: Lifecycle,
        effects: Effects,
        keepers: Mapping[ProtectionLevel, Keeper],
        seal: TokenSeal,
        digests: Digests,
        ids: Ids,
        creator: str,
        failure_seconds: float,
        eviction_wait: float,
    ) -> None:
        """`failure_seconds`: every failed import takes a whole multiple of it, so that its time tells nothing of what was wrong."""
        self._store = store
        self._queries = queries
        self._lifecycle = lifecycle
        self._effects = effects
        self._keepers = keepers
        self._seal = seal
        self._digests = digests
        self._ids = ids
        self._creator = creator
        self._failure_seconds = failure_seconds
        self._eviction_wait = eviction_wait

    # --- offers ------------------------------------------------------------------------------------------------------------------

    def parameters(self, key_id: str, wrapping_algorithm: str, wrapping_key_spec: str) -> ImportParameters:
        """A new wrapping pair in the custody that will hold the key, and the token that belongs to it: good for 24 hours (G1)."""
        algorithm = choice(WrappingAlgorithm, required(wrapping_algorithm, "WrappingAlgorithm"), "WrappingAlgorithm")
        spec = KeySpec(choice(WrappingKeySpec, required(wrapping_key_spec, "WrappingKeySpec"), "WrappingKeySpec"))
        now = self._lifecycle.by().now
        key = self._lifecycle.load(key_id)
        key.check("GetParametersForImport", now)
        key.require_external()
        usage = keeper_at(self._keepers, key.level).wrapping_usage(algorithm, key.spec)
        if self._live_offers(key_id, now) >= MAX_OFFERS:
            raise too_many_offers()
        offer = import_prefix(key_id) + self._ids.command_id()
        expires_at = (now + VALIDITY).replace(microsecond=0)
        new = NewKey(spec, usage, Origin.KMS, key.level, self._creator, system=True)
        try:
            pair = self._lifecycle.create(new, offer, expires_at).primary(now)
            if self._live_offers(key_id, now) > MAX_OFFERS:  # others asked at the same time
                raise too_many_offers()
        except KmsError:
            self._end(offer)
            raise
        assert pair is not None
        claims = ImportClaims(offer, algorithm, expires_at)
        return ImportParameters(key_id, self._seal.seal(key_id, claims), pair.public_key, expires_at)

    def _live_offers(self, key_id: str, now: datetime) -> int:
        """How many there are; those whose time is over, or whose pair never came to be, are cleared away, where no scheduler has."""
        live = 0
        for offer, _ in self._queries.live_imports(key_id):
            pair = self._store.key(offer)
            if pair is None or pair.due_for_deletion(now) or (pair.settled and not pair.versions):
                self._end(offer)
            else:
                live += 1
        return live

    def _end(self, offer: str) -> None:
        with suppress(KmsError):  # what cannot be destroyed now is destroyed when its time is over
            self._lifecycle.destroy(offer, 0, early=True)

    # --- import ------------------------------------------------------------------------------------------------------------------

    def import_material(
        self, key_id: str, wrapped: Buffer, token: Buffer, expire_unix: int | None, activate_unix: int | None, *, following: bool
    ) -> None:
        """ImportKeyMaterial; `following`: the next material, which becomes primary at `activate_unix` (now, where that is not given)."""
        operation = "ImportNextKeyMaterial" if following else "ImportKeyMaterial"
        started = time.monotonic()
        data = buffer(wrapped, "EncryptedKeyMaterial")
        given = buffer(token, "ImportToken")
        now = self._lifecycle.by().now
        expires_at = _instant(expire_unix, "KeyMaterialExpireUnix", now)
        primary_at = _instant(activate_unix, "KeyMaterialActivateUnix", now)
        if expires_at is not None and primary_at is not None and expires_at <= primary_at:
            raise invalid("KeyMaterialExpireUnix", "It must be after the material becomes primary.")
        key = self._lifecycle.load(key_id)
        key.check(operation, now)
        key.require_external()
        claims = self._seal.open(key_id, given)
        if now >= claims.expires_at:
            raise KmsError("ExpiredImportToken", "The import token is expired.")
        if self._pair(claims.offer) is None:
            raise invalid_import_token()
        try:
            self._import(key_id, operation, data, claims, expires_at, primary_at)
        except KmsError as error:
            if error.code == "InvalidKeyMaterial":
                self._after_failure(key_id, claims.offer)
                # Private keys take longer, and how long tells what was in them.
                _even_out(started, self._failure_seconds * (10 if claims.algorithm.two_step else 1))
            raise

    def _import(
        self, key_id: str, operation: str, data: bytes, claims: ImportClaims, expires_at: datetime | None, primary_at: datetime | None
    ) -> None:
        following = operation == "ImportNextKeyMaterial"
        lost = False

        def check(key: Key, by: By) -> None:
            key.check_import(operation, claims.offer, primary_at, by.now)

        def effect(key: Key, keeper: Keeper, ref: MaterialRef) -> None:
            digest = ""
            attempt = key.open_intent
            pair = self._pair(claims.offer)
            assert attempt is not None

            def accept(check_value: bytes) -> None:
                nonlocal digest, lost
                digest = self._digests.of(key_id, key.spec, check_value)
                same = key.version_of(digest, following=following)
                if same is not None and same.held:
                    lost = not _in_custody(keeper, material_ref(key, same))
                    if not lost:
                        raise AlreadyHeld

            def make() -> Facts:
                if pair is None:
                    raise invalid_import_token()
                if len(data) > MAX_WRAPPED_BYTES:
                    raise bad_material()
                try:
                    with span("custody.unwrap", key_id=key_id, level=keeper.level.value, spec=key.spec.value):
                        return keeper.unwrap(ref, pair, claims.algorithm, data, accept)  # M3-M5
                except AlreadyHeld:
                    return {}

            def outcome(fresh: Key, facts: Facts, by: By) -> None:
                fresh.material_imported(attempt, Imported(facts, digest, expires_at, primary_at, lost), by)  # M6

            self._effects.obtain(key_id, keeper, ref.material_id, make, outcome, self._lifecycle.by)

        self._lifecycle.obtain(key_id, check, effect, claims.offer)  # M1, M2
        if lost:  # what it took the place of is recorded as gone; a tick finishes what cannot be finished now
            with suppress(KmsError):
                self._lifecycle.finish(key_id, self._eviction_wait)

    def _pair(self, offer: str) -> MaterialRef | None:
        """The pair of an offer, while it is there."""
        pair = self._store.key(offer)
        if pair is None or pair.destruction_started or not pair.versions:
            return None
        return material_ref(pair, pair.versions[0])

    def _after_failure(self, key_id: str, offer: str) -> None:
        """A token through which too much failed is dead, and its pair is of no use any more."""
        with suppress(KmsError):
            if self._lifecycle.load(key_id).failed_imports.get(offer, 0) >= MAX_FAILED_IMPORTS:
                self._end(offer)

    # --- deletion ----------------------------------------------------------------------------------------------------------------

    def delete(self, key_id: str) -> None:
        """DeleteKeyMaterial: gone, durably, when it returns; the same material can be imported again."""
        self._lifecycle.remove_material(key_id, Key.delete_material, self._eviction_wait)


def _instant(unix: int | None, parameter: str, now: datetime) -> datetime | None:
    """A time in the future, from Unix seconds; 0 or None: none was given (DECISIONS 19)."""
    if not unix:
        return None
    if isinstance(unix, bool) or not isinstance(unix, int) or not 0 < unix <= LAST_UNIX:
        raise invalid(parameter, "It is a time in Unix seconds.")
    instant = datetime.fromtimestamp(unix, UTC)
    if instant <= now:
        raise invalid(parameter, "It is in the past.")
    return instant


def too_many_offers() -> KmsError:
    return KmsError("Rejected.LimitExceeded", f"A key has at most {MAX_OFFERS} import tokens at a time; each ends after 24 hours.")


def _in_custody(keeper: Keeper, ref: MaterialRef) -> bool:
    """Whether material that the events say is there can be used: a token may have lost it."""
    try:
        keeper.load(ref).retire()
    except KmsError as error:
        if error.code != "Rejected.Unavailable":
            raise
        return False
    return True


def _even_out(started: float, unit: float) -> None:
    """Wait until a whole multiple of `unit` seconds has passed since `started`."""
    time.sleep(unit - (time.monotonic() - started) % unit)
