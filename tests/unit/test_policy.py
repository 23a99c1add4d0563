"""Policies: what is understood, what is refused, and who may do what."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from kmscore.domain.policy import (
    MAX_POLICY_BYTES,
    IdentityPolicy,
    KeyPolicy,
    check_action,
    decide,
    default_key_policy,
    glob,
    parse_identity_policy,
    parse_key_policy,
)
from kmscore.errors import KmsError

ACCOUNT = "1000000000000001"
KEY = f"acs:kms:cn-local:{ACCOUNT}:key/key-1"
EVERYONE, ROOT, ANN = (f"acs:ram::{ACCOUNT}:{who}" for who in ("*", "root", "user/ann"))


def text(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "1", "Statement": list(statements)})


def says(effect: str, action: str | list[str] = "kms:*", resource: str | list[str] = "*", **more: Any) -> dict[str, Any]:
    return {"Effect": effect, "Action": action, "Resource": resource, **more}


def identity(*statements: dict[str, Any]) -> IdentityPolicy:
    return parse_identity_policy(text(*statements)) if statements else IdentityPolicy()


def of_key(*statements: tuple[str, str, str | list[str]]) -> KeyPolicy:
    """(effect, principal, actions) each."""
    made = [says(effect, action, ["*"], Principal={"RAM": [principal]}) for effect, principal, action in statements]
    return parse_key_policy(text(*made), ACCOUNT)


ALL = identity(says("Allow"))
NOTHING = identity()


@pytest.mark.parametrize(
    ("policy", "key_policy", "allowed", "why"),
    [
        # The user's own policy, and a key without one.
        (NOTHING, None, False, "no statement of the user's policy"),
        (ALL, None, True, "statement 1 of the user's policy"),
        (identity(says("Allow", "kms:Encrypt")), None, True, "statement 1"),
        (identity(says("Allow", "KMS:encrypt")), None, True, "statement 1"),
        (identity(says("Allow", ["kms:Decrypt", "kms:Enc*"])), None, True, "statement 1"),
        (identity(says("Allow", "kms:Encryp?")), None, True, "statement 1"),
        (identity(says("Allow", "kms:Encrypt?")), None, False, "no statement"),
        (identity(says("Allow", "kms:Decrypt")), None, False, "no statement"),
        (identity(says("Allow", "*")), None, True, "statement 1"),
        (identity(says("Allow", resource=KEY)), None, True, "statement 1"),
        (identity(says("Allow", resource="acs:kms:*:*:key/*")), None, True, "statement 1"),
        (identity(says("Allow", resource=["acs:kms:*:*:alias/*", "acs:kms:*:*:key/key-?"])), None, True, "statement 1"),
        (identity(says("Allow", resource="acs:kms:*:*:key/key-2")), None, False, "no statement"),
        (identity(says("Allow", resource="acs:kms:*:*:key/KEY-1")), None, False, "no statement"),
        (identity(says("Allow", resource="acs:kms:*:*:key")), None, False, "no statement"),
        (identity(says("Allow"), says("Deny", "kms:Encrypt", KEY)), None, False, "denied by statement 2 of the user's policy"),
        (identity(says("Deny", "kms:E*"), says("Allow")), None, False, "denied by statement 1"),
        (identity(says("Deny", "kms:Decrypt"), says("Allow")), None, True, "statement 2"),
        # The key's policy leaves it to the account, or does not.
        (ALL, of_key(("Allow", EVERYONE, "kms:*")), True, "statement 1 of the user's"),
        (ALL, of_key(("Allow", ROOT, "kms:*")), True, "statement 1 of the user's"),
        (NOTHING, of_key(("Allow", EVERYONE, "kms:*")), False, "no statement of the user's policy"),
        (ALL, of_key(("Allow", EVERYONE, "kms:Decrypt")), False, "no statement of the key's policy"),
        (ALL, of_key(("Allow", f"acs:ram::{ACCOUNT}:user/bob", "kms:*")), False, "no statement of the key's policy"),
        (ALL, KeyPolicy(()), False, "no statement of the key's policy"),
        # … or allows the user by name.
        (NOTHING, of_key(("Allow", ANN, "kms:Encrypt")), True, "statement 1 of the key's policy"),
        (NOTHING, of_key(("Allow", f"acs:ram::{ACCOUNT}:user/a*", "kms:Encrypt")), True, "statement 1 of the key's policy"),
        (NOTHING, of_key(("Allow", ANN, "kms:Decrypt")), False, "no statement of the key's policy"),
        # A denial anywhere wins.
        (identity(says("Deny", "kms:Encrypt")), of_key(("Allow", ANN, "kms:*")), False, "denied by statement 1 of the user's"),
        (ALL, of_key(("Allow", ANN, "kms:*"), ("Deny", EVERYONE, "kms:Encrypt")), False, "denied by statement 2 of the key's"),
        (ALL, of_key(("Deny", ANN, "kms:*"), ("Allow", EVERYONE, "kms:*")), False, "denied by statement 1 of the key's"),
        (ALL, of_key(("Deny", f"acs:ram::{ACCOUNT}:user/bob", "kms:*"), ("Allow", EVERYONE, "kms:*")), True, "the user's policy"),
    ],
)
def test_what_a_user_may_do(policy: IdentityPolicy, key_policy: KeyPolicy | None, allowed: bool, why: str) -> None:
    got, reason = decide(policy, "ann", "kms:Encrypt", KEY, key_policy)
    assert got is allowed
    assert why in reason


@pytest.mark.parametrize(
    ("key_policy", "allowed"),
    [
        (None, True),
        (of_key(("Allow", ROOT, "kms:*")), True),
        (of_key(("Allow", EVERYONE, "kms:*")), True),
        (of_key(("Allow", ANN, "kms:*")), False),
        (of_key(("Allow", EVERYONE, "kms:*"), ("Deny", ROOT, "kms:Encrypt")), False),
        (of_key(("Allow", EVERYONE, "kms:*"), ("Deny", f"acs:ram::{ACCOUNT}:user/*", "kms:Encrypt")), True),
    ],
)
def test_the_account_may_do_everything_that_a_key_leaves_to_it(key_policy: KeyPolicy | None, allowed: bool) -> None:
    assert decide(None, "", "kms:Encrypt", KEY, key_policy)[0] is allowed


def test_the_default_is_as_if_none_were_set() -> None:
    policy = parse_key_policy(default_key_policy(ACCOUNT), ACCOUNT)
    for own in (NOTHING, ALL, None):
        assert decide(own, "ann", "kms:Encrypt", KEY, policy)[0] is decide(own, "ann", "kms:Encrypt", KEY, None)[0]


GOOD = says("Allow")
OF_KEY = says("Allow", "kms:*", ["*"], Principal={"RAM": [EVERYONE]})


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "{",
        "null",
        "[]",
        '"x"',
        "[" * 100_000,
        '{"a":' * 50_000,
        json.dumps({"Version": "2", "Statement": [GOOD]}),
        json.dumps({"Version": 1, "Statement": [GOOD]}),
        json.dumps({"Version": "1", "Statement": []}),
        json.dumps({"Version": "1", "Statement": GOOD}),
        json.dumps({"Version": "1", "Statement": [GOOD] * 101}),
        json.dumps({"Version": "1", "Statement": [GOOD], "Id": "x"}),
        '{"Version":"1","Version":"1","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}',
        '{"Version":"1","Statement":[{"Effect":"Deny","Effect":"Allow","Action":"*","Resource":"*"}]}',
        text({}),
        text("Allow"),  # type: ignore[arg-type]
        text(says("allow")),
        text(says(["Allow"])),  # type: ignore[arg-type]
        text(says("Allow", [])),
        text(says("Allow", [1])),  # type: ignore[list-item]
        text(says("Allow", {})),  # type: ignore[arg-type]
        text(says("Allow", "ecs:*")),
        text(says("Allow", "kms:Encrypt\x00")),
        text(says("Allow", "kms:Encrypt\n")),
        text(says("Allow", "")),
        text(says("Allow", ["kms:*"] * 101)),
        text(says("Allow", resource="")),
        text(says("Allow", Condition={})),
        text(says("Allow", NotAction="kms:*")),
        text(says("Allow", Principal={"RAM": ["*"]})),
        text(says("Allow", Sid="x" * 129)),
        text(says("Allow", Sid=1)),
        text(says("Allow", resource="\ud800")),
        "\ud800",
        text(says("Allow", resource="x" * MAX_POLICY_BYTES)),
    ],
    ids=lambda bad: bad[:60].encode("ascii", "replace").decode(),
)
def test_what_is_not_understood_is_refused_by_name(bad: str) -> None:
    for parse in (parse_identity_policy, lambda given: parse_key_policy(given, ACCOUNT)):
        with pytest.raises(KmsError) as refused:
            parse(bad)
        assert refused.value.code == "InvalidParameter"
        assert '"Policy"' in refused.value.message
        assert len(refused.value.message) < 400


@pytest.mark.parametrize(
    "principal",
    [
        None,
        {},
        "*",
        {"RAM": []},
        {"RAM": ["*"]},
        {"RAM": ["acs:ram::2000000000000002:root"]},
        {"RAM": [f"acs:ram::{ACCOUNT}:role/r"]},
        {"RAM": [f"acs:ram::{ACCOUNT}:user/"]},
        {"RAM": [f"acs:ram::{ACCOUNT}:user/a/b"]},
        {"RAM": [EVERYONE], "Service": ["x"]},
    ],
)
def test_principals_are_those_of_the_account(principal: Any) -> None:
    statement = {**OF_KEY, "Principal": principal}
    if principal is None:
        del statement["Principal"]
    with pytest.raises(KmsError) as refused:
        parse_key_policy(text(statement), ACCOUNT)
    assert refused.value.code == "InvalidParameter"


def test_a_key_policy_speaks_of_its_own_key_only() -> None:
    parse_key_policy(text(OF_KEY), ACCOUNT)
    with pytest.raises(KmsError):
        parse_key_policy(text({**OF_KEY, "Resource": [KEY]}), ACCOUNT)


@pytest.mark.parametrize(
    ("pattern", "word", "fits"),
    [
        ("*", "", True),
        ("", "", True),
        ("", "a", False),
        ("a*c", "abc", True),
        ("a*c", "ac", True),
        ("a*c", "acb", False),
        ("a?c", "abc", True),
        ("a?c", "ac", False),
        ("*b*", "abc", True),
        ("**", "x", True),
        ("a*b*c", "a-b-b-c", True),
        ("[a]", "a", False),
        ("a.c", "abc", False),
        ("key/*", "key/é", True),
    ],
)
def test_wildcards(pattern: str, word: str, fits: bool) -> None:
    assert glob(pattern, word) is fits


def test_no_pattern_takes_long() -> None:
    """Backtracking over every star would take years."""
    started = time.process_time()
    assert not glob("*a" * 200 + "b", "a" * 400)
    assert time.process_time() - started < 5


@pytest.mark.parametrize("action", ["", "Encrypt", "kms:*", "kms:", "kms:Encrypt\n", "ecs:Encrypt"])
def test_one_call_has_one_action(action: str) -> None:
    check_action("kms:Encrypt")
    with pytest.raises(KmsError):
        check_action(action)
