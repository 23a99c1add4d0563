"""A service for strangers, and raw bytes for it. conftest.py knows its fixtures."""

from __future__ import annotations

import json
import re
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command import Command
from test_serve import service
from wire import Wire

FORM = "application/x-www-form-urlencoded"
HEADER_SECONDS = 2.0
CHUNKED = {"transfer-encoding": "chunked"}


@dataclass
class Service:
    wire: Wire
    errors: Path  # its standard error

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.wire.host.partition(":")
        return host, int(port)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=20)

    def exchange(self, data: bytes) -> list[tuple[int, dict[str, str], dict[str, Any]]]:
        """All answers to some bytes, until the service, or we, have no more to say."""
        with self.connect() as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
            except ConnectionError:
                pass  # it was refused before it had been sent
            return list(answers(read_all(connection)))

    def refused(self, data: bytes) -> str:
        """The code of the one refusal of some bytes."""
        ((status, headers, body),) = self.exchange(data)
        check_refusal(status, headers, body)
        return str(body["Code"])

    def post(self, params: dict[str, str], **headers: str) -> bytes:
        """A signed DescribeRegions with more parameters; `headers` are added unsigned."""
        return self.signed("DescribeRegions", params, **headers)

    def signed(self, action: str, params: dict[str, str], **headers: str) -> bytes:
        target, signed = self.wire.signed(action, params)
        return request(target, {**signed, **{name.replace("_", "-"): value for name, value in headers.items()}})


@contextmanager
def client(it: Service, secret: str = "") -> Iterator[Wire]:
    """On a connection of its own."""
    wire = Wire(f"http://{it.wire.host}", it.wire.access_key_id, secret or it.wire.secret)
    try:
        yield wire
    finally:
        wire._connection.close()


def read_all(connection: socket.socket) -> bytes:
    data = b""
    while True:
        try:
            part = connection.recv(1 << 16)
        except ConnectionResetError:
            return data
        if not part:
            return data
        data += part


def answers(data: bytes) -> Iterator[tuple[int, dict[str, str], dict[str, Any]]]:
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        line, *rest = head.decode().split("\r\n")
        match = re.fullmatch(r"HTTP/1\.1 ([0-9]{3}) .*", line)
        assert match, line
        headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in rest)}
        size = int(headers["content-length"])
        yield int(match[1]), headers, json.loads(data[:size])
        data = data[size:]


def check_refusal(status: int, headers: dict[str, str], body: dict[str, Any]) -> None:
    assert 400 <= status < 500, body
    assert headers["content-type"] == "application/json;charset=utf-8"
    assert body["HttpStatus"] == status
    assert str(uuid.UUID(body["RequestId"])) == body["RequestId"]
    assert body["Code"]
    assert body["Message"]


def request(target: str, headers: dict[str, str], method: str = "POST", version: str = "1.1") -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {target} HTTP/{version}\r\n{lines}\r\n".encode()


@pytest.fixture(scope="module")
def hostile_home(tmp_path_factory: pytest.TempPathFactory) -> Command:
    command = Command(tmp_path_factory.mktemp("hostile") / "home", {"KMS_PKCS11_MODULE": "none"})
    command.home.mkdir(mode=0o700)
    (command.home / "kms.toml").write_text(f"header_seconds = {HEADER_SECONDS}\nbody_seconds = {HEADER_SECONDS}\n")
    return command


@pytest.fixture(scope="module")
def hostile(hostile_home: Command) -> Iterator[Service]:
    errors = hostile_home.home.with_suffix(".log")
    with errors.open("wb") as log, service(hostile_home, stderr=log) as (_, url):
        wire = Wire.of(url, hostile_home.home)
        yield Service(wire, errors)
        wire._connection.close()


@pytest.fixture
def it(hostile: Service) -> Iterator[Service]:
    """The service; after each test it must answer as before, and have said nothing that a fault would."""
    start = hostile.errors.stat().st_size
    yield hostile
    with client(hostile) as wire:
        assert wire.call("DescribeRegions")["Regions"]
    text = hostile.errors.read_bytes()[start:].decode()
    assert "Traceback" not in text
    assert "unexpected" not in text
    assert "Exception" not in text
