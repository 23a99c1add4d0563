"""Who may do what: every call of the wire is judged here, by the caller's policy and the policies of the keys it names."""

from __future__ import annotations

from collections.abc import Sequence

from kmscore.custody.port import Buffer
from kmscore.domain.access import Caller, no_permission
from kmscore.domain.names import Place, check_alias
from kmscore.domain.policy import KeyPolicy, check_action, decide, parse_key_policy, wrong
from kmscore.domain.user import no_user
from kmscore.engine.access import Access
from kmscore.engine.keyring import KeyRing
from kmscore.errors import KmsError
from kmscore.results import Judgement

CHANGE_POLICY = "kms:SetKeyPolicy"


class Authority:
    def __init__(self, ring: KeyRing, access: Access, place: Place) -> None:
        self._ring = ring
        self._access = access
        self._place = place

    def authorise(
        self,
        caller: Caller,
        action: str,
        keys: Sequence[str] = (),
        blobs: Sequence[Buffer] = (),
        aliases: Sequence[str] = (),
        collection: str = "*",
    ) -> dict[str, str]:
        """Judge a call on these keys (ids, aliases or ARNs), on the keys that made these blobs, and on these alias names and what they
        name now. One that names nothing is judged on `collection`.

        Answers for each reference in `keys` the id that was judged: whoever acts hands that on, so that an alias that is moved in between
        changes nothing. Raises Forbidden.NoPermission, and what a name or blob is refused with.
        """
        # As they are now: the request may have waited for its turn while they lost a right, or the access key.
        caller = self._access.credential(caller.access_key_id).caller
        pinned: dict[str, str] = {}
        for reference in keys:
            pinned[reference] = self._ring.resolve(reference)
        ids = dict.fromkeys(pinned.values())
        for blob in blobs:
            ids[self._ring.key_of_blob(blob)] = None
        for name in aliases:
            self._judge(caller, action, self._place.alias_arn(check_alias(name, create=False)), None)
            named = self._named_by(name)
            if named is not None:
                ids[named] = None
        for key_id in ids:
            policy = self._ring.policy_of(key_id)
            if policy is not None or caller.policy is not None:
                self._judge(caller, action, self._place.key_arn(key_id), policy)
        if not (ids or aliases):
            self._judge(caller, action, self._place.arn(collection), None)
        return pinned

    def check_policy(self, text: str, key_id: str) -> None:
        """A key policy that may be set. Raises InvalidParameter (Policy), also where nobody could change it any more."""
        policy = parse_key_policy(text, self._place.account_id)
        arn = self._place.key_arn(key_id)
        for caller, able in self._access.callers():
            if able and decide(caller.policy, caller.name, CHANGE_POLICY, arn, policy)[0]:
                return
        raise wrong("With it, nobody who has an enabled access key could change it again.")

    def simulate(self, action: str, reference: str, policy_text: str | None = None, user_name: str | None = None) -> tuple[Judgement, ...]:
        """What everyone, or one user, may do with a key, and why. `policy_text`: as if that were its policy."""
        key_id = self._ring.resolve(reference)
        policy = self._ring.policy_of(key_id) if policy_text is None else parse_key_policy(policy_text, self._place.account_id)
        arn = self._place.key_arn(key_id)
        check_action(action)
        judged = []
        for caller, able in self._access.callers():
            if user_name is None or caller.name == user_name:
                allowed, why = decide(caller.policy, caller.name, action, arn, policy)
                judged.append(Judgement(caller.arn, allowed, why, able))
        if user_name is not None and not judged:
            raise no_user()
        return tuple(judged)

    def _named_by(self, alias: str) -> str | None:
        try:
            return self._ring.resolve(alias)
        except KmsError as error:
            if error.code != "Forbidden.AliasNotFound":
                raise
            return None

    @staticmethod
    def _judge(caller: Caller, action: str, resource: str, policy: KeyPolicy | None) -> None:
        if not decide(caller.policy, caller.name, action, resource, policy)[0]:
            raise no_permission()
