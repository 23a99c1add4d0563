"""uvicorn's HTTP protocol on httptools, with what it leaves out: limits on time and size, and refusals in the wire's form.

A request line may be as long as the wire needs; httptools' own URL parser ends at 64 KiB, so it is given the path only.
"""

from __future__ import annotations

import asyncio
import uuid

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from kmscore.api.answers import error_body

MAX_TARGET_BYTES = 256 << 10
MAX_HEADER_BYTES = 64 << 10
MAX_HEADERS = 100
HEADER_SECONDS = 15.0  # from a connection, or the first byte of a request, to the end of its headers
MAX_CONNECTIONS = 1000  # of one process

_WRONG = (400, "ParseRequestParameterException", "This is not an HTTP request.")
_LONG_LINE = (414, "ParseRequestParameterException", f"The request line is longer than {MAX_TARGET_BYTES} bytes.")
_LARGE_HEADERS = (431, "ParseRequestParameterException", "The headers are too many or too large.")
_CROWDED = (503, "ServiceUnavailableTemporary", "The service has too many connections; try again.")


class Refused(Exception):
    """Ends the parsing of a request."""


class Protocol(HttpToolsProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._refusal = _WRONG
        self._header_bytes = 0
        self._waiting_since: float | None = self.loop.time()  # for the headers of a request
        self._watch = self.loop.call_later(HEADER_SECONDS, self._look)
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(_CROWDED)

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        """Close a connection whose request does not come. One timer for a connection, not one for a request."""
        left = HEADER_SECONDS
        if self._waiting_since is not None:
            left = self._waiting_since + HEADER_SECONDS - self.loop.time()
        if left > 0:
            self._watch = self.loop.call_later(left, self._look)
        else:
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        self._waiting_since = self.loop.time()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_TARGET_BYTES:
            self._stop(_LONG_LINE)

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MAX_HEADER_BYTES or len(self.headers) > MAX_HEADERS:
            self._stop(_LARGE_HEADERS)

    def on_headers_complete(self) -> None:
        self._waiting_since = None
        path, mark, query = self.url.partition(b"?")
        self.url = path or b"/"
        try:
            super().on_headers_complete()
        finally:
            self.url = path + mark + query
        self.scope["query_string"] = query.partition(b"#")[0]

    def _stop(self, refusal: tuple[int, str, str]) -> None:
        self._refusal = refusal
        raise Refused

    def data_received(self, data: bytes) -> None:
        if self.parser is None or self.transport.is_closing():
            return
        super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal)

    def _refuse(self, refusal: tuple[int, str, str]) -> None:
        status, code, message = refusal
        body = error_body(status, code, message, str(uuid.uuid4()), "")
        head = b"content-type: application/json;charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()
