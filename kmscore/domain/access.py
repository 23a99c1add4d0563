"""Who calls, and the names of what they call on: ARNs of users, keys and aliases. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kmscore.domain.policy import IdentityPolicy
from kmscore.errors import KmsError, invalid

USER_PREFIX = "user/"
MAX_ACCESS_KEYS = 2  # of one user: an old one and the one that takes its place

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Caller:
    """A user, or the account itself: root, whose `name` is empty and whose `policy` is None, for it may do everything."""

    name: str
    arn: str
    policy: IdentityPolicy | None
    access_key_id: str = ""
    """What they signed with; empty in a simulation."""


def root(account_id: str, access_key_id: str) -> Caller:
    return Caller("", f"acs:ram::{account_id}:root", None, access_key_id)


def user(account_id: str, name: str, policy: IdentityPolicy, access_key_id: str = "") -> Caller:
    return Caller(name, f"acs:ram::{account_id}:{USER_PREFIX}{name}", policy, access_key_id)


def check_user_name(name: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise invalid("UserName", "It is 1 to 64 letters, digits, '.', '_' or '-', and begins with a letter or digit.")
    return name


def no_permission() -> KmsError:
    return KmsError("Forbidden.NoPermission", "This operation is forbidden by permission system.")
