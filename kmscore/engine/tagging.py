"""The tag operations: TagResource and its kin for one key, TagResources and its kin for several (SEMANTICS section 7)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence

from kmscore.clock import Clock
from kmscore.domain.by import By
from kmscore.domain.key import Key
from kmscore.domain.names import MAX_TAGS, Place, check_tag_key, check_tag_keys, check_tag_value
from kmscore.engine.arguments import flag, key_id_only, required, string_map, strings
from kmscore.engine.lifecycle import Lifecycle
from kmscore.errors import KmsError, invalid
from kmscore.results import Tag, TagPage
from kmscore.store.queries import Queries

MAX_RESOURCES = 50
TAG_PAGE_ROWS = 200
_START = ("", "")


class Tagging:
    def __init__(self, lifecycle: Lifecycle, queries: Queries, clock: Clock, place: Place) -> None:
        self._lifecycle = lifecycle
        self._queries = queries
        self._clock = clock
        self._place = place

    # --- one key -----------------------------------------------------------------------------------------------------------------

    def tag(self, key_id: str, tags: Mapping[str, str]) -> None:
        new = string_map(tags, "Tags")
        self._lifecycle.change((key_id_only(key_id, self._place),), lambda key, by: key.tag(new, by))

    def untag(self, key_id: str, tag_keys: Sequence[str]) -> None:
        gone = check_tag_keys(strings(tag_keys, "TagKeys", MAX_TAGS))
        self._lifecycle.change((key_id_only(key_id, self._place),), lambda key, by: key.untag(gone, by))

    def of(self, key_id: str) -> tuple[Tag, ...]:
        key = self._lifecycle.load(key_id_only(key_id, self._place))
        return tuple(Tag(key.id, name, value) for name, value in sorted(key.tags.items()))

    # --- several keys, all or none -----------------------------------------------------------------------------------------------

    def tag_all(self, resource_id: Sequence[str], tags: Mapping[str, str], resource_type: str) -> None:
        new = string_map(tags, "Tag")
        self._change(resource_id, resource_type, lambda key, by: key.tag(new, by))

    def untag_all(self, resource_id: Sequence[str], tag_keys: Sequence[str], everything: bool, resource_type: str) -> None:
        """Take away `tag_keys`; every tag only if `everything` is asked for and no tag key is given."""
        if not tag_keys and not flag(everything, "All"):
            raise invalid("TagKey", "Give tag keys, or All for every tag.")
        gone = check_tag_keys(strings(tag_keys, "TagKey", MAX_TAGS)) if tag_keys else None
        self._change(resource_id, resource_type, lambda key, by: key.untag(gone, by))

    def list(self, resource_id: Sequence[str], tags: Mapping[str, str | None] | None, next_token: str, resource_type: str) -> TagPage:
        """Tags of these keys, or of all, that bear all of `tags` (None: any value); 200 rows a page."""
        _check_type(resource_type)
        named = strings(resource_id, "ResourceId", MAX_RESOURCES) if resource_id else ()
        ids = tuple(dict.fromkeys(key_id_only(each, self._place, "ResourceId") for each in named))
        if tags is not None and (not isinstance(tags, Mapping) or len(tags) > MAX_TAGS):
            raise invalid("Tag", f"It is a map of at most {MAX_TAGS} tags.")
        wanted = {check_tag_key(name): None if value is None else check_tag_value(value) for name, value in (tags or {}).items()}
        after = _parse_token(next_token)
        rows = self._queries.list_tags(self._clock.now(), ids, wanted, after, TAG_PAGE_ROWS + 1)
        page = tuple(Tag(*row) for row in rows[:TAG_PAGE_ROWS])
        return TagPage(page, _token(page[-1]) if len(rows) > TAG_PAGE_ROWS else "")

    def _change(self, resource_id: Sequence[str], resource_type: str, decide: Callable[[Key, By], None]) -> None:
        _check_type(resource_type)
        ids = dict.fromkeys(key_id_only(i, self._place, "ResourceId") for i in strings(resource_id, "ResourceId", MAX_RESOURCES))
        try:
            self._lifecycle.change(tuple(ids), decide)
        except KmsError as error:
            if error.code != "Forbidden.KeyNotFound":
                raise
            raise KmsError("InvalidResourceId.NotFound", "The specified ResourceId is not found.") from None


def _check_type(resource_type: str) -> None:
    if resource_type != "key":
        raise invalid("ResourceType", "Keys are the only resources here.")


def _token(tag: Tag) -> str:
    return base64.urlsafe_b64encode(f"{tag.key_id}\n{tag.tag_key}".encode()).decode()


def _parse_token(token: str) -> tuple[str, str]:
    if not token:
        return _START
    try:
        key_id, tag_key = base64.b64decode(required(token, "NextToken"), altchars=b"-_", validate=True).decode().split("\n")
    except (binascii.Error, ValueError):
        raise invalid("NextToken") from None
    return key_id, tag_key
