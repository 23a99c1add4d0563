"""Who may do what: users, access keys, policies; and what the doors ask before they let a call through."""

from __future__ import annotations

from collections.abc import Sequence

from kmscore.custody.port import Buffer
from kmscore.domain.access import Caller
from kmscore.domain.policy import default_key_policy
from kmscore.engine.access import Credential
from kmscore.engine.acting import Acting
from kmscore.engine.arguments import required
from kmscore.engine.engine import Engine
from kmscore.errors import KmsError
from kmscore.results import AccessKey, Judgement, NewAccessKey, UserItem


class AccessOperations(Engine):
    # --- for the doors -----------------------------------------------------------------------------------------------------------

    def credential(self, access_key_id: str) -> Credential:
        """An access key that may be used now. Raises InvalidAccessKeyId.NotFound or Forbidden.AccessKey."""
        return self._s.access.credential(access_key_id)

    def note_use(self, access_key_id: str) -> None:
        """A request that this access key signed was taken in."""
        self._s.access.note_use(access_key_id)

    @staticmethod
    def acting(caller: Caller | None, request_id: str, operation: str = "") -> Acting:
        """A context in which the engine acts for `caller` (None: the owner of the home) by a request: its events and log lines say so."""
        return Acting(caller, request_id, operation)

    def authorise(
        self,
        caller: Caller,
        action: str,
        *,
        keys: Sequence[str] = (),
        blobs: Sequence[Buffer] = (),
        aliases: Sequence[str] = (),
        collection: str = "*",
    ) -> dict[str, str]:
        """Raises Forbidden.NoPermission unless `caller` may do `action` on all that is named; answers the id of each of `keys`."""
        return self._s.authority.authorise(caller, action, keys, blobs, aliases, collection)

    # --- key policies --------------------------------------------------------------------------------------------------------------

    def get_key_policy(self, key_id: str, *, policy_name: str = "default") -> str:
        """The text of a key's policy, or of the one that holds where none was set."""
        _check_name(policy_name)
        key = self._load(self._own_id(key_id))
        return key.policy or default_key_policy(self._s.settings.account_id)

    def set_key_policy(self, key_id: str, *, policy: str, policy_name: str = "default") -> None:
        """Who may use a key, in effect everywhere when it returns.

        Raises InvalidParameter (Policy) for one that is not understood, or that locks out everyone.
        """
        _check_name(policy_name)
        named = self._own_id(key_id)
        self._s.authority.check_policy(required(policy, "Policy"), named)
        self._change(named, lambda key, by: key.set_policy(policy, by))

    def simulate_policy(
        self, key_id: str, *, action: str, policy: str | None = None, user_name: str | None = None
    ) -> tuple[Judgement, ...]:
        """What everyone, or one user, may do with a key (id, ARN or alias), and why; `policy`: as if that were its key policy."""
        return self._s.authority.simulate(required(action, "Action"), required(key_id, "KeyId"), policy, user_name)

    # --- users and access keys -----------------------------------------------------------------------------------------------------

    def create_user(self, user_name: str, *, policy: str = "") -> None:
        self._s.access.create_user(user_name, policy)

    def delete_user(self, user_name: str) -> None:
        self._s.access.delete_user(user_name)

    def set_user_policy(self, user_name: str, *, policy: str) -> None:
        """An empty policy allows nothing."""
        self._s.access.set_user_policy(user_name, policy)

    def get_user_policy(self, user_name: str) -> str:
        return self._s.access.policy_of(user_name)

    def list_users(self) -> tuple[UserItem, ...]:
        return self._s.access.users()

    def create_access_key(self, user_name: str) -> NewAccessKey:
        """At most two for a user. The secret is in the answer and nowhere else in clear."""
        return self._s.access.create_access_key(user_name)

    def disable_access_key(self, access_key_id: str) -> None:
        """When it returns, no process takes a request that it signs."""
        self._s.access.switch_access_key(access_key_id, False)

    def enable_access_key(self, access_key_id: str) -> None:
        self._s.access.switch_access_key(access_key_id, True)

    def delete_access_key(self, access_key_id: str) -> None:
        self._s.access.delete_access_key(access_key_id)

    def list_access_keys(self, user_name: str | None = None) -> tuple[AccessKey, ...]:
        return self._s.access.access_keys(user_name)


def _check_name(policy_name: str) -> None:
    if policy_name != "default":
        raise KmsError("Forbidden.ResourceNotFound", "Policy not found.")
