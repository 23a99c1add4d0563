"""Requests of the wire in memory, signed with one secret; for the tests of the parts of kmscore.api."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from kmscore import signing
from kmscore.api.request import Request, make_request

SECRET = "testsecret"
STAMP = "2024-01-02T03:04:05Z"
NONCE = "0123456789abcdef"
FORM = "application/x-www-form-urlencoded"


def made(query: str = "", headers: Iterable[tuple[str, str]] = (), body: bytes = b"", method: str = "POST") -> Request:
    raw = [(name.encode(), value.encode()) for name, value in headers]
    return make_request({"method": method, "query_string": query.encode(), "headers": raw}, body)


def v1(params: dict[str, str] | None = None, method: str = "POST", **changed: Any) -> dict[str, str]:
    """Signed parameters. `changed` are changed, or with None left out, before they are signed."""
    common = {
        "Action": "Encrypt",
        "Version": "2016-01-20",
        "AccessKeyId": "testid",
        "SignatureMethod": "HMAC-SHA1",
        "SignatureVersion": "1.0",
        "SignatureNonce": NONCE,
        "Timestamp": STAMP,
        **(params or {}),
        **changed,
    }
    kept = {name: value for name, value in common.items() if value is not None}
    return {**kept, "Signature": signing.v1_signature(SECRET, signing.v1_string_to_sign(method, kept))}


def acs(
    params: dict[str, str] | None = None,
    body: bytes = b"",
    *,
    scheme: str = signing.ACS3,
    unsigned: Iterable[str] = (),
    listed: str | None = None,
    scope: str | None = None,
    method: str = "POST",
    **changed: Any,
) -> tuple[str, list[tuple[str, str]]]:
    """(query, headers). `changed` headers (_ for -) are changed, or with None left out, before they are signed; `unsigned` are sent only."""
    headers = {
        "host": "kms.test",
        "x-acs-action": "Encrypt",
        "x-acs-content-sha256": hashlib.sha256(body).hexdigest(),
        "x-acs-date": STAMP,
        "x-acs-signature-nonce": NONCE,
        "x-acs-version": "2016-01-20",
        **({"content-type": FORM} if body else {}),
        **{name.replace("_", "-"): value for name, value in changed.items()},
    }
    headers = {name: value for name, value in headers.items() if value is not None}
    signed = sorted((name, value) for name, value in headers.items() if name not in unsigned)
    query = signing.canonical_query(params or {})
    request = signing.canonical_request(method, query, signed, headers.get("x-acs-content-sha256", ""))
    key, credential = SECRET.encode(), "testid"
    if scheme == signing.ACS4:
        scope = scope or "20240102/cn-hangzhou/Kms/aliyun_v4_request"
        date, region, product = scope.split("/")[:3]
        key, credential = signing.acs4_key(SECRET, date, region, product), f"testid/{scope}"
    signature = signing.acs_signature(key, signing.acs_string_to_sign(scheme, request))
    names = listed if listed is not None else ";".join(name for name, _ in signed)
    return query, [*headers.items(), ("authorization", f"{scheme} Credential={credential},SignedHeaders={names},Signature={signature}")]
