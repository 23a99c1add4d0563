"""The client against a small server that believes nothing: it checks each signature from the bytes that came, and answers what a test wants."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pickle
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kmscore import client as client_module
from kmscore import files, signing
from kmscore.api.localca import local_certificate
from kmscore.api.params import decode_params
from kmscore.client import Client, RemoteError, RemoteKms, parse_endpoint
from kmscore.errors import KmsError, SetupError

ACCESS_KEY, SECRET = "LTAItest", "a secret, with é"


@dataclass
class Seen:
    action: str
    params: dict[str, str]
    headers: dict[str, str]
    target: str


@dataclass
class Service:
    """`answer`: (status, content type, body). What came, once its signature has been found right, is in `seen`."""

    port: int = 0
    answer: tuple[int, str, bytes] = (200, "application/json", b"{}")
    answers: list[dict[str, Any]] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def says(self, status: int, body: Any, kind: str = "application/json;charset=utf-8") -> None:
        self.answer = status, kind, body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()

    def client(self, **more: Any) -> Client:
        return Client(f"http://127.0.0.1:{self.port}", ACCESS_KEY, SECRET, timeout=10, **more)


def handler(service: Service) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            if len(headers) != len(self.headers.items()):
                service.wrong.append("a header stands twice")
            match = re.fullmatch(r"ACS3-HMAC-SHA256 Credential=(.+),SignedHeaders=(.+),Signature=(.+)", headers["authorization"])
            assert match is not None
            names = match[2].split(";")
            # Written out here, not taken from the client: what WIRE section 5 says of the canonical request.
            lines = "".join(f"{name}:{headers[name]}\n" for name in names)
            digest = hashlib.sha256(body).hexdigest()
            canonical = f"POST\n/\n\n{lines}\n{match[2]}\n{digest}"
            string = f"{signing.ACS3}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
            if match[1] != ACCESS_KEY or match[3] != signing.acs_signature(SECRET.encode(), string):
                service.wrong.append(canonical)
            if headers["x-acs-content-sha256"] != digest or names != sorted(names):
                service.wrong.append(match[2])
            service.seen.append(Seen(headers["x-acs-action"], decode_params(body), headers, self.path))
            status, kind, data = service.answer
            if service.answers:
                data = json.dumps(service.answers.pop(0)).encode()
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that goes away in the midst of an answer, or of a handshake, is what some tests are about."""


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Service]:
    service = Service()
    server = Server(("127.0.0.1", 0), handler(service))
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    service.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield service
        assert service.wrong == []
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def service() -> Iterator[Service]:
    with serving() as service:
        yield service


def refusal(client: Client, action: str = "ListKeys", **params: str) -> KmsError:
    with pytest.raises(KmsError) as caught:
        client.call(action, params)
    return caught.value


# --- what is sent ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"Description": ""},
        {"Plaintext": "a b+c%&=\n\x00é€😀~*'()/", "EncryptionContext": '{"é": "=&"}'},
        {"Tag.1.Key": "team", "Tag.1.Value": "", "ResourceId.10": "x", "ResourceId.2": "y"},
        {"ImportToken": base64.b64encode(bytes(range(256)) * 40).decode()},
    ],
)
def test_every_parameter_arrives_signed_and_in_the_body(service: Service, params: dict[str, str]) -> None:
    service.says(200, {"RequestId": "1", "Answer": "é"})
    assert service.client().call("Encrypt", params) == {"RequestId": "1", "Answer": "é"}
    (seen,) = service.seen
    assert (seen.action, seen.params, seen.target) == ("Encrypt", params, "/")
    assert seen.headers["content-type"] == "application/x-www-form-urlencoded"
    assert seen.headers["host"] == f"127.0.0.1:{service.port}"
    assert seen.headers["x-acs-version"] == "2016-01-20"
    signed = re.search("SignedHeaders=([^,]+)", seen.headers["authorization"])
    assert signed is not None
    assert signed[1].split(";") == sorted(
        ["content-type", "host", *(f"x-acs-{name}" for name in ("action", "content-sha256", "date", "signature-nonce", "version"))]
    )


def test_each_request_has_a_nonce_of_its_own_and_the_time_of_now(service: Service) -> None:
    client = service.client()
    for _ in range(3):
        client.call("ListKeys", {})
    assert len({seen.headers["x-acs-signature-nonce"] for seen in service.seen}) == 3
    stamp = datetime.strptime(service.seen[0].headers["x-acs-date"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert abs((datetime.now(UTC) - stamp).total_seconds()) < 60


def test_text_that_utf_8_cannot_carry_is_not_sent(service: Service) -> None:
    refused = refusal(service.client(), Description="\udcff")
    assert (refused.code, '"Description"' in refused.message) == ("InvalidParameter", True)
    assert refusal(service.client(), **{"Tag\ud800": "x"}).code == "InvalidParameter"
    assert service.seen == []


def test_proxies_are_not_heeded(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert service.client().call("ListKeys", {}) == {}


# --- what comes back ---------------------------------------------------------------------------------------------------------------


def test_a_refusal_is_told_as_the_service_tells_it(service: Service) -> None:
    service.says(404, {"Code": "Forbidden.KeyNotFound", "Message": "The specified Key is not found.", "RequestId": "r", "HttpStatus": 404})
    refused = refusal(service.client())
    assert isinstance(refused, RemoteError)
    assert str(refused) == "Forbidden.KeyNotFound: The specified Key is not found."
    assert (refused.status, refused.retryable, refused.request_id) == (404, False, "r")
    again = pickle.loads(pickle.dumps(refused))
    assert (str(again), again.status, again.request_id) == (str(refused), 404, "r")


@pytest.mark.parametrize(
    ("code", "status", "retryable"),
    [
        ("Rejected.Throttling", 429, True),
        ("ServiceUnavailableTemporary", 503, True),
        ("InternalFailure", 500, False),
        ("Throttling.User", 429, True),
        ("ServiceUnavailable", 503, True),
        ("Forbidden.NoSuchThingYet", 403, False),
        ("InternalError", 500, False),
    ],
)
def test_codes_of_another_service_are_told_too(service: Service, code: str, status: int, retryable: bool) -> None:
    service.says(status, {"Code": code, "Message": "no"})
    refused = refusal(service.client())
    assert (refused.code, refused.message, refused.status, refused.retryable) == (code, "no", status, retryable)


def test_a_fault_of_the_service_is_told_with_what_its_log_calls_it(service: Service, tmp_path: Path) -> None:
    service.says(500, {"Code": "InternalFailure", "Message": "It failed.", "RequestId": "6f2c"})
    environ = {**os.environ, "KMS_ACCESS_KEY_ID": ACCESS_KEY, "KMS_ACCESS_KEY_SECRET": SECRET, "KMS_HOME": str(tmp_path / "none")}
    command = [sys.executable, "-m", "kmscore.cli", "--endpoint", f"http://127.0.0.1:{service.port}", "ListKeys"]
    done = subprocess.run(command, env=environ, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"InternalFailure: It failed. (RequestId 6f2c)\n")


def test_a_message_is_on_one_line_and_cannot_move_the_cursor(service: Service) -> None:
    service.says(400, {"Code": "SignatureDoesNotMatch", "Message": "is:ACS3\nabc\x1b[2J\x9b1m"})
    assert refusal(service.client()).message == "is:ACS3 abc [2J 1m"


@pytest.mark.parametrize(
    ("status", "kind", "body", "code", "told"),
    [
        (200, "text/html", b"<html>", "InternalFailure", "(HTTP 200) is not one of a key management service: it is not JSON but text/html"),
        (502, "text/html", b"<html>", "ServiceUnavailableTemporary", "(HTTP 502)"),
        (301, "text/plain", b"", "InternalFailure", "(HTTP 301)"),
        (404, "application/json", b'{"detail": "Not Found"}', "InternalFailure", "it has no Code"),
        (400, "application/json", b'{"Code": "a b\\u001b"}', "InternalFailure", "it has no Code"),
        (400, "application/json", b'{"Code": 7}', "InternalFailure", "it has no Code"),
        (200, "application/json", b"[1]", "InternalFailure", "it is not a JSON object"),
        (200, "application/json", b'{"a": "\xff"}', "InternalFailure", "it is not JSON"),
        (200, "application/json", b"[" * 100_000, "InternalFailure", "it is not JSON"),
    ],
)
def test_what_is_no_answer_of_such_a_service(service: Service, status: int, kind: str, body: bytes, code: str, told: str) -> None:
    service.says(status, body, kind)
    refused = refusal(service.client())
    assert (refused.code, type(refused)) == (code, KmsError)
    assert told in refused.message
    assert f"http://127.0.0.1:{service.port}" in refused.message


def test_an_answer_is_not_read_without_end(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_ANSWER_BYTES", 1000)
    service.says(200, b'"%s"' % (b"x" * 1000))
    assert "larger than 1000 bytes" in refusal(service.client()).message
    service.says(200, {"A": "x" * 900})
    assert service.client().call("ListKeys", {}) == {"A": "x" * 900}


# --- the network -------------------------------------------------------------------------------------------------------------------


def test_nothing_listens_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    refused = refusal(Client(f"http://127.0.0.1:{port}", "a", "b"))
    assert str(refused) == f"ServiceUnavailableTemporary: cannot reach http://127.0.0.1:{port}: Connection refused"
    assert refused.retryable


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"", "Remote end closed connection"),
        (b"SSH-2.0-x\r\n\r\n", "SSH-2.0-x"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}", "IncompleteRead"),
        (None, "timed out"),
    ],
)
def test_a_call_without_an_answer_may_have_been_carried_out(sent: bytes | None, told: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as stream:
                while stream.readline().strip():
                    pass
                if sent is None:
                    stream.read()  # until the client has had enough
                else:
                    connection.sendall(sent)

        thread = threading.Thread(target=answer)
        thread.start()
        refused = refusal(Client(f"http://127.0.0.1:{listener.getsockname()[1]}", "a", "b", timeout=10 if sent is not None else 0.2))
        thread.join()
    assert refused.code == "ServiceUnavailableTemporary"
    assert told in refused.message
    assert "; the call may have been carried out, or not" in refused.message


def test_a_certificate_is_verified(tmp_path: Path) -> None:
    authority, certificate, key = local_certificate(tmp_path / "tls", "127.0.0.1")
    other, _, _ = local_certificate(tmp_path / "other", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serving(context) as service:
        service.says(200, {"RequestId": "1"})
        for host in ("127.0.0.1", "localhost"):
            endpoint = f"https://{host}:{service.port}"
            assert Client(endpoint, ACCESS_KEY, SECRET, ca_file=str(authority)).call("ListKeys", {}) == {"RequestId": "1"}
            for ca_file in (None, str(other)):
                with pytest.raises(SetupError, match=r"is not to be trusted: .*; give the certificate of its authority by --ca-file"):
                    Client(endpoint, ACCESS_KEY, SECRET, ca_file=ca_file).call("ListKeys", {})
        assert len(service.seen) == 2


def test_a_ca_file_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="No such file"):
        Client("https://localhost", "a", "b", ca_file=str(tmp_path / "none"))
    (tmp_path / "empty").write_text("nothing")
    with pytest.raises(SetupError, match="no certificate in PEM"):
        Client("https://localhost", "a", "b", ca_file=str(tmp_path / "empty"))


# --- where and as whom -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown", "private"),
    [
        ("http://127.0.0.1:8480", "http://127.0.0.1:8480", True),
        ("http://127.9.9.9/", "http://127.9.9.9", True),
        ("HTTP://LocalHost:80", "http://localhost", True),
        ("http://[::1]:8480/", "http://[::1]:8480", True),
        ("https://kms.example", "https://kms.example", True),
        ("https://kms.example:443", "https://kms.example", True),
        ("http://kms.example:8480", "http://kms.example:8480", False),
        ("http://10.0.0.1", "http://10.0.0.1", False),
        ("http://localhost.example", "http://localhost.example", False),
        ("http://[2001:db8::1]:8480", "http://[2001:db8::1]:8480", False),
    ],
)
def test_endpoints(text: str, shown: str, private: bool) -> None:
    endpoint = parse_endpoint(text)
    assert (str(endpoint), endpoint.is_private) == (shown, private)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1:8480",
        "ftp://x",
        "http://",
        "http://x:0",
        "http://x:65536",
        "http://x/y",
        "http://x?y",
        "http://x\n",
        "http:// x",
        "//x",
    ],
)
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(SetupError, match="an endpoint is https://HOST:PORT"):
        parse_endpoint(text)


def test_a_password_in_an_endpoint_is_not_repeated() -> None:
    with pytest.raises(SetupError) as caught:
        parse_endpoint("https://user:password@host")
    assert "password@" not in str(caught.value)


@pytest.mark.parametrize(("access_key_id", "secret"), [("", "x"), ("a", ""), ("a,b", "x"), ("a b", "x"), ("a\r\nx: y", "x"), ("é", "x")])
def test_what_is_no_access_key(access_key_id: str, secret: str) -> None:
    with pytest.raises(SetupError, match="an access key id is printable ASCII"):
        Client("http://localhost", access_key_id, secret)


def test_the_region_has_a_default() -> None:
    assert Client("http://localhost", "a", "b").region == "cn-local"
    assert Client("http://localhost", "a", "b", "eu-1").region == "eu-1"


# --- data keys ---------------------------------------------------------------------------------------------------------------------


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_files_are_encrypted_under_data_keys_of_the_service(service: Service, tmp_path: Path) -> None:
    key, blob = bytes(range(32)), b"an encrypted data key"
    names = {"KeyId": "key-1", "KeyVersionId": "version-1"}
    service.answers = [{"Plaintext": b64(key), "CiphertextBlob": b64(blob), **names}, {"Plaintext": b64(key), **names}]
    plain, sealed, back = (tmp_path / name for name in ("plain", "sealed", "back"))
    plain.write_bytes(b"content" * 1000)
    kms = RemoteKms(service.client())
    files.encrypt_file(kms, "alias/files", plain, sealed)
    files.decrypt_file(kms, sealed, back)
    assert back.read_bytes() == plain.read_bytes()
    generate, decrypt = service.seen
    context = {"purpose": "kms encrypt-file"}
    assert (generate.action, decrypt.action) == ("GenerateDataKey", "Decrypt")
    assert json.loads(generate.params.pop("EncryptionContext")) == json.loads(decrypt.params.pop("EncryptionContext")) == context
    assert generate.params == {"KeyId": "alias/files", "NumberOfBytes": "32"}
    assert decrypt.params == {"CiphertextBlob": b64(blob)}


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"Plaintext": b64(bytes(16)), "CiphertextBlob": b64(b"x")},
        {"Plaintext": b64(bytes(32))},
        {"Plaintext": "not base64!", "CiphertextBlob": b64(b"x")},
        {"Plaintext": 7, "CiphertextBlob": b64(b"x")},
        {"Plaintext": b64(bytes(32)), "CiphertextBlob": b64(bytes(1025))},
    ],
)
def test_no_file_is_made_of_a_wrong_data_key(service: Service, tmp_path: Path, answer: dict[str, Any]) -> None:
    service.says(200, answer)
    (tmp_path / "plain").write_bytes(b"content")
    with pytest.raises(KmsError) as caught:
        files.encrypt_file(RemoteKms(service.client()), "key", tmp_path / "plain", tmp_path / "sealed")
    assert caught.value.code == "InternalFailure"
    assert not (tmp_path / "sealed").exists()


def test_what_was_no_data_key_does_not_open_a_file(service: Service) -> None:
    service.says(200, {"Plaintext": "a text, as Encrypt was given it"})
    with pytest.raises(KmsError) as caught:
        RemoteKms(service.client()).decrypt(b"blob", {})
    assert caught.value.code == "InvalidParameter"
