"""A request that was answered once is refused for ever after: by the same process, after a kill and a restart, by the other worker."""

from __future__ import annotations

import http.client
import socket
from collections import Counter
from contextlib import ExitStack

from command import Command
from test_serve import service
from wire import Wire

from kmscore import signing


def test_a_replay_is_refused_also_after_a_kill(fresh: Command) -> None:
    fresh.settings["KMS_PKCS11_MODULE"] = "none"
    with service(fresh) as (child, url):
        wire = Wire.of(url, fresh.home)
        signed = wire.signed("CreateKey", {"ProtectionLevel": "SOFTWARE"})
        assert wire.send(*signed).status == 200
        assert wire.send(*signed).code == "SignatureNonceUsed"
        assert wire.call("ListKeys")["TotalCount"] == 1
        wire._connection.close()
        child.kill()
        child.wait()
    with service(fresh) as (_, url):
        again = Wire.of(url, fresh.home)
        assert again.send(*signed).code == "SignatureNonceUsed"
        assert again.call("ListKeys")["TotalCount"] == 1
        again._connection.close()


def test_a_request_without_a_nonce_is_known_by_its_signature(fresh: Command) -> None:
    fresh.settings["KMS_PKCS11_MODULE"] = "none"
    with service(fresh) as (_, url):
        wire = Wire.of(url, fresh.home)
        stamp = wire.signed("ListKeys", {})[1]["x-acs-date"]
        params = {
            "Action": "ListKeys",
            "Version": "2016-01-20",
            "AccessKeyId": wire.access_key_id,
            "SignatureMethod": "HMAC-SHA1",
            "SignatureVersion": "1.0",
            "Timestamp": stamp,
        }
        params["Signature"] = signing.v1_signature(wire.secret, signing.v1_string_to_sign("POST", params))
        target = f"/?{signing.canonical_query(params)}"
        assert wire.send(target, {"content-length": "0"}).status == 200
        assert wire.send(target.replace("%3A", "%3a"), {"content-length": "0"}).code == "SignatureNonceUsed"
        wire._connection.close()


def read_answer(connection: socket.socket) -> int:
    """The status of one answer, which is read to its end."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    answer.read()
    answer.close()
    return answer.status


def test_one_of_many_at_once_is_answered_by_whichever_worker(fresh: Command) -> None:
    """Each of the connections is accepted, by one worker or the other, before any has sent the request."""
    fresh.settings["KMS_PKCS11_MODULE"] = "none"
    with service(fresh, "--workers", "2") as (_, url), ExitStack() as stack:
        wire = Wire.of(url, fresh.home)
        wire.call("ListKeys")
        target, headers = wire.signed("CreateKey", {"ProtectionLevel": "SOFTWARE"})
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        host, _, port = wire.host.partition(":")
        connections = [stack.enter_context(socket.create_connection((host, int(port)), timeout=30)) for _ in range(40)]
        for connection in connections:
            connection.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        for connection in connections:
            assert read_answer(connection) == 200
        for connection in connections:
            connection.sendall(f"POST {target} HTTP/1.1\r\n{lines}\r\n".encode())
        told = Counter(read_answer(connection) for connection in connections)
        assert told == {200: 1, 400: 39}
        assert wire.call("ListKeys")["TotalCount"] == 1
        wire._connection.close()
