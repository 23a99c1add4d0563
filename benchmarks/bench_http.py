"""The service over HTTP, beside moto's server in the same run: signed requests prepared ahead, keep-alive, 1 and 8 connections.

    python -m pytest benchmarks/bench_http.py

Every round measures all variants one after the other; rates are by wall clock, server and load generator (benchmarks/httpload.c) on the
same cores. Ratios are medians over the rounds. Writes benchmarks/results/http.json and http.txt. Without moto (pip install -e '.[bench]')
there is no peer, and the table says so. Two workers and the generator need the whole machine: the table names cases that other programs
disturbed.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from http_load import CASES, Load, Others, Service, kmscore_service, moto_service
from paired import RESULTS, machine

ROUNDS = 5
PROMISED = 20  # Encrypt of 32 bytes over 8 connections, beside moto
BUSY = 0.25  # processors
SECONDS = 0.35  # about what one measurement takes


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    return Load(tmp_path_factory.mktemp("load"))


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
        setting = machine() | {"rounds": ROUNDS, "clock": "CLOCK_MONOTONIC"}
        RESULTS.mkdir(exist_ok=True)
        RESULTS.joinpath("http.json").write_text(json.dumps({"setting": setting, "cases": rows}, indent=1) + "\n")
        RESULTS.joinpath("http.txt").write_text(lines)
        reporter = request.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write("\n" + lines)


def report(rows: list[dict[str, Any]]) -> str:
    lines = [f"http benchmark, {ROUNDS} rounds: items a second and times of a request in microseconds (medians), rate beside moto's", ""]
    lines.append(f"{'case':<18}{'connections':>12}  {'service':<22}{'items/s':>9}{'p50':>9}{'p99':>9}{'x moto':>9}  from - to")
    for row in rows:
        for name, found in row["services"].items():
            numbers = "".join(f"{found[field]:>9.0f}" for field in ("rate", "p50", "p99"))
            ratio = found.get("ratio")
            beside = f"{ratio['median']:>9.1f}  {ratio['min']:.1f} - {ratio['max']:.1f}" if ratio else f"{'-':>9}"
            lines.append(f"{row['case']:<18}{row['connections']:>12}  {name:<22}{numbers}{beside}")
    peers = {row["services"]["moto"]["version"] for row in rows if "moto" in row["services"]}
    lines += [f"moto is {version}" for version in sorted(peers)]
    if not peers:
        lines.append("moto is not installed, so there is no peer: pip install -e '.[bench]'")
    disturbed = [f"{row['case']} ({row['connections']}): {row['others']:.1f}" for row in rows if row["others"] > BUSY]
    if disturbed:
        lines.append(f"rates of two workers are too low, other programs kept processors busy: {', '.join(disturbed)}")
    lines.append(f"to reach: Encrypt 32 B over 8 connections at {PROMISED} times moto's rate")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("connections", [1, 8])
@pytest.mark.parametrize("case", CASES)
def test_http(benchmark: Any, table: list[dict[str, Any]], services: list[Service], load: Load, case: str, connections: int) -> None:
    items = CASES[case][4]
    able = [service for service in services if service.make(case) is not None]
    numbers = {}
    for service in able:
        first = load(service, case, connections, 40)
        numbers[service.name] = min(6000, max(40, int(SECONDS * first["requests"] / first["seconds"])))
    found: dict[str, list[dict[str, float]]] = {service.name: [] for service in able}
    order = random.Random(1)
    load.others = Others()
    for _ in range(ROUNDS):
        for service in order.sample(able, len(able)):
            found[service.name].append(load(service, case, connections, numbers[service.name]))
    rates = {name: [items * run["requests"] / run["seconds"] for run in runs] for name, runs in found.items()}
    told: dict[str, Any] = {}
    for name, runs in found.items():
        told[name] = {
            "version": next(service.version for service in able if service.name == name),
            "rate": statistics.median(rates[name]),
            "rates": [round(rate) for rate in rates[name]],
            "p50": statistics.median(run["p50"] for run in runs),
            "p99": statistics.median(run["p99"] for run in runs),
        }
        if name != "moto" and "moto" in rates:
            ratios = [x / y for x, y in zip(rates[name], rates["moto"], strict=True)]
            told[name]["ratio"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    table.append({"case": case, "connections": connections, "others": round(load.others.busy(), 2), "services": told})
    benchmark.extra_info.update({name: value["rate"] for name, value in told.items()})
    benchmark.pedantic(lambda: load(able[0], case, connections, 40), rounds=3)
