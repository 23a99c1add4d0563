"""One HTTP request as the wire sees it: read, decoded, not yet believed."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

from kmscore.api.params import FORM, decode_params, merge, unreadable
from kmscore.errors import KmsError, invalid, missing
from kmscore.signing import EMPTY_SHA256

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

API_VERSION = "2016-01-20"
LEAST_POSITION = "x-kms-min-position"
MAX_BODY_BYTES = 1 << 20
MAX_DROPPED_BYTES = 16 << 20  # of a body that is too large, so that its sender hears why

# Parameters of the protocol itself. RegionId is one too, where an operation does not ask for it (the old SDK always sends it).
PROTOCOL = frozenset(
    "Action Version Format AccessKeyId SignatureMethod SignatureVersion SignatureNonce SignatureType Timestamp Signature"
    " SecurityToken".split()
)
# Headers that may stand once only: two of them would let two readers see two requests.
_ONCE = ("host", "authorization", "content-type", "content-length")


@dataclass(slots=True)
class Request:
    """`query` and `params` (query and form together) are decoded; `headers` have lower-case names; `body_sha256` is of the raw body."""

    method: str
    query: dict[str, str]
    params: dict[str, str]
    headers: dict[str, str]
    body_sha256: str

    @property
    def authorization(self) -> str:
        return self.headers.get("authorization", "")

    @property
    def least_position(self) -> int:
        """From where in the log on the request is to be answered; 0: it does not say. Raises InvalidParameter."""
        said = self.headers.get(LEAST_POSITION)
        if said is None:
            return 0
        if not (said.isascii() and said.isdigit() and len(said) <= 18):
            raise invalid(LEAST_POSITION, "It is what an answer said in x-kms-position.")
        return int(said)

    def action(self, *, by_header: bool) -> str:
        """The action and version that the signature covers: headers of an ACS request, parameters of a V1 request."""
        action, version = self._named("Action", by_header), self._named("Version", by_header)
        if version != API_VERSION:
            raise invalid("Version", f"It is {API_VERSION}.")
        return action

    def _named(self, name: str, by_header: bool) -> str:
        said = self.headers.get(f"x-acs-{name.lower()}", "") if by_header else self.params.get(name, "")
        if not said:
            raise missing(name)
        if by_header and self.params.get(name, said) != said:
            raise unreadable(f"header and parameter {name} differ")
        return said

    def business(self, region_wanted: bool) -> dict[str, str]:
        """The parameters of the operation, without those of the protocol."""
        return {name: value for name, value in self.params.items() if name not in PROTOCOL and (name != "RegionId" or region_wanted)}


def make_request(scope: Scope, body: bytes) -> Request:
    """Raises KmsError UnsupportedHTTPMethod, ParseRequestParameterException or InvalidParameter."""
    method = scope["method"]
    if method not in ("POST", "GET"):
        raise KmsError("UnsupportedHTTPMethod", "This HTTP method is not supported; use POST or GET.")
    headers = _headers(scope["headers"])
    query = decode_params(scope["query_string"])
    if not body:
        return Request(method, query, query, headers, EMPTY_SHA256)
    if method == "GET":
        raise unreadable("a GET request has no body")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != FORM:
        raise unreadable(f"a body is {FORM}")
    return Request(method, query, merge(query, decode_params(body)), headers, hashlib.sha256(body).hexdigest())


async def read_body(receive: Receive) -> bytes:
    """The whole body, de-chunked. Raises KmsError ParseRequestParameterException for one of more than 1 MiB."""
    body = bytearray()
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise unreadable("the client went away")
        part = message.get("body", b"")
        size += len(part)
        if size <= MAX_BODY_BYTES:
            body += part
        more = message.get("more_body", False) and size <= MAX_DROPPED_BYTES
    if size > MAX_BODY_BYTES:
        raise too_large()
    return bytes(body)


def has_body(scope: Scope) -> bool:
    """Raises KmsError ParseRequestParameterException for one that says it is too large to be read and dropped."""
    for name, value in scope["headers"]:
        if name == b"transfer-encoding":
            return True
        if name == b"content-length":
            if len(value.strip()) > 9 or int(value) > MAX_DROPPED_BYTES:
                raise too_large()
            return int(value) > 0
    return False


def too_large() -> KmsError:
    return unreadable(f"the body is larger than {MAX_BODY_BYTES} bytes")


def _headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Without the white space around a value, which no signature covers: what is read is what was signed.

    Raises ParseRequestParameterException for one that counts and is given twice; of others the values are joined.
    """
    headers: dict[str, str] = {}
    for raw_name, raw_value in raw:
        name = raw_name.decode("latin-1")
        try:
            value = raw_value.decode().strip()
        except UnicodeDecodeError:
            value = raw_value.decode("latin-1").strip()
        if name in headers:
            if name in _ONCE or name.startswith("x-acs-"):
                raise unreadable(f"the header {name} is given twice")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return headers
