"""Spans from the door to the token, by OpenTelemetry, where it is asked for and installed; otherwise next to nothing.

Attributes say which key, operation and code; never a parameter, a context, a plaintext or the text of an error. Nobody else imports
OpenTelemetry, and its global provider is left to the program that embeds us.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar, cast

from kmscore.config import Settings, traces_exporters
from kmscore.errors import KmsError, SetupError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

T = TypeVar("T")

SERVICE = "kmscore"
FLUSH_SECONDS = 5.0  # for what a collector has yet to be told when a service ends
# What a loaded key does in its custody.
USES = frozenset("encrypt encrypt_batch decrypt decrypt_batch decrypt_secret sign mac".split())
_CONTINUES = (b"traceparent", b"tracestate")

_NOTHING: AbstractContextManager[Any] = nullcontext()
_provider: TracerProvider | None = None
_tracer: Any = None  # None: off


# --- for those who do something worth a span ---------------------------------------------------------------------------------------


def span(name: str, **attributes: str | int) -> AbstractContextManager[Any]:
    """A span within the present one, for a part of a request or of a tick; none where there is none to be a part of."""
    return _NOTHING if _tracer is None else _part(name, attributes)


def root(name: str) -> AbstractContextManager[Any]:
    """A span of its own, for what no request asked for."""
    return _NOTHING if _tracer is None else _whole(name)


def on() -> bool:
    """For the way of every request, where even nothing costs something."""
    return _tracer is not None


@contextmanager
def serving(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[Served]:
    """The span of a request, which goes on with the trace that its `traceparent` names (W3C Trace Context). Only while it is on."""
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    said = [(name.decode(), value.decode("latin-1")) for name, value in headers if name in _CONTINUES]
    carrier = dict(said) if len({name for name, _ in said}) == len(said) else {}  # given twice, it is nobody's
    context = TraceContextTextMapPropagator().extract(carrier, context=Context())
    with _started("request", {}, context=context, kind=SpanKind.SERVER) as current:
        yield Served(current)


def traced(key: T, **attributes: str | int) -> T:
    """A loaded key whose uses are spans; the key itself when off, so that its uses cost nothing then."""
    return key if _tracer is None else cast(T, _Traced(key, attributes))


def current_ids() -> dict[str, str]:
    """trace_id and span_id of the present span, for the log."""
    if _tracer is None:
        return {}
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": trace.format_trace_id(context.trace_id), "span_id": trace.format_span_id(context.span_id)}


class Served:
    """The span of one request."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def answered(self, *, operation: str, code: str, status: int, request_id: str, key_id: str) -> None:
        """`operation` is a name that is known, or empty."""
        from opentelemetry.trace import StatusCode

        if operation:
            self._span.update_name(operation)
        found = {"kms.operation": operation, "kms.code": code, "kms.request_id": request_id, "kms.key_id": key_id}
        self._span.set_attributes({name: value for name, value in found.items() if value})
        self._span.set_attribute("http.response.status_code", status)
        if status >= 500:  # what a client did wrong is no error of a server (semantic conventions for HTTP)
            self._span.set_attribute("error.type", code)
            self._span.set_status(StatusCode.ERROR)


# --- on and off --------------------------------------------------------------------------------------------------------------------


def start(settings: Settings) -> bool:
    """Trace from now on if the setting or the environment asks for it; whether that is so. Once in each process of a service.

    Raises SetupError when the setting asks for it and the packages are not there, or when an exporter is asked for that we do not know.
    """
    exporters = traces_exporters(settings)
    if not exporters:
        return False
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
    except ImportError:
        if settings.tracing:
            raise SetupError("tracing is on, and OpenTelemetry is not installed: pip install 'kmscore[otel]'") from None
        return False  # the environment is shared with programs that have it
    host = socket.gethostname()
    ours = Resource({"service.name": SERVICE, "service.instance.id": f"{host}-{os.getpid()}", "host.name": host})
    theirs = OTELResourceDetector().detect()  # OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES
    provider = TracerProvider(resource=Resource.create(dict(ours.merge(theirs).attributes)), shutdown_on_exit=False)
    for name in exporters:
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter() if name == "otlp" else ConsoleSpanExporter()))
    use(provider)
    return True


def use(provider: TracerProvider | None) -> None:
    """Send spans to `provider`, of a program that has one already; None turns tracing off. Before an engine is opened."""
    global _provider, _tracer
    _provider = provider
    _tracer = None if provider is None else provider.get_tracer(SERVICE)


def stop() -> None:
    """Off; hands over what is waiting, for at most FLUSH_SECONDS: a collector that is away keeps no service from ending."""
    provider = _provider
    use(None)
    if provider is not None:
        last = threading.Thread(target=provider.shutdown, name="kmscore-flush", daemon=True)
        last.start()
        last.join(FLUSH_SECONDS)


# --- how ---------------------------------------------------------------------------------------------------------------------------


@contextmanager
def _part(name: str, attributes: dict[str, str | int]) -> Iterator[None]:
    from opentelemetry.trace import get_current_span

    if not get_current_span().get_span_context().is_valid:
        yield
        return
    with _started(name, {f"kms.{key}": value for key, value in attributes.items()}):
        yield


@contextmanager
def _whole(name: str) -> Iterator[None]:
    from opentelemetry.context import Context

    with _started(name, {}, context=Context()):
        yield


@contextmanager
def _started(name: str, attributes: dict[str, str | int], **more: Any) -> Iterator[Span]:
    """As current span. Of an error its code or class is kept: the library would keep its text and its traceback."""
    from opentelemetry.trace import StatusCode

    with _tracer.start_as_current_span(
        name, attributes=attributes, record_exception=False, set_status_on_exception=False, **more
    ) as current:
        try:
            yield current
        except BaseException as error:
            current.set_attribute("error.type", error.code if isinstance(error, KmsError) else type(error).__name__)
            current.set_status(StatusCode.ERROR)
            raise


class _Traced:
    def __init__(self, key: Any, attributes: dict[str, str | int]) -> None:
        self._key = key
        self._attributes = attributes

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._key, name)
        if name not in USES:
            return found

        def use(*arguments: Any) -> Any:
            with span(f"custody.{name}", **self._attributes):
                return found(*arguments)

        return use
