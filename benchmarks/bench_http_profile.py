"""Where the time of one Encrypt over HTTP goes: the stages of the door, on the real functions, and what a connection adds.

    python -m pytest benchmarks/bench_http_profile.py

The stages of one request are timed one after the other, as a request meets them, and not each in a loop of its own, where it would find
everything in the cache. Medians over requests, by wall clock. What a connection adds is CPU time of the thread that serves, with 8
connections: for an application that has its answer ready, and for the real one. Writes benchmarks/results/http_profile.json and .txt.
"""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from http_load import CASES, Load, Service, sign
from paired import RESULTS, machine

import kmscore
from kmscore.api import answers, server
from kmscore.api.app import App, build_app
from kmscore.api.metrics import Metrics
from kmscore.api.nonces import Nonces
from kmscore.api.request import has_body, make_request
from kmscore.api.signatures import check_time, claim_of
from kmscore.config import read_credentials
from kmscore.engine.kms import Kms
from kmscore.operations import OPERATIONS, SECRETS, render
from kmscore.operations.parse import arguments

REQUESTS = 6000
ROUNDS = 6  # over a connection
WARM = 1000  # requests before the ones that count
CONNECTIONS = 8

Table = dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kms]:
    with kmscore.open_kms(tmp_path_factory.mktemp("profile") / "home", ticker=False) as kms:
        yield kms


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    return Load(tmp_path_factory.mktemp("load"))


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    found: Table = {}
    yield found
    if not found:
        return
    lines = ["http profile: microseconds of one Encrypt (HSM)", ""]
    lines.append(f"{'stage':<46}" + "".join(f"{case:>14}" for case in found))
    lines += [f"{name:<46}" + "".join(f"{found[case][name]:>14.1f}" for case in found) for name in next(iter(found.values()))]
    setting = machine() | {"requests": REQUESTS, "clock": "CLOCK_MONOTONIC; CPU time of the serving thread over connections"}
    RESULTS.mkdir(exist_ok=True)
    RESULTS.joinpath("http_profile.json").write_text(json.dumps({"setting": setting, "cases": found}, indent=1) + "\n")
    RESULTS.joinpath("http_profile.txt").write_text("\n".join(lines) + "\n")
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write("\n" + "\n".join(lines) + "\n")


def scope_of(raw: bytes) -> dict[str, Any]:
    head = raw.partition(b"\r\n\r\n")[0].split(b"\r\n")
    _, target, _ = head[0].split(b" ")
    headers = [tuple(line.split(b": ", 1)) for line in head[1:]]
    return {"type": "http", "method": "POST", "path": "/", "query_string": target.partition(b"?")[2], "headers": headers}


def stages(kms: Kms, scopes: list[dict[str, Any]]) -> dict[str, float]:
    """What the door does for a request, in its order."""
    nonces, metrics, operation = Nonces(kms.settings.home / "run"), Metrics(), OPERATIONS["Encrypt"]
    times: dict[str, list[int]] = {}
    at = 0

    def mark(name: str) -> None:
        nonlocal at
        now = time.perf_counter_ns()
        times.setdefault(name, []).append(now - at)
        at = time.perf_counter_ns()

    for scope in scopes:
        at = time.perf_counter_ns()
        has_body(scope)
        request = make_request(scope, b"")
        mark("read: query, headers")
        claim = claim_of(request)
        mark("signature: what it claims")
        credential = kms.credential(claim.access_key_id)
        claim.verify(credential.secret, SECRETS)
        mark("signature: canonical form, hash, HMAC")
        check_time(claim.stamp)
        mark("time")
        nonces.take(claim.access_key_id, claim.nonce)
        mark("nonce")
        keywords = arguments(operation, request.business(operation.takes_region))
        mark("parameters")
        ids = kms.authorise(credential.caller, operation.action, keys=[keywords["key_id"]])
        keywords["key_id"] = ids[keywords["key_id"]]
        mark("permission")
        sealed = kms.encrypt(**keywords)
        mark("engine and token")
        answer = render.encrypted(sealed)
        mark("answer: base64")
        answers.success({**answer, "RequestId": "x" * 36}, "x" * 36)
        mark("answer: JSON")
        metrics.answered("Encrypt", "OK", 0.001)
        mark("metrics")
    return {name: statistics.median(values[WARM:]) / 1000 for name, values in times.items()}


def door(app: App, scopes: list[dict[str, Any]]) -> float:
    """The application as a whole, without a connection."""
    times: list[int] = []

    async def send(message: Any) -> None:
        assert message.get("status", 200) == 200

    async def all_of_them() -> None:
        for scope in scopes:
            at = time.perf_counter_ns()
            await app(scope, None, send)
            times.append(time.perf_counter_ns() - at)

    asyncio.run(all_of_them())
    return statistics.median(times[WARM:]) / 1000


@contextmanager
def serving(kms: Kms, app: App) -> Iterator[tuple[int, Callable[[], float]]]:
    """A port where `app` is served by a thread, and what tells the CPU seconds this thread has spent, in the kernel too."""
    made = server.make_server(kms)
    made.config.app = app
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=made.run, kwargs={"sockets": [listener]})
    thread.start()

    def spent() -> float:
        assert thread.ident is not None
        return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))

    try:
        while not made.started:
            time.sleep(0.01)
        yield listener.getsockname()[1], spent
    finally:
        made.should_exit = True
        thread.join(30)


async def ready(scope: Any, receive: Any, send: Any) -> None:
    """An application that has its answer ready, of the size of the real one."""
    if scope["type"] != "http":
        return
    body = b"x" * 250
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.mark.parametrize("case", ["Encrypt 32 B", "Encrypt 4 KB"])
def test_profile(benchmark: Any, kms: Kms, load: Load, table: Table, case: str) -> None:
    key = kms.create_key(protection_level="HSM").key_id
    access_key = read_credentials(kms.settings.home / "credentials")
    app = build_app(kms)

    def raw(_: str = "") -> bytes:
        return sign("h", access_key, "Encrypt", CASES[case][1]() | {"KeyId": key})

    def connected(app: App) -> float:
        found = []
        with serving(kms, app) as (port, spent):
            load(Service("here", port, raw), case, CONNECTIONS, WARM)
            for _ in range(ROUNDS):
                before = spent()
                load(Service("here", port, raw), case, CONNECTIONS, REQUESTS // ROUNDS)
                found.append(1e6 * (spent() - before) / (REQUESTS // ROUNDS))
        return statistics.median(found)

    one, two = ([scope_of(raw()) for _ in range(WARM + REQUESTS)] for _ in range(2))
    gc.collect()
    gc.disable()
    try:
        times = stages(kms, one)
        together = sum(times.values())
        whole = door(app, two)
    finally:
        gc.enable()
    times["the rest: request id, who acts, coroutines"] = whole - together
    times["the door as a whole"] = whole
    bare, all_of_it = connected(ready), connected(app)
    times["connection: uvicorn, event loop, kernel"] = bare
    times["the rest: all costs more between connections"] = all_of_it - whole - bare
    times["all, over a connection"] = all_of_it
    table[case] = times
    benchmark.extra_info.update(times)
    benchmark.pedantic(raw, rounds=100)
