"""Request signatures of the wire: RPC V1, ACS3 and ACS4, as canonical forms and keyed hashes. A server verifies with it, a client signs.

All work on decoded parameters: what a client sends differs in how spaces and reserved characters are written, what it signs does not.
Facts: Alibaba Cloud's "V3 request body & signature mechanism" and "RPC signature", measured with its official clients.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping, Sequence

from kmscore._percent import encode as percent

ACS3 = "ACS3-HMAC-SHA256"
ACS4 = "ACS4-HMAC-SHA256"
V1 = "HMAC-SHA1"
ACS4_ENDING = "aliyun_v4_request"
ACS4_PREFIX = "aliyun_v4"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()

Order = Callable[[str], str | bytes]


def canonical_query(params: Mapping[str, str], order: Order | None = None) -> str:
    """Parameters in the order of their names, encoded. `order`: another order of names than that of code points."""
    return "&".join([f"{percent(name)}={percent(params[name])}" for name in (sorted(params, key=order) if order else sorted(params))])


def utf16_order(name: str) -> bytes:
    """How JavaScript sorts strings; it differs from the order of code points beyond the basic plane."""
    return name.encode("utf-16-be")


# --- RPC V1 ------------------------------------------------------------------------------------------------------------------------


def v1_string_to_sign(method: str, params: Mapping[str, str], order: Order | None = None) -> str:
    """`params`: all of query and form body but Signature."""
    return f"{method}&%2F&{percent(canonical_query(params, order))}"


def v1_signature(secret: str, string_to_sign: str) -> str:
    """Base64 of 20 bytes."""
    return base64.b64encode(hmac.digest(f"{secret}&".encode(), string_to_sign.encode(), "sha1")).decode()


# --- ACS3, ACS4 --------------------------------------------------------------------------------------------------------------------


def canonical_request(method: str, query: str, headers: Sequence[tuple[str, str]], payload_hash: str) -> str:
    """`query`: as canonical_query made it. `headers`: lower-case names and values of the signed ones, in the order they are signed in.

    `payload_hash`: SHA-256 of the body in lower-case hexadecimal.
    """
    lines = "".join([f"{name}:{value.strip()}\n" for name, value in headers])
    return f"{method}\n/\n{query}\n{lines}\n{signed_names(name for name, _ in headers)}\n{payload_hash}"


def signed_names(names: Iterable[str]) -> str:
    return ";".join(names)


def acs_string_to_sign(algorithm: str, request: str) -> str:
    return f"{algorithm}\n{hashlib.sha256(request.encode()).hexdigest()}"


def acs_signature(key: bytes, string_to_sign: str) -> str:
    """64 lower-case hexadecimal digits. `key`: the secret itself (ACS3), or what acs4_key makes of it (ACS4)."""
    return hmac.digest(key, string_to_sign.encode(), "sha256").hex()


def acs4_scope(date: str, region: str, product: str) -> str:
    """What stands behind the access key in an ACS4 credential. `date`: YYYYMMDD."""
    return f"{date}/{region}/{product}/{ACS4_ENDING}"


def acs4_key(secret: str, date: str, region: str, product: str) -> bytes:
    """32 bytes."""
    key = f"{ACS4_PREFIX}{secret}".encode()
    for part in (date, region, product, ACS4_ENDING):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
