"""A loopback proxy before PostgreSQL that breaks the link where a test wants it broken: between any two messages of the protocol.

It knows the framing of the PostgreSQL protocol 3.0 (its documentation, "Message Formats") and nothing of its meaning: a type byte and a
length that counts itself; the first packet of a client has no type; the server answers a request for encryption with one bare byte.
With `framed=False` it passes bytes as they come, for Redis and HTTP. TLS cannot be looked into: connect with sslmode=disable or prefer.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

Sender = Literal["client", "server"]

_CHUNK = 65536
_BARE = {80877102: "cancel", 80877103: "ssl", 80877104: "gssenc"}  # codes in place of the protocol version
_ANSWERED_WITH_A_BYTE = ("ssl", "gssenc")


class Message(NamedTuple):
    sender: Sender
    type: str
    """The type byte as a character, or: startup, ssl, gssenc, cancel, byte (the answer to ssl and gssenc); bytes where not framed."""
    link: int
    """Counts the connections that were made, from 1."""


@dataclass
class _Cut:
    sender: Sender
    left: int
    """Messages, or bytes, that still go before the cut."""
    of_bytes: bool
    forward: bool
    stay_down: bool


class TcpProxy:
    """Passes connections to its port on to host and port. Thread-safe; orders hold for all links, present and future ones.

    A cut closes every link at once, in both directions; what was forwarded before arrives. It happens once: then connections are taken
    again, unless it was to stay down. A side that reads nothing for longer than its socket's buffer lasts holds up the others too.
    """

    def __init__(self, host: str, port: int, *, framed: bool = True) -> None:
        self._upstream = (host, port)
        self._framed = framed
        self._lock = threading.Condition()
        self._log: list[Message] = []
        self._cut: _Cut | None = None
        self._fired = False
        self._delay = 0.0
        self._stalled = False
        self._closed = False
        self._refusing = False
        self._links: list[_Link] = []
        self._count = 0
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept, self._listener)

    # --- what a test asks for

    def arm(self) -> None:
        """Begin anew: an empty log, no cut ahead, nothing fired."""
        with self._lock:
            self._log.clear()
            self._cut, self._fired = None, False

    def cut_at(self, sender: Sender, n: int, *, forward: bool, stay_down: bool = False) -> None:
        """Arm, and cut at the n-th message (from 1, of all links) of `sender` from now on: when it is forwarded, or in its stead."""
        self._arm(_Cut(sender, n - 1, False, forward, stay_down))

    def cut_after_bytes(self, sender: Sender, n: int, *, stay_down: bool = False) -> None:
        """Arm, and cut when n bytes of `sender` have passed: in the midst of a message, if so it falls."""
        self._arm(_Cut(sender, n, True, True, stay_down))

    def cut_now(self, *, stay_down: bool = False) -> None:
        with self._lock:
            self._break(stay_down)

    @property
    def fired(self) -> bool:
        """Whether the link was cut since it was armed: False tells a test that it has tried every message."""
        with self._lock:
            return self._fired

    @property
    def log(self) -> list[Message]:
        """What was sent since arming, in order, the message of the cut included."""
        with self._lock:
            return list(self._log)

    def count(self, sender: Sender) -> int:
        return sum(message.sender == sender for message in self.log)

    def delay(self, seconds: float) -> None:
        """Every message waits so long before it is passed on; 0 ends it."""
        with self._lock:
            self._delay = seconds

    def stall(self) -> None:
        """Connections are taken, and stay; nothing passes, in either direction: as behind a router that lost its power."""
        with self._lock:
            self._stalled = True

    def resume(self) -> None:
        with self._lock:
            self._stalled = False
            self._lock.notify_all()

    def refuse(self) -> None:
        """New connections are closed at once. Those that are there stay."""
        with self._lock:
            self._refusing = True

    def accept(self) -> None:
        """Ends refuse(), and what stayed down comes back."""
        with self._lock:
            self._refusing = False

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._break(stay_down=True)
            self._lock.notify_all()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- how it is done

    def _arm(self, cut: _Cut) -> None:
        with self._lock:
            self.arm()  # the lock is re-entrant
            self._cut = cut

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads = [each for each in self._threads if each.is_alive()] + [thread]
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                if self._closed:
                    client.close()
                    return
                if self._refusing or (server := self._connect()) is None:
                    client.close()
                    continue
                for each in (client, server):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._count += 1
                link = _Link(self._count, client, server)
                self._links.append(link)
                for sender in ("client", "server"):
                    self._start(self._pump, link, sender)

    def _connect(self) -> socket.socket | None:
        try:
            server = socket.create_connection(self._upstream, 5)
        except OSError:
            return None
        server.settimeout(None)
        return server

    def _pump(self, link: _Link, sender: Sender) -> None:
        """Passes on what one side of a link sends, until either side is gone."""
        source, target = (link.client, link.server) if sender == "client" else (link.server, link.client)
        with suppress(OSError):
            for kind, data in link.messages(source, sender) if self._framed else _chunks(source):
                if not self._wait_for_passage(link):
                    break
                with self._lock:  # one at a time: the order of the log is that of the wire, and after a cut nothing passes
                    if not link.open:
                        break
                    self._log.append(Message(sender, kind, link.number))
                    allowed, cut = self._decide(sender, data)
                    target.sendall(allowed)
                    if cut:
                        self._break(cut.stay_down)
        with self._lock:
            self._end(link)
            link.pumps -= 1
            if not link.pumps:  # only now: a closed descriptor may be another's soon
                link.client.close()
                link.server.close()
                self._links.remove(link)

    def _wait_for_passage(self, link: _Link) -> bool:
        """False when the link is gone by then."""
        if delay := self._delay:
            time.sleep(delay)
        with self._lock:
            self._lock.wait_for(lambda: not self._stalled or not link.open)
            return link.open

    def _decide(self, sender: Sender, data: bytes) -> tuple[bytes, _Cut | None]:
        """How much of a message may pass, and the cut that comes after it."""
        cut = self._cut
        if cut is None or cut.sender != sender:
            return data, None
        if cut.of_bytes:
            passed = data[: cut.left]
            cut.left -= len(passed)
            return passed, cut if cut.left == 0 else None
        if cut.left:
            cut.left -= 1
            return data, None
        return (data if cut.forward else b""), cut

    def _break(self, stay_down: bool) -> None:
        self._cut, self._fired = None, True
        self._refusing = self._refusing or stay_down
        for link in self._links:
            self._end(link)
        self._lock.notify_all()  # whoever waits for passage

    @staticmethod
    def _end(link: _Link) -> None:
        link.open = False
        for each in (link.client, link.server):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # an orderly end: what was sent before arrives


class _Link:
    """One connection: its two sockets and what must be known to find where a message ends."""

    def __init__(self, number: int, client: socket.socket, server: socket.socket) -> None:
        self.number = number
        self.client, self.server = client, server
        self.open = True
        self.pumps = 2
        self._bare_answers = 0

    def messages(self, source: socket.socket, sender: Sender) -> Iterator[tuple[str, bytes]]:
        """(type, all bytes) of every message."""
        stream = source.makefile("rb")
        if sender == "client":
            kind = ""
            while kind != "startup":
                head = _read(stream.read, 8)
                length, code = struct.unpack("!II", head)
                kind = _BARE.get(code, "startup")
                if kind in _ANSWERED_WITH_A_BYTE:
                    self._bare_answers += 1  # before it is forwarded, so before the answer comes
                yield kind, head + _read(stream.read, length - 8)
        while True:
            first = _read(stream.read, 1)
            if sender == "server" and self._bare_answers:
                self._bare_answers -= 1
                yield "byte", first
                continue
            head = _read(stream.read, 4)
            yield first.decode("latin-1"), first + head + _read(stream.read, struct.unpack("!I", head)[0] - 4)


def _read(read: Callable[[int], bytes], n: int) -> bytes:
    data = read(n) if n else b""
    if len(data) < n:
        raise ConnectionError("the sender is gone")
    return data


def _chunks(source: socket.socket) -> Iterator[tuple[str, bytes]]:
    while data := source.recv(_CHUNK):
        yield "bytes", data
