"""How an operation is described: its parameters, their kinds, and what answers it. Data only; nothing here reads or checks a value."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum, auto
from typing import Any

_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class Kind(IntEnum):  # of int, whose hash is quick
    """What the text of a parameter holds; `parse.py` has one reader for each."""

    STRING = auto()
    INTEGER = auto()
    BOOLEAN = auto()  # true or false in any case
    TEXT = auto()  # an opaque string, handed to the engine as its UTF-8
    BLOB = auto()  # base64 of a ciphertext; what is not has the one answer of all that does not decrypt
    BYTES = auto()  # base64
    BLOBS = auto()  # JSON array of base64
    CONTEXT = auto()  # JSON object, string to string
    TAGS = auto()  # JSON array [{"TagKey":…,"TagValue":…}]
    STRINGS = auto()  # JSON array of strings, or strings between commas
    FILTERS = auto()  # JSON array [{"Key":…,"Values":[…]}]
    NUMBERED = auto()  # Name.1, Name.2, …
    NUMBERED_TAGS = auto()  # Tag.1.Key, Tag.1.Value, …; a value left out is empty
    NUMBERED_TAG_FILTERS = auto()  # the same; a value left out matches any
    DRY_RUN = auto()  # true or false; read by `invoke`, not by the engine
    UNOFFERED = auto()  # known to the API, refused here unless it says what is so anyway (`default`)


class Target(Enum):
    """What a parameter names, that a caller must be permitted to use; of a list, each item does."""

    NONE = auto()
    KEY = auto()  # by id, ARN or alias
    OWN_ID = auto()  # a key by id or ARN; the engine refuses an alias
    BLOB = auto()  # the key that made a ciphertext
    ALIAS = auto()  # an alias, and the key that it names now


REPEATED = frozenset({Kind.NUMBERED, Kind.NUMBERED_TAGS, Kind.NUMBERED_TAG_FILTERS})


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter under its wire name.

    `minimum` and `maximum` bound an integer, the characters of a string, the UTF-8 bytes of a text, or the items of a list. `default` is
    what the engine does when the parameter is absent: it is told, not sent. `target`, unless the argument `target_unless` is given: what
    it names. `secret`: no error and no log holds its value.
    """

    name: str
    help: str
    kind: Kind = Kind.STRING
    required: bool = False
    minimum: int | None = None
    maximum: int | None = None
    choices: tuple[str, ...] = ()
    default: str = ""
    may_be_empty: bool = False
    target: Target = Target.NONE
    target_unless: str = ""
    secret: bool = False

    argument: str = field(init=False)
    """The name of the Python argument."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "argument", snake_case(self.name))


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: the wire's name, the engine's method, and how its result is told on the wire.

    `fixed` are arguments that every call on the wire has. An `extension` is not part of the API of Alibaba Cloud; its `action`, what a
    policy calls it, is that of the operation it equals, so that no policy is walked around. `collection`: what a policy calls the resource
    of a call that names no key.
    """

    name: str
    help: str
    group: str
    params: tuple[Param, ...]
    answer: Callable[[Any], dict[str, Any]]
    method: str = ""
    extension: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)
    action: str = ""
    collection: str = "*"
    known: Mapping[str, Param] = field(init=False)  # by name
    targets: tuple[Param, ...] = field(init=False)  # those that name something

    def __post_init__(self) -> None:
        if not self.method:
            object.__setattr__(self, "method", snake_case(self.name))
        object.__setattr__(self, "action", f"kms:{self.action or self.name}")
        object.__setattr__(self, "known", {param.name: param for param in self.params})
        object.__setattr__(self, "targets", tuple(param for param in self.params if param.target is not Target.NONE))

    @property
    def takes_region(self) -> bool:
        """RegionId is a parameter of its own, not one of the protocol."""
        return "RegionId" in self.known


def snake_case(name: str) -> str:
    return _WORD.sub("_", name).lower()
