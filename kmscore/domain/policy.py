"""Policies in the form of Alibaba Cloud's RAM, Version "1": what a user may do, and who may use a key. Pure.

Strict: a field that is not understood is refused when the policy is set; one that were passed over could have been a condition.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

from kmscore.domain import strictjson
from kmscore.errors import KmsError, invalid

MAX_POLICY_BYTES = 32768
MAX_STATEMENTS = 100
MAX_ITEM_CHARS = 512
MAX_ITEMS = 100  # actions, resources or principals of a statement
VERSION = "1"

_SID = re.compile(r"[A-Za-z0-9_/+=.@ -]{0,128}", re.ASCII)
_ACTION = re.compile(r"\*|kms:[A-Za-z*?]+", re.ASCII | re.IGNORECASE)
_RESOURCE = re.compile(r"\*|acs:kms:[A-Za-z0-9*?-]+:[0-9*?]+:(key|alias|\*)(/.+)?")
_PRINCIPAL = re.compile(r"acs:ram::([0-9]+):(root|\*|user/([A-Za-z0-9._*?-]{1,64}))", re.ASCII)


class Verdict(Enum):
    """What a policy says of a call. DENIED wins over everything, ALLOWED over SILENT."""

    DENIED = "denied"
    ALLOWED = "allowed"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class Statement:
    """`number` counts from 1, for those who ask why. Actions are lower-case patterns."""

    number: int
    verdict: Verdict
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    account: bool = False  # a key policy: it speaks of everyone in the account
    users: tuple[str, ...] = ()  # … and of users by these patterns

    def speaks_of(self, action: str, resource: str) -> bool:
        return any(glob(pattern, action) for pattern in self.actions) and any(glob(pattern, resource) for pattern in self.resources)


@dataclass(frozen=True, slots=True)
class IdentityPolicy:
    """What one user may do. Without a statement: nothing."""

    statements: tuple[Statement, ...] = ()

    def judge(self, action: str, resource: str) -> tuple[Verdict, int]:
        """The verdict, and the number of the statement it rests on (0: none)."""
        action = action.lower()
        return _first(s for s in self.statements if s.speaks_of(action, resource))


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """Who may use one key."""

    statements: tuple[Statement, ...]

    def judge_account(self, action: str) -> tuple[Verdict, int]:
        """Of whoever is in the account: ALLOWED leaves it to what their own policies say."""
        action = action.lower()
        return _first(s for s in self.statements if s.account and s.speaks_of(action, "*"))

    def judge_user(self, action: str, name: str) -> tuple[Verdict, int]:
        """Of a user by name."""
        action = action.lower()
        return _first(s for s in self.statements if any(glob(p, name) for p in s.users) and s.speaks_of(action, "*"))


def _first(statements: Iterable[Statement]) -> tuple[Verdict, int]:
    allowed = 0
    for statement in statements:
        if statement.verdict is Verdict.DENIED:
            return Verdict.DENIED, statement.number
        allowed = allowed or statement.number
    return (Verdict.ALLOWED, allowed) if allowed else (Verdict.SILENT, 0)


# --- the decision ------------------------------------------------------------------------------------------------------------------


def decide(identity: IdentityPolicy | None, name: str, action: str, resource: str, key_policy: KeyPolicy | None) -> tuple[bool, str]:
    """May a caller do this, and why? `identity` None: the account itself. `key_policy` None: none was set, the account decides.

    A denial anywhere wins. Else a call is allowed that both the caller's own policy and the key's leave to the account, or that the key's
    policy allows to the user by name.
    """
    own = (Verdict.ALLOWED, 0) if identity is None else identity.judge(action, resource)
    if own[0] is Verdict.DENIED:
        return False, f"denied by statement {own[1]} of the user's policy"
    direct = account = (Verdict.SILENT, 0)
    if key_policy is None:
        account = (Verdict.ALLOWED, 0)
    else:
        account = key_policy.judge_account(action)
        direct = key_policy.judge_user(action, name) if name else direct
        for verdict, number in (account, direct):
            if verdict is Verdict.DENIED:
                return False, f"denied by statement {number} of the key's policy"
    if direct[0] is Verdict.ALLOWED:
        return True, f"allowed by statement {direct[1]} of the key's policy"
    if account[0] is not Verdict.ALLOWED:
        return False, "no statement of the key's policy allows it"
    if own[0] is Verdict.ALLOWED:
        return True, f"allowed by statement {own[1]} of the user's policy" if own[1] else "allowed: the account itself"
    return False, "no statement of the user's policy allows it"


# --- reading -----------------------------------------------------------------------------------------------------------------------


def parse_identity_policy(text: str) -> IdentityPolicy:
    """Raises KmsError InvalidParameter (Policy), which says what is wrong with it."""
    return IdentityPolicy(tuple(_identity(n, item) for n, item in _statements(text)))


def parse_key_policy(text: str, account_id: str) -> KeyPolicy:
    """SEMANTICS section 13. Raises KmsError InvalidParameter (Policy)."""
    return KeyPolicy(tuple(_of_key(n, item, account_id) for n, item in _statements(text)))


def default_key_policy(account_id: str) -> str:
    """What GetKeyPolicy answers where none was set."""
    return (
        '{"Version":"1","Statement":[{"Sid":"kms default key policy","Effect":"Allow",'
        f'"Principal":{{"RAM":["acs:ram::{account_id}:*"]}},"Action":["kms:*"],"Resource":["*"]}}]}}'
    )


def _statements(text: str) -> Iterable[tuple[int, Mapping[str, Any]]]:
    if not isinstance(text, str):
        raise wrong("It is text.")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise wrong("It holds a character that UTF-8 cannot carry.") from None
    if size > MAX_POLICY_BYTES:
        raise wrong(f"It is at most {MAX_POLICY_BYTES} bytes.")
    try:
        policy = strictjson.loads(text)
    except ValueError:
        raise wrong("It is not valid JSON, or a name occurs twice in it.") from None
    if not isinstance(policy, dict) or policy.keys() != {"Version", "Statement"} or policy["Version"] != VERSION:
        raise wrong('It is {"Version":"1","Statement":[…]} and nothing else.')
    items = policy["Statement"]
    if not isinstance(items, list) or not 1 <= len(items) <= MAX_STATEMENTS or not all(isinstance(item, dict) for item in items):
        raise wrong(f"Statement is an array of 1 to {MAX_STATEMENTS} objects.")
    return enumerate(items, 1)


def _identity(number: int, item: Mapping[str, Any]) -> Statement:
    _check_fields(number, item, {"Effect", "Action", "Resource"})
    resources = _texts(number, item["Resource"], "Resource")
    if not all(_RESOURCE.fullmatch(resource) for resource in resources):
        raise wrong(f"Statement {number}: a Resource is * or acs:kms:REGION:ACCOUNT:key/ID, :alias/NAME, :key or :alias, with wildcards.")
    return Statement(number, _effect(number, item), _actions(number, item), resources)


def _of_key(number: int, item: Mapping[str, Any], account_id: str) -> Statement:
    _check_fields(number, item, {"Effect", "Action", "Resource", "Principal"})
    if _texts(number, item["Resource"], "Resource") != ("*",):
        raise wrong(f'Statement {number}: Resource is ["*"]: the key that has the policy.')
    principal = item["Principal"]
    if not isinstance(principal, dict) or principal.keys() != {"RAM"}:
        raise wrong(f'Statement {number}: Principal is {{"RAM":[…]}}.')
    account, users = False, []
    for name in _texts(number, principal["RAM"], "Principal"):
        match = _PRINCIPAL.fullmatch(name)
        if match is None or match[1] != account_id:
            raise wrong(f"Statement {number}: a principal is acs:ram::{account_id}:root, :* or :user/NAME; other accounts have no access.")
        if match[3]:
            users.append(match[3])
        else:
            account = True
    return Statement(number, _effect(number, item), _actions(number, item), ("*",), account, tuple(users))


def _check_fields(number: int, item: Mapping[str, Any], needed: set[str]) -> None:
    missing, unknown = needed - item.keys(), item.keys() - needed - {"Sid"}
    if missing:
        raise wrong(f"Statement {number} has no {', '.join(sorted(missing))}.")
    if unknown:
        raise wrong(f"Statement {number} has fields that are not offered here; it may have {', '.join(sorted(needed | {'Sid'}))}.")
    if not isinstance(item.get("Sid", ""), str) or not _SID.fullmatch(item.get("Sid", "")):
        raise wrong(f"Statement {number}: Sid is at most 128 letters, digits, spaces or _/+=.@-")


def _effect(number: int, item: Mapping[str, Any]) -> Verdict:
    if item["Effect"] not in ("Allow", "Deny"):
        raise wrong(f"Statement {number}: Effect is Allow or Deny.")
    return Verdict.ALLOWED if item["Effect"] == "Allow" else Verdict.DENIED


def _actions(number: int, item: Mapping[str, Any]) -> tuple[str, ...]:
    actions = _texts(number, item["Action"], "Action")
    if not all(_ACTION.fullmatch(action) for action in actions):
        raise wrong(f"Statement {number}: an Action is kms: and the name of an operation, with * and ? as wildcards.")
    return tuple(action.lower() for action in actions)


def _texts(number: int, value: object, field: str) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not 1 <= len(items) <= MAX_ITEMS or not all(map(_is_text, items)):
        raise wrong(f"Statement {number}: {field} is a string, or an array of 1 to {MAX_ITEMS} strings.")
    return tuple(items)


def _is_text(item: object) -> bool:
    return isinstance(item, str) and 0 < len(item) <= MAX_ITEM_CHARS and item.isprintable()


def check_action(action: str) -> None:
    """Of one call: without wildcards. Raises KmsError InvalidParameter (Action)."""
    if not re.fullmatch(r"kms:[A-Za-z]+", action, re.ASCII):
        raise invalid("Action", "It is kms: and the name of an operation.")


def wrong(why: str) -> KmsError:
    return invalid("Policy", why)


@lru_cache(maxsize=8192)
def glob(pattern: str, text: str) -> bool:
    """Whether `text` is as `pattern` says: `*` stands for any characters, `?` for one. In time bounded by the product of their lengths."""
    p = t = 0
    star, mark = -1, 0
    while t < len(text):
        if p < len(pattern) and pattern[p] == "*":
            star, mark = p, t
            p += 1
        elif p < len(pattern) and pattern[p] in ("?", text[t]):
            p += 1
            t += 1
        elif star >= 0:
            mark += 1
            p, t = star + 1, mark
        else:
            return False
    return all(character == "*" for character in pattern[p:])
