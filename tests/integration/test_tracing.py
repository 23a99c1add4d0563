"""Spans from the door to the token: one trace for each request, what stands in them, and nothing when tracing is off."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from wire import Wire

import kmscore
from kmscore import tracing
from kmscore.api.app import App, build_app
from kmscore.config import Settings, load_settings, read_credentials, traces_exporters
from kmscore.engine.background import Ticker
from kmscore.engine.kms import Kms
from kmscore.errors import KmsError, SetupError

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider)
    yield exporter
    tracing.stop()


@pytest.fixture
def kms(tmp_path: Path, spans: InMemorySpanExporter) -> Iterator[Kms]:
    with kmscore.open_kms(tmp_path / "home", ticker=False) as kms:
        spans.clear()
        yield kms


def ask(kms: Kms, app: App, action: str, *more: tuple[bytes, bytes], **params: str) -> int:
    target, headers = Wire("http://kms", *read_credentials(kms.settings.credentials_file)).signed(action, params)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()] + list(more)
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": target[2:].encode(), "headers": raw, "http_version": "1.1"}
    asyncio.run(app(scope, receive, send))
    return int(sent[0]["status"])


def names(found: tuple[ReadableSpan, ...]) -> list[str]:
    return [span.name for span in found]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_a_created_key_is_one_trace_from_the_door_to_the_token(kms: Kms, spans: InMemorySpanExporter) -> None:
    assert ask(kms, build_app(kms), "CreateKey", (b"traceparent", f"00-{TRACE}-{PARENT}-01".encode())) == 200
    found = spans.get_finished_spans()
    assert names(found) == ["store.append", "custody.generate", "store.read", "store.append", "store.read", "CreateKey"]
    *parts, door = found
    assert {f"{span.context.trace_id:032x}" for span in found} == {TRACE}  # type: ignore[union-attr]
    assert door.parent is not None
    assert f"{door.parent.span_id:016x}" == PARENT
    assert {span.parent.span_id for span in parts if span.parent} == {door.context.span_id}  # type: ignore[union-attr]
    assert door.kind is SpanKind.SERVER
    told = attributes(door)
    assert len(told.pop("kms.request_id")) == 36
    key_id = told.pop("kms.key_id")
    assert told == {"kms.operation": "CreateKey", "kms.code": "OK", "http.response.status_code": 200}
    assert attributes(found[1]) == {"kms.key_id": key_id, "kms.level": "SOFTWARE", "kms.spec": "Aliyun_AES_256"}
    assert door.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("level", ["HSM", "SOFTWARE"])
def test_a_use_is_a_span_of_the_custody(kms: Kms, spans: InMemorySpanExporter, level: str) -> None:
    key_id = kms.create_key(protection_level=level).key_id
    app = build_app(kms)
    spans.clear()
    for _ in range(2):
        assert ask(kms, app, "Encrypt", KeyId=key_id, Plaintext="the plaintext", EncryptionContext='{"name":"the value"}') == 200
    found = spans.get_finished_spans()
    assert names(found) == ["store.read", "custody.load", "custody.encrypt", "Encrypt", "custody.encrypt", "Encrypt"]
    assert attributes(found[2]) == {"kms.key_id": key_id, "kms.level": level}
    assert "the " not in "".join(span.to_json() for span in found)


def test_a_refusal_is_told_by_its_code(kms: Kms, spans: InMemorySpanExporter) -> None:
    key_id = kms.create_key().key_id
    kms.disable_key(key_id)
    spans.clear()
    assert ask(kms, build_app(kms), "Encrypt", KeyId=key_id, Plaintext="x") == 409
    door = spans.get_finished_spans()[-1]
    assert (attributes(door)["kms.code"], door.status.status_code) == ("Rejected.Disabled", StatusCode.UNSET)


def test_of_an_error_only_its_kind_is_kept(spans: InMemorySpanExporter) -> None:
    for error in (RuntimeError("a secret"), KmsError("InternalFailure", "a secret")):
        with pytest.raises(type(error)), tracing.root("work"):
            raise error
    found = spans.get_finished_spans()
    assert [attributes(span) for span in found] == [{"error.type": "RuntimeError"}, {"error.type": "InternalFailure"}]
    assert "a secret" not in "".join(span.to_json() for span in found)


@pytest.mark.parametrize("headers", [[b"nonsense"], [f"00-{TRACE}-{PARENT}-01".encode()] * 2])
def test_a_traceparent_that_is_no_one_s_begins_a_new_trace(spans: InMemorySpanExporter, headers: list[bytes]) -> None:
    with tracing.serving([(b"traceparent", header) for header in headers]):
        pass
    (span,) = spans.get_finished_spans()
    assert span.parent is None


def test_a_part_of_nothing_is_no_span_and_a_tick_is_one(spans: InMemorySpanExporter) -> None:
    def work(_: object) -> None:
        with tracing.span("part"):
            ticker._stop_asked.set()

    with tracing.span("part"):
        pass
    ticker = Ticker(work, 0.01)
    ticker.start()
    ticker.join(10)
    assert names(spans.get_finished_spans()) == ["part", "tick"]


def test_off_there_is_nothing() -> None:
    key = object()
    assert tracing.traced(key, key_id="k") is key
    with tracing.span("x", key_id="k") as span, tracing.root("x"):
        assert span is None
    assert not tracing.on()
    assert tracing.current_ids() == {}


def test_a_collector_that_does_not_answer_holds_up_the_end_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()

    class Stuck(TracerProvider):
        def shutdown(self) -> None:
            answer.wait(30)

    monkeypatch.setattr(tracing, "FLUSH_SECONDS", 0.01)
    tracing.use(Stuck(shutdown_on_exit=False))
    tracing.stop()
    answer.set()
    assert tracing.span("x") is tracing._NOTHING


def test_what_asks_for_traces() -> None:
    off, on = Settings(Path("home")), Settings(Path("home"), tracing=True)
    assert traces_exporters(off, {}) == ()
    assert traces_exporters(on, {}) == ("otlp",)
    assert traces_exporters(off, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}) == ("otlp",)
    assert traces_exporters(off, {"OTEL_TRACES_EXPORTER": "otlp, console"}) == ("otlp", "console")
    assert traces_exporters(on, {"OTEL_TRACES_EXPORTER": "none"}) == ()
    assert traces_exporters(on, {"OTEL_SDK_DISABLED": "true"}) == ()
    with pytest.raises(SetupError, match="zipkin"):
        traces_exporters(off, {"OTEL_TRACES_EXPORTER": "zipkin"})


def test_without_the_packages_only_the_setting_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert tracing.start(load_settings(tmp_path)) is False
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    assert tracing.start(load_settings(tmp_path)) is False
    with pytest.raises(SetupError, match="kmscore\\[otel\\]"):
        tracing.start(load_settings(tmp_path, tracing=True))
