"""What is sent back: JSON with a RequestId, always, and the headers that the SDKs look at (WIRE section 9)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from kmscore.errors import KmsError

Headers = list[tuple[bytes, bytes]]

_JSON = (b"content-type", b"application/json;charset=utf-8")
_CLOSE = (b"connection", b"close")
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_PLAIN = bytes(code for code in range(0x20, 0x7F) if code not in b'"\\')  # stands for itself in a JSON string
POSITION = b"x-kms-position"
RETRY_SECONDS = 1.0  # after which a refusal that may pass is worth another try


def success(answer: Mapping[str, Any], request_id: str, position: int = 0) -> tuple[int, Headers, bytes]:
    """`position`: how far in the log the answer is, for a client that asks another node next."""
    body = _object(answer).encode()
    headers = [_JSON, (b"content-length", b"%d" % len(body)), (b"x-acs-request-id", request_id.encode())]
    if position:
        headers.append((POSITION, b"%d" % position))
    return 200, headers, body


def failure(error: KmsError, request_id: str, host: str, *, close: bool = False) -> tuple[int, Headers, bytes]:
    """`close`: what the client has yet to send is not read any more. A throttled caller is told when to come again."""
    body = error_body(error.status, error.code, error.message, request_id, host)
    headers = [_JSON, (b"content-length", b"%d" % len(body)), (b"x-acs-request-id", request_id.encode())]
    if error.retryable:
        seconds = getattr(error, "retry_after", RETRY_SECONDS)
        headers.append((b"retry-after", b"%d" % math.ceil(seconds)))
        if error.status == 429:
            headers.append((b"x-acs-retry-after", b"%d" % math.ceil(seconds * 1000)))
    if close:
        headers.append(_CLOSE)
    return error.status, headers, body


def error_body(status: int, code: str, message: str, request_id: str, host: str) -> bytes:
    answer = {"RequestId": request_id, "HttpStatus": status, "Code": code, "Message": message, "HostId": host}
    return _encode(answer).encode(errors="replace")


def _object(answer: Mapping[str, Any]) -> str:
    """As _encode writes it, three times as fast where a value is a long text that needs no escapes, as base64 is."""
    return "{" + ",".join([f"{_encode(name)}:{_value(value)}" for name, value in answer.items()]) + "}"


def _value(value: Any) -> str:
    if type(value) is str and value.isascii() and not value.encode().translate(None, _PLAIN):
        return f'"{value}"'
    return _encode(value)
