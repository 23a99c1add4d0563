"""What strangers send to a running service, over raw sockets: a JSON refusal where anything is answered, and the service goes on."""

from __future__ import annotations

import http.client
import resource
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from command import Command
from hostile import CHUNKED, FORM, HEADER_SECONDS, Service, answers, check_refusal, client, read_all, request
from test_serve import service
from wire import Wire

from kmscore.api.protocol import MAX_CONNECTIONS, MAX_PIPELINED
from kmscore.api.server import OPEN_FILES

NO_HTTP = {
    "garbage": bytes(range(256)) * 8,
    "TLS": bytes.fromhex("16030102000100 01fc0303".replace(" ", "")) + bytes(500),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "other version": b"GET / HTTP/3.7\r\nHost: a\r\n\r\n",
    "unknown method": b"STEAL / HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT": b"CONNECT 10.0.0.1:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    "bare LF": b"POST / HTTP/1.1\nHost: a\n\n",
    "obs-fold": b"POST / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
    "space before colon": b"POST / HTTP/1.1\r\nHost : a\r\n\r\n",
    "control character": b"POST / HTTP/1.1\r\nHost: a\x01\x00\r\n\r\n",
    "raw bytes in the path": b"POST /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
    "NUL in the line": b"POST /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
    "both lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    "both lengths, turned": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\na=b\r\n",
    "a list of lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 4\r\n\r\na=b1",
    "signed length": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\na=b1",
    "endless length": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\na=b1",
    "chunked, not last": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "two encodings": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "chunk of no size": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    "endless chunk": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffffff\r\n\r\n",
    "upgrade with a body": b"POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\na=b",
}  # fmt: skip


@pytest.mark.parametrize("data", NO_HTTP.values(), ids=list(NO_HTTP))
def test_what_is_not_one_http_request(it: Service, data: bytes) -> None:
    assert it.refused(data) == "ParseRequestParameterException"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "MKCOL"])
def test_another_method(it: Service, method: str) -> None:
    target, headers = it.wire.signed("DescribeRegions", {})
    assert it.refused(request(target, headers, method)) == "UnsupportedHTTPMethod"


def test_requests_without_a_version_or_a_path(it: Service) -> None:
    """HTTP/0.9, and OPTIONS of the server as a whole: answered as HTTP/1.1, and refused."""
    assert it.refused(b"GET /\r\n\r\n") == "IncompleteSignature"
    assert it.refused(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n") == "InvalidApi.NotFound"


def test_head_is_answered_without_a_body(it: Service) -> None:
    target, headers = it.wire.signed("DescribeRegions", {})
    with it.connect() as connection:
        connection.sendall(request(target, headers, "HEAD"))
        connection.shutdown(socket.SHUT_WR)
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 403 ")
    assert body == b""


PATHS = (
    "/../../etc/passwd /%2e%2e/%2e%2e/etc/passwd //etc/passwd /healthz/ /metrics/x /%00 /index.html /.git/config /%ff http://elsewhere/x"
)


@pytest.mark.parametrize("path", PATHS.split())  # fmt: skip
def test_another_path(it: Service, path: str) -> None:
    target, headers = it.wire.signed("DescribeRegions", {})
    assert it.refused(request(target.replace("/?", f"{path}?"), headers)) == "InvalidApi.NotFound"


def test_header_bombs(it: Service) -> None:
    target, headers = it.wire.signed("DescribeRegions", {})
    many = {f"x-{number}": "a" for number in range(101)}
    assert it.refused(request(target, many)) == "ParseRequestParameterException"
    assert it.refused(request(target, {"x": "a" * (65 << 10)})) == "ParseRequestParameterException"
    assert it.refused(request(target, {"x" * (65 << 10): "a"})) == "ParseRequestParameterException"
    few = {f"x-{number}": "a" * 600 for number in range(100 - len(headers))}
    ((status, _, _),) = it.exchange(request(target, headers | few))
    assert status == 200


@pytest.mark.parametrize(
    "start", [b"POST / HTTP/1.1\r\nx: ", b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: ", b"POST /?a="]
)
def test_a_line_without_an_end_is_not_kept(it: Service, start: bytes) -> None:
    """Nothing is heard of it from the parser until it ends; also of what stands behind a body."""
    with it.connect() as connection:
        connection.sendall(start + b"a" * (1 << 20))
        ((status, headers, body),) = answers(read_all(connection))
    check_refusal(status, headers, body)


def test_what_stands_behind_a_chunked_body_is_no_header(it: Service) -> None:
    _, headers = it.wire.signed("DescribeRegions", {})
    del headers["content-length"]
    hidden = headers.pop("authorization")
    data = request("/", headers | CHUNKED) + f"0\r\nauthorization: {hidden}\r\n\r\n".encode()
    assert it.refused(data) == "IncompleteSignature"


def test_request_lines(it: Service) -> None:
    """128 KB carry what the wire needs; far more is refused. Either way an answer comes."""
    ((status, _, body),) = it.exchange(it.signed("UpdateKeyDescription", {"KeyId": "none", "Description": "a" * (128 << 10)}))
    assert (status, body["Code"]) == (400, "InvalidParameter")
    assert "8192" in body["Message"]
    ((status, headers, body),) = it.exchange(it.post({"a": "b" * (300 << 10)}))
    assert status == 414
    check_refusal(status, headers, body)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body(it: Service, chunked: bool) -> None:
    body = b"a=" + b"b" * (3 << 20)
    head = {"host": "a", "content-type": FORM}
    if chunked:
        framed = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[i : i + 50_000] for i in range(0, len(body), 50_000)))
        data = request("/", head | CHUNKED) + framed + b"0\r\n\r\n"
    else:
        data = request("/", head | {"content-length": str(len(body))}) + body
    assert it.refused(data) == "ParseRequestParameterException"


def test_a_body_that_says_it_is_huge_is_not_waited_for(it: Service) -> None:
    ((status, headers, body),) = it.exchange(request("/", {"host": "a", "content-type": FORM, "content-length": str(1 << 29)}))
    check_refusal(status, headers, body)
    assert headers["connection"] == "close"


def test_old_http(it: Service) -> None:
    target, headers = it.wire.signed("DescribeRegions", {})
    ((status, told, _),) = it.exchange(request(target, headers, version="1.0"))
    assert (status, told["connection"]) == (200, "close")


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "TLS/1.0"])
def test_an_upgrade_is_not_taken_up_and_the_connection_goes_on(it: Service, protocol: str) -> None:
    upgrade = {"connection": "Upgrade, HTTP2-Settings", "upgrade": protocol, "http2-settings": "AAMAAABkAAQAAP__"}
    target, headers = it.wire.signed("DescribeRegions", {})
    got = it.exchange(request(target, headers | upgrade) + it.post({}) + request("/", upgrade) + it.post({}))
    assert [status for status, _, _ in got] == [200, 200, 400, 200]


def test_requests_in_a_pipeline_are_answered_in_order(it: Service) -> None:
    got = it.exchange(it.post({}) + it.post({"x": "y"}) + it.signed("CreateKey", {"ProtectionLevel": "SOFTWARE"}) + it.post({}))
    assert [status for status, _, _ in got] == [200, 400, 200, 200]
    assert "KeyMetadata" in got[2][2]


def test_a_pipeline_has_an_end(it: Service) -> None:
    """Thousands of requests fit into one read; those beyond the limit are not taken in, and those before it answered."""
    got = it.exchange(b"GET / HTTP/1.1\r\n\r\n" * 5000)
    assert 1 < len(got) <= MAX_PIPELINED + 1
    assert {body["Code"] for _, _, body in got} == {"IncompleteSignature"}


def test_garbage_behind_a_request_is_not_taken_for_its_answer(it: Service) -> None:
    got = it.exchange(it.signed("CreateKey", {"ProtectionLevel": "SOFTWARE"}) + b"\x00\x01garbage\r\n\r\n")
    assert got[0][0] == 200
    assert "KeyMetadata" in got[0][2]
    assert got[0][1]["connection"] == "close"
    assert len(got) == 1


def test_a_connection_goes_on_after_a_refusal(it: Service) -> None:
    with client(it, "wrong") as wire:
        assert wire.code("DescribeRegions") == "SignatureDoesNotMatch"
        kept = wire._connection.sock
        wire.secret = it.wire.secret
        assert wire.code("Unheard") == "InvalidApi.NotFound"
        assert wire.call("DescribeRegions")["Regions"]
        assert wire._connection.sock is kept


# --- slow clients ------------------------------------------------------------------------------------------------------------------

HALVES: dict[str, Callable[[int], bytes]] = {
    "nothing": lambda _: b"",
    "half a line": lambda n: b"POST /?a=%d" % n,
    "half of the headers": lambda n: b"POST /?a=%d HTTP/1.1\r\nHost: a\r\nX-" % n,
    "half of the body": lambda n: b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: %s\r\nContent-Length: 100\r\n\r\na=%d" % (FORM.encode(), n),
    "half of a chunk": lambda n: b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n30\r\na=%d" % n,
}


def test_fifty_half_sent_requests_keep_nobody_out(it: Service) -> None:
    halves = list(HALVES.values())
    connections = [it.connect() for _ in range(50)]
    try:
        for number, connection in enumerate(connections):
            connection.sendall(halves[number % len(halves)](number))
        with client(it) as good:
            for _ in range(50):
                assert good.call("DescribeRegions")["Regions"]
        for number, connection in enumerate(connections):  # they are let go, and those that sent their headers are told why
            got = list(answers(read_all(connection)))
            assert len(got) == (number % len(halves) > 2)
            for status, headers, body in got:
                check_refusal(status, headers, body)
                assert f"within {HEADER_SECONDS:g} seconds" in body["Message"]
    finally:
        for connection in connections:
            connection.close()


def test_a_connection_that_only_clears_its_throat_is_let_go(it: Service) -> None:
    """Empty lines before a request are passed over; they must not put off the end of an idle connection for ever."""
    with it.connect() as connection:
        connection.sendall(it.post({}))
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert (answer.status, answer.read()[:1]) == (200, b"{")
        connection.sendall(b"\r\n")
        assert read_all(connection) == b""
        answer.close()


def test_a_client_that_does_not_read_is_let_go(it: Service) -> None:
    """Its answers fill the buffers of both ends; then it is not waited for."""
    with it.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        data = it.post({"x" * 100_000: "1"})  # the answer says the name back
        end = time.monotonic() + 30
        with pytest.raises(ConnectionError):
            while time.monotonic() < end:
                connection.sendall(data)


def test_more_connections_than_there_may_be(fresh: Command) -> None:
    """Also where a process may open few files to begin with."""
    fresh.settings["KMS_PKCS11_MODULE"] = "none"
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < OPEN_FILES:
        pytest.skip("this machine does not let a process open so many files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        with ExitStack() as stack:
            _, url = stack.enter_context(service(fresh))
            resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, before[1]))
            wire = Wire.of(url, fresh.home)
            stack.callback(wire._connection.close)
            wire.call("DescribeRegions")
            host, _, port = wire.host.partition(":")
            others = [stack.enter_context(socket.create_connection((host, int(port)), timeout=20)) for _ in range(MAX_CONNECTIONS)]
            ((status, _, body),) = answers(read_all(others[-1]))
            assert (status, body["Code"]) == (503, "ServiceUnavailableTemporary")
            assert wire.call("CreateKey", ProtectionLevel="SOFTWARE")["KeyMetadata"]  # whoever is in stays in
            for other in others[:10]:
                other.close()
            again = Wire.of(url, fresh.home)
            stack.callback(again._connection.close)
            again.call("DescribeRegions")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
