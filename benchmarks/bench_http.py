"""The service over HTTP, beside moto's server in the same run: signed requests prepared ahead, keep-alive, 1 and 8 connections.

    python -m pytest benchmarks/bench_http.py

Every round measures all variants one after the other; rates are by wall clock, server and load generator (benchmarks/httpload.c) on the
same cores. Ratios are medians over the rounds. Writes benchmarks/results/http.json and http.txt. Without moto (pip install -e '.[bench]')
there is no peer, and the table says so.
"""

from __future__ import annotations

import base64
import json
import os
import random
import re
import shutil
import statistics
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from paired import RESULTS, machine

from kmscore import signing
from kmscore.config import read_credentials

HERE = Path(__file__).parent
ROUNDS = 5
PROMISED = 20  # Encrypt of 32 bytes over 8 connections, beside moto
SECONDS = 0.35  # about what one measurement takes
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


def sign(host: str, access_key: tuple[str, str], action: str, params: dict[str, str]) -> bytes:
    """An ACS3 request, its parameters in the query as the SDK for Python sends them; of a batch in the body, which may be long."""
    body = b""
    if action == "EncryptBatch":
        body, params = signing.canonical_query(params).encode(), {}
    import hashlib

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
    program = shutil.which("moto_server", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
    if program is None:
        yield None
        return
    port = 10000 + os.getpid() % 20000
    child = subprocess.Popen([program, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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

        yield Service("moto", port, make)
    finally:
        child.terminate()
        child.wait(30)


def ask(port: int, request: bytes) -> dict[str, Any]:
    """One request by hand, for what must be there before."""
    import socket

    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    return dict(json.loads(answer.partition(b"\r\n\r\n")[2]))


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Service, str, int, int], dict[str, float]]:
    directory = tmp_path_factory.mktemp("load")
    program, file = directory / "httpload", directory / "requests"
    subprocess.run(["cc", "-O2", "-Wall", "-o", str(program), str(HERE / "httpload.c")], check=True)

    def run(service: Service, case: str, connections: int, number: int) -> dict[str, float]:
        made = [service.make(case) or b"" for _ in range(number)]
        file.write_bytes(b"".join(struct.pack("=I", len(request)) + request for request in made))
        done = subprocess.run([str(program), str(service.port), str(connections), str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        result: dict[str, float] = json.loads(done.stdout)
        assert result["failed"] == 0, (service.name, case)
        return result

    return run


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Service]]:
    with ExitStack() as stack:
        home = tmp_path_factory.mktemp("http")
        made: list[Service | None] = [
            stack.enter_context(kmscore_service(home / "two", 2, "HSM")),
            stack.enter_context(kmscore_service(home / "one", 1, "HSM")),
            stack.enter_context(kmscore_service(home / "soft", 2, "SOFTWARE")),
            stack.enter_context(moto_service()),
        ]
        time.sleep(1)  # the second worker starts after the address is told
        yield [service for service in made if service is not None]


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    yield rows
    if rows:
        lines = report(rows)
        RESULTS.mkdir(exist_ok=True)
        RESULTS.joinpath("http.json").write_text(json.dumps({"setting": machine() | {"rounds": ROUNDS}, "cases": rows}, indent=1) + "\n")
        RESULTS.joinpath("http.txt").write_text(lines)
        reporter = request.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write("\n" + lines)


def report(rows: list[dict[str, Any]]) -> str:
    lines = [f"http benchmark, {ROUNDS} rounds, medians: items a second, times of a request in microseconds, rate beside moto", ""]
    lines.append(f"{'case':<18}{'connections':>12}  {'service':<22}{'items/s':>9}{'p50':>9}{'p99':>9}{'x moto':>9}")
    for row in rows:
        for name, found in row["services"].items():
            ratio = f"{found['ratio']:.1f}" if found.get("ratio") else "-"
            numbers = "".join(f"{found[field]:>9.0f}" for field in ("rate", "p50", "p99"))
            lines.append(f"{row['case']:<18}{row['connections']:>12}  {name:<22}{numbers}{ratio:>9}")
    if not any("moto" in row["services"] for row in rows):
        lines.append("moto is not installed: pip install -e '.[bench]'")
    lines.append(f"to reach: Encrypt 32 B over 8 connections at {PROMISED} times moto's rate")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("connections", [1, 8])
@pytest.mark.parametrize("case", CASES)
def test_http(
    benchmark: Any, services: list[Service], load: Callable[..., dict[str, float]], table: list[dict[str, Any]], case: str, connections: int
) -> None:
    items = CASES[case][4]
    able = [service for service in services if service.make(case) is not None]
    numbers = {}
    for service in able:
        first = load(service, case, connections, 40)
        numbers[service.name] = min(6000, max(40, int(SECONDS * first["requests"] / first["seconds"])))
    found: dict[str, list[dict[str, float]]] = {service.name: [] for service in able}
    order = random.Random(1)
    for _ in range(ROUNDS):
        for service in order.sample(able, len(able)):
            found[service.name].append(load(service, case, connections, numbers[service.name]))
    rates = {name: [items * run["requests"] / run["seconds"] for run in runs] for name, runs in found.items()}
    told: dict[str, Any] = {}
    for name, runs in found.items():
        told[name] = {
            "rate": statistics.median(rates[name]),
            "rates": [round(rate) for rate in rates[name]],
            "p50": statistics.median(run["p50"] for run in runs),
            "p99": statistics.median(run["p99"] for run in runs),
        }
        if name != "moto" and "moto" in rates:
            told[name]["ratio"] = statistics.median(x / y for x, y in zip(rates[name], rates["moto"], strict=True))
    table.append({"case": case, "connections": connections, "services": told})
    benchmark.extra_info.update({name: value["rate"] for name, value in told.items()})
    benchmark.pedantic(lambda: load(able[0], case, connections, 40), rounds=3)
