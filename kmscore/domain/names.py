"""Rules for names that callers choose or pass: aliases, tags, descriptions, key references (SEMANTICS sections 6 and 7)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kmscore.errors import KmsError, invalid, key_not_found

ALIAS_PREFIX = "alias/"
MAX_ALIAS_CHARS = 255
MAX_REFERENCE_CHARS = 512  # the ARN of the longest alias has less
MAX_DESCRIPTION_CHARS = 8192
MAX_TAGS = 20
MAX_TAG_CHARS = 128

IMPORT_PREFIX = "import/"

_ALIAS = re.compile(r"alias/[A-Za-z0-9_\-/.]+")
_TAG = re.compile(r"[A-Za-z0-9/\\_\-.+=:@]*")
_REFERENCE = re.compile(r"(acs:kms:[A-Za-z0-9-]{1,40}:[0-9]{1,40}:)?((key/)?key-[a-z0-9]{22}|alias/[A-Za-z0-9_\-/.]{1,249})")
_ARN = re.compile(r"acs:kms:([^:]*):([^:]*):(key/[^:]+|alias/[^:]+)")


@dataclass(frozen=True, slots=True)
class Place:
    """The region and account that ARNs of this service name."""

    region: str
    account_id: str

    def arn(self, what: str) -> str:
        return f"acs:kms:{self.region}:{self.account_id}:{what}"

    def key_arn(self, key_id: str) -> str:
        return f"acs:kms:{self.region}:{self.account_id}:key/{key_id}"

    def alias_arn(self, alias_name: str) -> str:
        return f"acs:kms:{self.region}:{self.account_id}:{alias_name}"

    def strip(self, reference: str) -> str:
        """A key id or `alias/…` out of an id, an alias or an ARN of this region and account.

        Raises KmsError Forbidden.KeyNotFound for an ARN of somewhere else (DECISIONS 39).
        """
        if len(reference) > MAX_REFERENCE_CHARS:  # no name is; policies compare it, and remember that they did
            raise invalid("KeyId", f"It is at most {MAX_REFERENCE_CHARS} characters.")
        if not reference.startswith("acs:"):
            return reference
        match = _ARN.fullmatch(reference)
        if match is None:
            raise invalid("KeyId")
        if (match[1], match[2]) != (self.region, self.account_id):
            raise key_not_found()
        return match[3].removeprefix("key/")


def plain_reference(text: str) -> str:
    """`text` if it can name a key, else nothing: what a caller put in the place of a name is not repeated."""
    return text if _REFERENCE.fullmatch(text) else ""


def import_prefix(key_id: str) -> str:
    """How the streams of a key's import offers begin."""
    return f"{IMPORT_PREFIX}{key_id}/"


def check_alias(name: str, *, create: bool) -> str:
    """`name` if it may be an alias. Raises KmsError InvalidParameter (AliasName)."""
    if not isinstance(name, str) or len(name) > MAX_ALIAS_CHARS or not _ALIAS.fullmatch(name):
        raise invalid("AliasName", "It is alias/ and letters, digits, '_', '-', '/' or '.', at most 255 characters in all.")
    if create and name.startswith("alias/acs"):
        raise invalid("AliasName", "Names that begin with alias/acs are reserved.")
    return name


def check_description(text: str) -> str:
    if not isinstance(text, str) or len(text) > MAX_DESCRIPTION_CHARS:
        raise invalid("Description", "It is at most 8192 characters.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise invalid("Description", "It holds a character that UTF-8 cannot carry.") from None
    return text


def check_tag_key(key: str) -> str:
    if not isinstance(key, str) or not 1 <= len(key) <= MAX_TAG_CHARS or not _TAG.fullmatch(key) or key.startswith(("aliyun", "acs:")):
        raise KmsError("InvalidParameter.TagKey", "The specified tag key is not valid.")
    return key


def check_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """A plain copy of `tags` if every key and value is allowed and there are at most 20."""
    if len(tags) > MAX_TAGS:
        raise invalid("Tags", "A key has at most 20 tags.")
    return {check_tag_key(key): check_tag_value(value) for key, value in tags.items()}


def check_tag_value(value: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_TAG_CHARS or not _TAG.fullmatch(value):
        raise KmsError("InvalidParameter.TagValue", "The specified tag value is not valid.")
    return value


def check_tag_keys(keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(check_tag_key(key) for key in keys)
