"""What bench_http.py and bench_http_profile.py share: requests signed ahead, services to send them to, and the load generator."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kmscore import __version__, signing
from kmscore.config import read_credentials

MOTO_HEADERS = {
    "Content-Type": "application/x-amz-json-1.1",
    "Authorization": "AWS4-HMAC-SHA256 Credential=a/20240101/us-east-1/kms/aws4_request, SignedHeaders=host, Signature=s",
}


def text(size: int) -> str:
    return base64.b64encode(os.urandom(size)).decode()


# Label -> action and parameters (K: the key), moto's operation and parameters, items in one request.
CASES: dict[str, tuple[str, Callable[[], dict[str, str]], str, Callable[[], dict[str, Any]], int]] = {
    "Encrypt 32 B": ("Encrypt", lambda: {"KeyId": "K", "Plaintext": text(32)}, "Encrypt", lambda: {"KeyId": "K", "Plaintext": text(32)}, 1),
    "Encrypt 4 KB": (
        "Encrypt",
        lambda: {"KeyId": "K", "Plaintext": text(4096)},
        "Encrypt",
        lambda: {"KeyId": "K", "Plaintext": text(4096)},
        1,
    ),
    "GenerateDataKey": ("GenerateDataKey", lambda: {"KeyId": "K"}, "GenerateDataKey", lambda: {"KeyId": "K", "KeySpec": "AES_256"}, 1),
    "DescribeKey": ("DescribeKey", lambda: {"KeyId": "K"}, "DescribeKey", lambda: {"KeyId": "K"}, 1),
    "CreateKey": ("CreateKey", dict, "CreateKey", dict, 1),
    "EncryptBatch 64": ("EncryptBatch", lambda: {"KeyId": "K", "Plaintexts": json.dumps([text(32)] * 64)}, "", dict, 64),
}


@dataclass
class Service:
    """`make` answers one request of a case, as bytes."""

    name: str
    port: int
    make: Callable[[str], bytes | None]
    version: str = __version__


def sign(host: str, access_key: tuple[str, str], action: str, params: dict[str, str]) -> bytes:
    """An ACS3 request, its parameters in the query as the SDK for Python sends them; of a batch in the body, which may be long."""
    body = b""
    if action == "EncryptBatch":
        body, params = signing.canonical_query(params).encode(), {}
    headers = {
        "host": host,
        "x-acs-action": action,
        "x-acs-content-sha256": hashlib.sha256(body).hexdigest(),
        "x-acs-date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "x-acs-signature-nonce": uuid.uuid4().hex,
        "x-acs-version": "2016-01-20",
    }
    query = signing.canonical_query(params)
    request = signing.canonical_request("POST", query, list(headers.items()), headers["x-acs-content-sha256"])
    signature = signing.acs_signature(access_key[1].encode(), signing.acs_string_to_sign(signing.ACS3, request))
    headers["authorization"] = f"{signing.ACS3} Credential={access_key[0]},SignedHeaders={';'.join(headers)},Signature={signature}"
    if body:
        headers["content-type"] = "application/x-www-form-urlencoded"
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST /?{query} HTTP/1.1\r\n{lines}content-length: {len(body)}\r\n\r\n".encode() + body


@contextmanager
def kmscore_service(home: Path, workers: int, level: str) -> Iterator[Service]:
    command = [sys.executable, "-m", "kmscore.cli", "--home", str(home), "serve", "--listen", "127.0.0.1:0", "--workers", str(workers)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout
        match = re.search(r"127\.0\.0\.1:(\d+)", child.stdout.readline())
        assert match
        host, access_key = match[0], read_credentials(home / "credentials")
        key = ask(int(match[1]), sign(host, access_key, "CreateKey", {"ProtectionLevel": level}))["KeyMetadata"]["KeyId"]

        def make(case: str) -> bytes:
            action, params, *_ = CASES[case]
            return sign(host, access_key, action, {name: key if value == "K" else value for name, value in params().items()})

        yield Service(f"{level.lower()}, {workers} worker{'s' * (workers > 1)}", int(match[1]), make)
    finally:
        child.terminate()
        child.wait(30)
        child.stdout.close()


@contextmanager
def moto_service() -> Iterator[Service | None]:
    """None where moto is not installed, in this environment or in that of the interpreter that BENCH_MOTO_PYTHON names."""
    python = os.environ.get("BENCH_MOTO_PYTHON", sys.executable)
    asked = [python, "-c", "from importlib.metadata import version; import moto.server; print(version('moto'))"]
    told = subprocess.run(asked, capture_output=True, text=True, check=False)
    if told.returncode != 0:
        yield None
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    child = subprocess.Popen([python, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:

        def raw(operation: str, params: dict[str, Any]) -> bytes:
            body = json.dumps(params)
            headers = {"Host": f"127.0.0.1:{port}", "X-Amz-Target": f"TrentService.{operation}", **MOTO_HEADERS}
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            return f"POST / HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n{body}".encode()

        for _ in range(200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                time.sleep(0.1)
        key = ask(port, raw("CreateKey", {}))["KeyMetadata"]["KeyId"]

        def make(case: str) -> bytes | None:
            _, _, operation, params, _ = CASES[case]
            if not operation:
                return None
            return raw(operation, {name: key if value == "K" else value for name, value in params().items()})

        yield Service("moto", port, make, told.stdout.strip())
    finally:
        child.terminate()
        child.wait(30)


def ask(port: int, request: bytes) -> dict[str, Any]:
    """One request by hand, for what must be there before."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    return dict(json.loads(answer.partition(b"\r\n\r\n")[2]))


class Others:
    """How many processors other programs keep busy, seen while this one works and the services have nothing to do."""

    def __init__(self) -> None:
        self._seconds = self._spent = 0.0

    @contextmanager
    def watched(self) -> Iterator[None]:
        before = self._now()
        yield
        elapsed, idle, own = (after - start for start, after in zip(before, self._now(), strict=True))
        self._seconds += elapsed
        self._spent += elapsed * (os.cpu_count() or 1) - idle - own

    def busy(self) -> float:
        return max(0.0, self._spent / self._seconds) if self._seconds else 0.0

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Seconds by the clock, of all processors without work, and of CPU time of this process."""
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        return time.monotonic(), (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK"), time.process_time()


class Load:
    """benchmarks/httpload.c, built into `directory`."""

    def __init__(self, directory: Path) -> None:
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if compiler is None:
            pytest.skip("no C compiler for the load generator")
        self._program, self._file = directory / "httpload", directory / "requests"
        source = Path(__file__).with_name("httpload.c")
        subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-o", self._program, source], check=True)
        self.others = Others()

    def __call__(self, service: Service, case: str, connections: int, number: int) -> dict[str, float]:
        """Seconds, requests, and p50 and p99 in microseconds. An answer other than 200 fails the benchmark."""
        with self.others.watched():
            made = [service.make(case) or b"" for _ in range(number)]
        self._file.write_bytes(b"".join(struct.pack("=I", len(request)) + request for request in made))
        arguments = [self._program, str(service.port), str(connections), self._file]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        result: dict[str, float] = json.loads(done.stdout)
        assert result["failed"] == 0, (service.name, case)
        return result
