"""uvicorn's HTTP protocol on httptools, with what it leaves out: limits on time and size, and refusals in the wire's form.

A request line may be as long as the wire needs; httptools' own URL parser ends at 64 KiB, so it is given the path only.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from kmscore.api.answers import error_body
from kmscore.ids import new_request_id

MAX_TARGET_BYTES = 256 << 10
MAX_HEADER_BYTES = 64 << 10
MAX_HEADERS = 100
MAX_CONNECTIONS = 1000  # of one process
MAX_PIPELINED = 64  # requests of one connection that wait for the one before them; what follows is not answered
LINGER_SECONDS = 2.0  # a refused client's bytes are dropped for so long: a closed socket would throw the refusal away with them

_WRONG = (400, "ParseRequestParameterException", "This is not an HTTP request.")
_LONG_LINE = (414, "ParseRequestParameterException", f"The request line is longer than {MAX_TARGET_BYTES} bytes.")
_LARGE_HEADERS = (431, "ParseRequestParameterException", "The headers are too many or too large.")
_UPGRADE = (400, "ParseRequestParameterException", "A request to upgrade the protocol has no body.")
_CROWDED = (503, "ServiceUnavailableTemporary", "The service has too many connections; try again.")


class Refused(Exception):
    """Ends the parsing of a request."""


class Protocol(HttpToolsProtocol):
    def __init__(self, *arguments: Any, header_seconds: float, **more: Any) -> None:
        """`header_seconds`: from a connection, or the first byte of a request, to the end of its headers."""
        super().__init__(*arguments, **more)
        self._seconds = header_seconds

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._refusal = _WRONG
        self._refused = False
        self._header_bytes = 0
        self._unseen = 0  # bytes that came since the parser last told of something: it holds a header until it is whole
        self._waiting_since: float | None = self.loop.time()  # for the headers of a request
        self._answered: RequestResponseCycle | None = None  # the request that is, or was last
        self._unread = False  # at the last look, the client had not taken what was sent
        self._watch = self.loop.call_later(self._seconds, self._look)
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(_CROWDED)

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.cancel()
        if self._answered is not None:
            self._answered.disconnected = True  # uvicorn tells the last of a pipeline only
        super().connection_lost(exc)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """A client that has said everything may still listen for its answer."""
        cycle = self.cycle
        if self.scheme == "https" or cycle is None or cycle.response_complete or cycle.more_body:
            return None  # closes
        cycle.keep_alive = False
        return True

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        async def answering(scope: Any, receive: Any, send: Any) -> None:
            async def send_if_open(message: Any) -> None:
                if self.transport.is_closing():  # it would be an error to write
                    cycle.disconnected = True
                await send(message)

            await app(scope, receive, send_if_open)

        self._answered = cycle
        super()._start_asgi_task(cycle, answering)

    def _look(self) -> None:
        """Close a connection whose request does not come, or whose client does not read. One timer for a connection, not for a request."""
        left = self._seconds
        if self._waiting_since is not None:
            left = self._waiting_since + self._seconds - self.loop.time()
        stuck, self._unread = self._unread, self.flow.write_paused
        if stuck and self._unread:
            self.transport.abort()
        elif left <= 0:
            self.transport.close()
        else:
            self._watch = self.loop.call_later(left, self._look)

    # --- what the parser tells -----------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = self._unseen = 0
        self._waiting_since = self.loop.time()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._unseen = 0
        if len(self.url) > MAX_TARGET_BYTES:
            self._stop(_LONG_LINE)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._unseen = 0
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MAX_HEADER_BYTES or len(self.headers) >= MAX_HEADERS:
            self._stop(_LARGE_HEADERS)
        if self._waiting_since is not None:  # else it stands behind the body, where it is not heeded
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._waiting_since = None
        if len(self.pipeline) >= MAX_PIPELINED:
            self._stop(_WRONG)
        if self.parser.should_upgrade() and any(
            name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0 \t")) for name, value in self.headers
        ):
            self._stop(_UPGRADE)  # the parser takes the body for the other protocol
        path, mark, query = self.url.partition(b"?")
        self.url = path or b"/"
        try:
            super().on_headers_complete()
        finally:
            self.url = path + mark + query
        self.scope["query_string"] = query.partition(b"#")[0]

    def on_body(self, body: bytes) -> None:
        self._unseen = 0
        super().on_body(body)

    def _stop(self, refusal: tuple[int, str, str]) -> None:
        self._refusal = refusal
        raise Refused

    # --- what comes ----------------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self.parser is None or self._refused or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        if self._waiting_since is None and (self.cycle is None or self.cycle.response_complete):
            self._waiting_since = self.loop.time()
        self._unseen += len(data)
        try:
            while data:
                data = self._feed(data)
        except httptools.HttpParserError:
            self._refuse(self._refusal)
        else:
            if self._unseen > 2 * MAX_HEADER_BYTES + len(data):
                self._refuse(_LARGE_HEADERS)

    def _feed(self, data: bytes) -> bytes:
        """What is left to read. Another protocol is never spoken: a request for one is answered, and what follows read, as HTTP/1.1."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.parser = httptools.HttpRequestParser(self)
            return data[upgrade.args[0] :]
        return b""

    def _refuse(self, refusal: tuple[int, str, str]) -> None:
        """Answer, and end the connection. What was asked before is answered first, and then nothing else: the order tells whose it is."""
        self._refused = True
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:
                cycle.keep_alive = False
                return
            cycle.disconnected = True  # the rest of its body is not coming
            cycle.message_event.set()
            if self.pipeline or cycle.response_started:
                self.transport.close()
                return
        status, code, message = refusal
        body = error_body(status, code, message, new_request_id(), "")
        head = b"content-type: application/json;charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        self._waiting_since = None
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(LINGER_SECONDS, self.transport.close)
        else:
            self.transport.close()
