"""Where the time of one Encrypt over HTTP goes: each stage of the door on its own, on the real functions, CPU time in microseconds.

    python -m pytest benchmarks/bench_http_profile.py

What is left between the sum and the time of a request over a connection is uvicorn, the event loop and the kernel. Writes
benchmarks/results/http_profile.json and http_profile.txt.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from bench_http import CASES, sign
from paired import RESULTS, machine

import kmscore
from kmscore.api import answers
from kmscore.api.app import build_app
from kmscore.api.metrics import Metrics
from kmscore.api.nonces import Nonces
from kmscore.api.request import make_request
from kmscore.api.signatures import check_time, claim_of
from kmscore.config import read_credentials
from kmscore.engine.kms import Kms
from kmscore.operations import OPERATIONS, SECRETS, render
from kmscore.operations.parse import arguments

REQUESTS = 2000
ROUNDS = 5


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kms]:
    with kmscore.open_kms(tmp_path_factory.mktemp("profile") / "home", ticker=False) as kms:
        yield kms


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[dict[str, dict[str, float]]]:
    found: dict[str, dict[str, float]] = {}
    yield found
    names = list(next(iter(found.values())))
    lines = ["http profile: CPU microseconds of one Encrypt (HSM), median of rounds", ""]
    lines.append(f"{'stage':<34}" + "".join(f"{case:>14}" for case in found))
    lines += [f"{name:<34}" + "".join(f"{found[case][name]:>14.1f}" for case in found) for name in names]
    RESULTS.mkdir(exist_ok=True)
    RESULTS.joinpath("http_profile.json").write_text(json.dumps({"setting": machine(), "cases": found}, indent=1) + "\n")
    RESULTS.joinpath("http_profile.txt").write_text("\n".join(lines) + "\n")
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write("\n" + "\n".join(lines) + "\n")


def scope_of(raw: bytes) -> dict[str, Any]:
    head = raw.partition(b"\r\n\r\n")[0].split(b"\r\n")
    _, target, _ = head[0].split(b" ")
    headers = [tuple(line.split(b": ", 1)) for line in head[1:]]
    return {"type": "http", "method": "POST", "path": "/", "query_string": target.partition(b"?")[2], "headers": headers}


@pytest.mark.parametrize("case", ["Encrypt 32 B", "Encrypt 4 KB"])
def test_profile(benchmark: Any, kms: Kms, table: dict[str, dict[str, float]], case: str) -> None:
    key = kms.create_key(protection_level="HSM").key_id
    access_key = read_credentials(kms.settings.home / "credentials")
    nonces, metrics, app = Nonces(kms.settings.home / "run"), Metrics(), build_app(kms)
    operation = OPERATIONS["Encrypt"]
    caller = kms.credential(access_key[0]).caller

    def scopes() -> list[dict[str, Any]]:
        return [scope_of(sign("h", access_key, "Encrypt", CASES[case][1]() | {"KeyId": key})) for _ in range(REQUESTS)]

    async def whole(ready: list[dict[str, Any]]) -> None:
        async def send(message: Any) -> None:
            assert message.get("status", 200) == 200

        for scope in ready:
            await app(scope, None, send)

    def stage(work: Callable[[Any], Any], items: list[Any]) -> tuple[float, list[Any]]:
        started = time.thread_time_ns()
        made = [work(item) for item in items]
        return (time.thread_time_ns() - started) / 1000 / len(items), made

    rounds: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        times: dict[str, float] = {}
        times["read: query, headers"], requests = stage(lambda scope: make_request(scope, b""), scopes())
        times["signature: what it claims"], claims = stage(claim_of, requests)
        times["signature: canonical form, HMAC"], _ = stage(lambda claim: claim.verify(access_key[1], SECRETS), claims)
        times["time and nonce"], _ = stage(lambda claim: (check_time(claim.stamp), nonces.take(claim.access_key_id, claim.nonce)), claims)
        times["parameters"], given = stage(lambda request: arguments(operation, request.business(False)), requests)
        times["permission"], _ = stage(lambda keywords: kms.authorise(caller, "kms:Encrypt", keys=[keywords["key_id"]]), given)
        times["engine and token"], sealed = stage(lambda keywords: kms.encrypt(**keywords), given)
        times["answer: JSON"], _ = stage(lambda item: answers.success({**render.encrypted(item), "RequestId": "x" * 36}, "x" * 36), sealed)
        times["metrics"], _ = stage(lambda _: metrics.answered("Encrypt", "OK", 0.001), sealed)
        times["sum"] = sum(times.values())
        ready = scopes()
        started = time.thread_time_ns()
        asyncio.run(whole(ready))
        times["the door as a whole"] = (time.thread_time_ns() - started) / 1000 / REQUESTS
        for name, value in times.items():
            rounds.setdefault(name, []).append(value)
    table[case] = {name: statistics.median(values) for name, values in rounds.items()}
    benchmark.extra_info.update(table[case])
    benchmark.pedantic(lambda: kms.encrypt(key, b"x"), rounds=100)
