"""The User aggregate: someone who calls over the wire, with a policy and access keys. Its secrets are not here (store/secrets.py)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Self

from eventsourcing.domain import BaseAggregate

from kmscore.domain import events
from kmscore.domain.access import MAX_ACCESS_KEYS, USER_PREFIX, check_user_name
from kmscore.domain.by import By
from kmscore.domain.policy import parse_identity_policy
from kmscore.errors import KmsError


class User(BaseAggregate[str]):
    """Its id is `user/NAME`. One stream for each name, also when a user of that name is made again."""

    TOPIC = "User"

    def __init__(self) -> None:
        self.exists = False
        self.policy = ""  # the text of it; empty: nothing is allowed
        self.access_keys: Mapping[str, bool] = {}  # access key id -> is it enabled?
        self.created: Mapping[str, datetime] = {}  # access key id -> when it was made

    @property
    def name(self) -> str:
        return self.id.removeprefix(USER_PREFIX)

    @classmethod
    def create(cls, existing: Self | None, name: str, policy: str, by: By) -> Self:
        """Raises KmsError InvalidParameter, or EntityAlreadyExists.User."""
        check_user_name(name)
        if policy:
            parse_identity_policy(policy)
        if existing is None:
            return cls._create(events.UserCreated, id=f"{USER_PREFIX}{name}", policy=policy, **by.fields)
        if existing.exists:
            raise KmsError("EntityAlreadyExists.User", f"There is a user {name} already.")
        existing.trigger_event(events.UserCreated, originator_topic=cls.TOPIC, policy=policy, **by.fields)
        return existing

    def require(self) -> Self:
        if not self.exists:
            raise no_user()
        return self

    def set_policy(self, policy: str, by: By) -> None:
        if policy:
            parse_identity_policy(policy)
        if policy != self.policy:
            self.trigger_event(events.UserPolicyChanged, policy=policy, **by.fields)

    def delete(self, by: By) -> None:
        """With its access keys."""
        for access_key_id in tuple(self.access_keys):
            self.delete_access_key(access_key_id, by)
        self.trigger_event(events.UserDeleted, **by.fields)

    def add_access_key(self, access_key_id: str, by: By) -> None:
        if len(self.access_keys) >= MAX_ACCESS_KEYS:
            raise KmsError("Rejected.LimitExceeded", f"A user has at most {MAX_ACCESS_KEYS} access keys; delete one first.")
        self.trigger_event(events.AccessKeyCreated, access_key_id=access_key_id, **by.fields)

    def switch_access_key(self, access_key_id: str, enabled: bool, by: By) -> None:
        if self._has(access_key_id) != enabled:
            self.trigger_event(events.AccessKeyEnabled if enabled else events.AccessKeyDisabled, access_key_id=access_key_id, **by.fields)

    def delete_access_key(self, access_key_id: str, by: By) -> None:
        self._has(access_key_id)
        self.trigger_event(events.AccessKeyDeleted, access_key_id=access_key_id, **by.fields)

    def _has(self, access_key_id: str) -> bool:
        if access_key_id not in self.access_keys:
            raise no_access_key()
        return self.access_keys[access_key_id]


def no_user() -> KmsError:
    return KmsError("EntityNotExist.User", "The user does not exist.")


def no_access_key() -> KmsError:
    return KmsError("InvalidAccessKeyId.NotFound", "The Access Key ID provided does not exist in our records.")
