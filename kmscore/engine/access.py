"""Users and their access keys: made, switched, deleted; and, for every request, whose access key that is."""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass, field
from functools import lru_cache

from kmscore.clock import wall_seconds
from kmscore.domain import access
from kmscore.domain.access import USER_PREFIX, Caller, check_user_name
from kmscore.domain.by import By
from kmscore.domain.policy import IdentityPolicy, Statement, Verdict, parse_identity_policy
from kmscore.domain.user import User, no_access_key, no_user
from kmscore.engine.effects import Effects
from kmscore.engine.keyring import KeyRing
from kmscore.engine.lifecycle import Lifecycle
from kmscore.engine.seals import SecretSeal
from kmscore.errors import KmsError
from kmscore.results import AccessKey, NewAccessKey, UserItem
from kmscore.store.keystore import KeyStore
from kmscore.store.material import AccessUses
from kmscore.store.queries import Queries
from kmscore.store.readmodel import from_micros

USE_SECONDS = 60  # how exactly the last use of an access key is known


@dataclass(frozen=True, slots=True)
class Credential:
    """An access key that may be used now. The secret stays in this process."""

    access_key_id: str
    secret: str = field(repr=False)
    caller: Caller

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a credential is not pickled")


class Access:
    def __init__(
        self,
        store: KeyStore,
        queries: Queries,
        uses: AccessUses,
        lifecycle: Lifecycle,
        effects: Effects,
        ring: KeyRing,
        seal: SecretSeal,
        account_id: str,
        root: tuple[str, str],
    ) -> None:
        """`root`: access key id and secret of the account itself."""
        self._store = store
        self._queries = queries
        self._uses = uses
        self._lifecycle = lifecycle
        self._effects = effects
        self._ring = ring
        self._seal = seal
        self._account_id = account_id
        self._root = Credential(*root, access.root(account_id, root[0]))
        self._known: dict[str, Credential] = {}
        self._changes = 0
        self._used: dict[str, int] = {}
        self._told: dict[str, int] = {}
        self._lock = threading.Lock()
        ring.on_user_change = self._forget

    # --- for every request ---------------------------------------------------------------------------------------------------------

    def credential(self, access_key_id: str) -> Credential:
        """Known to be fresh. Raises InvalidAccessKeyId.NotFound, Forbidden.AccessKey for one that is disabled, and
        ServiceUnavailableTemporary when the store cannot tell."""
        self._ring.require_fresh()
        found = self._known.get(access_key_id)
        if found is not None:
            return found
        if access_key_id == self._root.access_key_id:
            return self._root
        changes = self._changes
        row = self._queries.access_key(access_key_id)
        if row is None:
            raise no_access_key()
        name, enabled, sealed, policy = row
        if not enabled:
            raise KmsError("Forbidden.AccessKey", "The Access Key is disabled.")
        caller = access.user(self._account_id, name, _policy(policy), access_key_id)
        found = Credential(access_key_id, self._seal.open(access_key_id, sealed), caller)
        with self._lock:
            if changes == self._changes:  # nothing was taken in since the row was read
                self._known[access_key_id] = found
        return found

    def note_use(self, access_key_id: str) -> None:
        """Costs a look-up; written down by flush_uses."""
        now = int(wall_seconds())
        if now - self._told.get(access_key_id, 0) >= USE_SECONDS and access_key_id != self._root.access_key_id:
            self._told[access_key_id] = now
            with self._lock:
                self._used[access_key_id] = now * 1_000_000

    def flush_uses(self) -> None:
        """What cannot be written down now is, at the next flush."""
        with self._lock:
            used, self._used = self._used, {}
        try:
            if used:
                self._uses.record(used)
        except KmsError:
            with self._lock:
                self._used = used | self._used
            raise

    def _forget(self, stream: str) -> None:
        with self._lock:
            self._changes += 1
            self._known.clear()

    # --- users -----------------------------------------------------------------------------------------------------------------------

    def create_user(self, name: str, policy: str) -> None:
        def attempt(by: By) -> None:
            check_user_name(name)
            self._append(User.create(self._store.user(f"{USER_PREFIX}{name}"), name, policy, by))

        self._lifecycle.decide(attempt)

    def delete_user(self, name: str) -> None:
        """With its access keys."""

        def attempt(by: By) -> None:
            user = self._user(name)
            gone = tuple(user.access_keys)
            user.delete(by)
            self._append(user, *(row for access_key_id in gone for row in _without(access_key_id)))

        self._lifecycle.decide(attempt)
        self._uses.forget()

    def set_user_policy(self, name: str, policy: str) -> None:
        def attempt(by: By) -> None:
            user = self._user(name)
            user.set_policy(policy, by)
            self._append(user)

        self._lifecycle.decide(attempt)

    def policy_of(self, name: str) -> str:
        return self._user(name).policy

    def users(self) -> tuple[UserItem, ...]:
        nobody = IdentityPolicy()
        return tuple(UserItem(name, access.user(self._account_id, name, nobody).arn, policy) for name, policy in self._queries.users())

    def callers(self) -> list[tuple[Caller, bool]]:
        """Everyone who can call, root first, and whether they have an access key that is enabled."""
        able = {row.user_name for row in self._queries.access_keys() if row.enabled}
        users = [(access.user(self._account_id, name, _policy(policy)), name in able) for name, policy in self._queries.users()]
        return [(self._root.caller, True), *users]

    # --- access keys -----------------------------------------------------------------------------------------------------------------

    def create_access_key(self, user_name: str) -> NewAccessKey:
        """The secret is shown here and never again."""
        access_key_id, secret = new_credentials()

        def attempt(by: By) -> None:
            user = self._user(user_name)
            user.add_access_key(access_key_id, by)
            sealed = self._seal.seal(access_key_id, secret)
            self._append(user, ("INSERT INTO access_secrets VALUES (?, ?)", (access_key_id, sealed)))

        self._lifecycle.decide(attempt)
        return NewAccessKey(access_key_id, secret, user_name)

    def switch_access_key(self, access_key_id: str, enabled: bool) -> None:
        """When it returns, no process takes a request that a disabled access key signs."""

        def attempt(by: By) -> None:
            user = self._owner(access_key_id)
            user.switch_access_key(access_key_id, enabled, by)
            self._append(user)

        self._lifecycle.decide(attempt)

    def delete_access_key(self, access_key_id: str) -> None:
        def attempt(by: By) -> None:
            user = self._owner(access_key_id)
            user.delete_access_key(access_key_id, by)
            self._append(user, *_without(access_key_id))

        self._lifecycle.decide(attempt)
        self._uses.forget()

    def access_keys(self, user_name: str | None = None) -> tuple[AccessKey, ...]:
        if user_name is not None:
            self._user(user_name)
        return tuple(
            AccessKey(
                row.access_key_id,
                row.user_name,
                "Active" if row.enabled else "Inactive",
                from_micros(row.created_at),
                None if row.used_at is None else from_micros(row.used_at),
            )
            for row in self._queries.access_keys(user_name)
        )

    # --- how -------------------------------------------------------------------------------------------------------------------------

    def _user(self, name: str) -> User:
        user = self._store.user(f"{USER_PREFIX}{check_user_name(name)}")
        if user is None:
            raise no_user()
        return user.require()

    def _owner(self, access_key_id: str) -> User:
        row = self._queries.access_key(access_key_id)
        if row is None:
            raise no_access_key()
        return self._user(row[0])

    def _append(self, user: User, *beside: tuple[str, tuple[object, ...]]) -> None:
        self._store.append(user, beside=beside)
        self._effects.announce()


def new_credentials() -> tuple[str, str]:
    """A new access key id and its secret."""
    return f"KMS{secrets.token_hex(10).upper()}", secrets.token_urlsafe(32)


def _without(access_key_id: str) -> list[tuple[str, tuple[object, ...]]]:
    """What no event tells of an access key goes with it."""
    return [(f"DELETE FROM {table} WHERE access_key_id = ?", (access_key_id,)) for table in ("access_secrets", "access_uses")]


@lru_cache(maxsize=1024)
def _policy(text: str) -> IdentityPolicy:
    """One that is not understood (any more) allows nothing, and denies it whatever a key's policy says."""
    try:
        return parse_identity_policy(text) if text else IdentityPolicy()
    except KmsError:
        return IdentityPolicy((Statement(0, Verdict.DENIED, ("*",), ("*",)),))
