"""/healthz on an engine that works and on one that does not. The application is driven as an ASGI server would, without a socket."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from kmscore.api.app import build_app
from kmscore.errors import KmsError


class Engine:
    def __init__(self, fault: Exception | None = None) -> None:
        self.fault = fault

    def list_keys(self, *, page_size: int) -> None:
        if self.fault is not None:
            raise self.fault


def get(engine: Engine, path: str) -> tuple[int, Any]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": [], "http_version": "1.1"}
    asyncio.run(build_app(engine)(scope, receive, send))  # type: ignore[arg-type]
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(body) if body.startswith(b"{") else body


def test_healthy() -> None:
    assert get(Engine(), "/healthz") == (200, {"status": "ok", "version": "0.1.0"})


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (KmsError("ServiceUnavailableTemporary", "the disk at /secret/place is gone"), "ServiceUnavailableTemporary"),
        (RuntimeError("a fault of ours"), "InternalFailure"),
    ],
)
def test_not_healthy_and_the_reason_is_not_for_strangers(fault: Exception, code: str) -> None:
    assert get(Engine(fault), "/healthz") == (503, {"status": "unavailable", "code": code})


def test_nothing_else_is_served_yet() -> None:
    assert get(Engine(), "/")[0] == 404
