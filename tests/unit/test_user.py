"""The User aggregate: created, given access keys, deleted, created again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from test_states import BY

from kmscore.domain.user import User
from kmscore.errors import KmsError

POLICY = '{"Version":"1","Statement":[{"Effect":"Allow","Action":"kms:*","Resource":"*"}]}'


def code(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(KmsError) as refused:
        call(*arguments)
    return refused.value.code


def new_user(name: str = "ann", policy: str = "") -> User:
    return User.create(None, name, policy, BY)


@pytest.mark.parametrize("name", ["", "a b", "-a", "é", "a/b", "a" * 65, "a\n", None, "alias/a"])
def test_names(name: Any) -> None:
    assert code(User.create, None, name, "", BY) == "InvalidParameter"
    assert new_user("a" * 64).name == "a" * 64
    assert new_user("A.b_c-1").id == "user/A.b_c-1"


def test_a_policy_is_checked_before_it_is_kept() -> None:
    assert code(User.create, None, "ann", "{}", BY) == "InvalidParameter"
    user = new_user()
    assert code(user.set_policy, "{}", BY) == "InvalidParameter"
    user.collect_events()
    user.set_policy(POLICY, BY)
    user.set_policy(POLICY, BY)
    assert len(user.collect_events()) == 1
    user.set_policy("", BY)
    assert user.policy == ""


def test_two_access_keys_at_most() -> None:
    user = new_user()
    user.add_access_key("K1", BY)
    user.add_access_key("K2", BY)
    assert code(user.add_access_key, "K3", BY) == "Rejected.LimitExceeded"
    user.switch_access_key("K1", False, BY)
    user.switch_access_key("K1", False, BY)
    assert user.access_keys == {"K1": False, "K2": True}
    assert code(user.add_access_key, "K3", BY) == "Rejected.LimitExceeded"  # a disabled one counts
    user.delete_access_key("K1", BY)
    user.add_access_key("K3", BY)
    assert set(user.access_keys) == set(user.created) == {"K2", "K3"}
    assert code(user.switch_access_key, "K1", True, BY) == code(user.delete_access_key, "K1", BY) == "InvalidAccessKeyId.NotFound"


def test_a_user_that_is_deleted_leaves_nothing_to_one_of_the_same_name() -> None:
    user = new_user("ann", POLICY)
    user.add_access_key("K1", BY)
    assert code(User.create, user, "ann", "", BY) == "EntityAlreadyExists.User"
    user.delete(BY)
    assert code(user.require) == "EntityNotExist.User"
    again = User.create(user, "ann", "", BY)
    assert (again.exists, again.policy, dict(again.access_keys)) == (True, "", {})
