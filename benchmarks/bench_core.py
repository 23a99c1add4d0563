"""How far is the core from a plain C loop over the same PKCS#11 calls, and from what else there is?

    BENCH_ROUNDS=300 python -m pytest benchmarks/bench_core.py

Every round runs all variants of a case one after the other, in another order each time, and gives one ratio per pair of variants; the
median over the rounds is what counts, since the machine may be twice as slow in the next second. Times are CPU time of the thread.
Writes benchmarks/results/core.json and core.txt.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import random
import ssl
import statistics
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from core_variants import CLoop, Variant, variants
from p11_helpers import MECHANISMS, Rig, open_rig

RESULTS = Path(__file__).with_name("results")
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "300"))
# A round gives each variant about this much time, so that the clock is not what is measured.
NANOSECONDS_PER_ROUND = 1_000_000
SIZES = (32, 1024, 4096)
# (name, variant, yardstick, what the project promises or None)
RATIOS = [
    ("batch 64 / C loop", "core batch 64", "C loop", 0.95),
    ("single / C loop", "core single", "C loop", 0.85),
    ("batch 64 / python-pkcs11", "core batch 64", "python-pkcs11, resident key", None),
    ("single / python-pkcs11", "core single", "python-pkcs11, resident key", None),
    ("software batch 64 / AESGCM", "core software batch 64", "cryptography AESGCM", None),
    ("software single / AESGCM", "core software single", "cryptography AESGCM", None),
]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with open_rig(tmp_path_factory.mktemp("token")) as rig:
        yield rig


@pytest.fixture(scope="module")
def cloop(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> CLoop:
    return CLoop(rig, tmp_path_factory.mktemp("cloop"))


@pytest.fixture(scope="module")
def cases(request: pytest.FixtureRequest, rig: Rig) -> Iterator[list[dict[str, Any]]]:
    """Collects what each case measured; at the end writes it down and prints the table."""
    found: list[dict[str, Any]] = []
    yield found
    if not found:
        return
    text = table(found)
    RESULTS.mkdir(exist_ok=True)
    RESULTS.joinpath("core.json").write_text(json.dumps({"setting": setting(rig), "cases": found}, indent=1) + "\n")
    RESULTS.joinpath("core.txt").write_text(text)
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write("\n" + text)


def cpu_model() -> str:
    lines = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return lines[0].split(":")[1].strip() if lines else platform.machine()


def setting(rig: Rig) -> dict[str, Any]:
    info = rig.module.info()
    return {
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "module": f"{info['manufacturer']} {info['library_version']}",
        "mechanisms": MECHANISMS,
        "openssl": ssl.OPENSSL_VERSION,
        "cryptography": version("cryptography"),
        "python-pkcs11": version("python-pkcs11"),
        "rounds": ROUNDS,
        "clock": "CLOCK_THREAD_CPUTIME_ID",
    }


def measure(compared: list[Variant]) -> dict[str, list[float]]:
    """Microseconds of CPU time per message, for each variant one number per round."""
    repeats = {}
    for variant in compared:
        variant.work()
        start = time.thread_time_ns()
        variant.work()
        repeats[variant.name] = max(1, NANOSECONDS_PER_ROUND // (time.thread_time_ns() - start))
    times: dict[str, list[float]] = {variant.name: [] for variant in compared}
    order = random.Random(1)
    gc.disable()
    try:
        for _ in range(ROUNDS):
            for variant in order.sample(compared, len(compared)):
                work, count = variant.work, repeats[variant.name]
                start = time.thread_time_ns()
                for _ in range(count):
                    work()
                times[variant.name].append((time.thread_time_ns() - start) / 1000 / count / variant.messages)
    finally:
        gc.enable()
    return times


def quantiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=20)
    return {"median": round(statistics.median(values), 3), "p5": round(cuts[0], 3), "p95": round(cuts[-1], 3), "min": round(min(values), 3)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("operation", ["encrypt", "decrypt"])
def test_core(benchmark: Any, rig: Rig, cloop: CLoop, cases: list[dict[str, Any]], operation: str, size: int) -> None:
    compared = variants(rig, cloop, operation, size)
    times = measure(compared)
    ratios = {name: quantiles([y / x for x, y in zip(times[fast], times[slow], strict=True)]) for name, fast, slow, _ in RATIOS}
    cases.append({"operation": operation, "size": size, "us_per_message": {k: quantiles(v) for k, v in times.items()}, "ratios": ratios})
    # For pytest-benchmark's own table and history: the batch of 64, whole.
    benchmark.extra_info.update({name: value["median"] for name, value in ratios.items()})
    batch = next(variant for variant in compared if variant.name == "core batch 64")
    benchmark.pedantic(batch.work, rounds=100, iterations=5, warmup_rounds=2)


def table(found: list[dict[str, Any]]) -> str:
    """Medians as text: microseconds per message, then ratios of speed (1 = as fast as the second one named)."""
    names = [f"{case['operation'][:3]} {case['size']}" for case in found]
    width = max(len(name) for name in [*found[0]["us_per_message"], *found[0]["ratios"]]) + 2
    lines = [f"core benchmark, {ROUNDS} rounds, CPU us per message (median)", " " * width + "".join(f"{name:>10}" for name in names)]
    lines += [
        f"{row:<{width}}" + "".join(f"{case['us_per_message'][row]['median']:>10.2f}" for case in found)
        for row in found[0]["us_per_message"]
    ]
    lines += ["", "speed, median of paired ratios"]
    lines += [f"{row:<{width}}" + "".join(f"{case['ratios'][row]['median']:>10.3f}" for case in found) for row in found[0]["ratios"]]
    return "\n".join(lines) + "\n"
