"""What stands beside the wire, on an engine that works and on one that does not. Driven as an ASGI server would, without a socket."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kmscore.api.app import build_app
from kmscore.errors import KmsError


class Engine:
    def __init__(self, home: Path, fault: Exception | None = None) -> None:
        (home / "run").mkdir()
        self.settings = SimpleNamespace(
            home=home, requests_per_second=0, body_seconds=20.0, owns_token=True, has_token=True, access_log=False
        )
        self.gauges = SimpleNamespace(own=dict, stored=dict)
        self.fault = fault

    def list_keys(self, *, page_size: int) -> None:
        if self.fault is not None:
            raise self.fault


def ask(engine: Engine, path: str, method: str = "GET") -> tuple[int, Any]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": [], "http_version": "1.1"}
    asyncio.run(build_app(engine)(scope, receive, send))  # type: ignore[arg-type]
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(body) if body.startswith(b"{") else body


def test_healthy(tmp_path: Path) -> None:
    assert ask(Engine(tmp_path), "/healthz") == (200, {"status": "ok", "version": "0.1.0"})


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (KmsError("ServiceUnavailableTemporary", "the disk at /secret/place is gone"), "ServiceUnavailableTemporary"),
        (RuntimeError("a fault of ours"), "InternalFailure"),
    ],
)
def test_not_healthy_and_the_reason_is_not_for_strangers(
    tmp_path: Path, fault: Exception, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert ask(Engine(tmp_path, fault), "/healthz") == (503, {"status": "unavailable", "code": code})
    assert "a fault of ours" not in caplog.text  # nor is it for the log, which says where it happened
    assert "not healthy" in caplog.text


@pytest.mark.parametrize(
    ("path", "method", "status", "code"),
    [
        ("/nope", "GET", 404, "InvalidApi.NotFound"),
        ("/healthz", "POST", 403, "UnsupportedHTTPMethod"),
        ("/", "PUT", 403, "UnsupportedHTTPMethod"),
        ("/", "GET", 400, "IncompleteSignature"),
    ],
)
def test_whatever_else_is_asked_for_is_refused_in_the_form_of_the_wire(
    tmp_path: Path, path: str, method: str, status: int, code: str
) -> None:
    got, body = ask(Engine(tmp_path), path, method)
    assert (got, body["Code"], body["HttpStatus"]) == (status, code, status)
    assert len(body["RequestId"]) == 36


def test_metrics_tell_names_and_codes_only(tmp_path: Path) -> None:
    status, text = ask(Engine(tmp_path), "/metrics")
    assert status == 200
    assert b"# TYPE kms_requests_total counter" in text
