"""Paired measuring and its report, shared by every benchmark here.

Every round runs all variants of a case one after the other, in another order each time, and gives one ratio per pair of variants; the
median over the rounds is what counts, since the machine may be twice as slow in the next second. Times are CPU time of the thread.
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
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).with_name("results")
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "300"))
# A round gives each variant about this much time, so that the clock is not what is measured.
NANOSECONDS_PER_ROUND = 1_000_000

Work = Callable[[], object]


@dataclass(frozen=True)
class Variant:
    """`work` handles `messages` messages of its case."""

    name: str
    messages: int
    work: Work


@dataclass(frozen=True)
class Ratio:
    """Speed of `variant` over speed of `yardstick`; `promised` is what the project promises, or None."""

    name: str
    variant: str
    yardstick: str
    promised: float | None = None


class Report:
    """Collects what the cases of one benchmark measured; `finish` writes it down and prints the table."""

    def __init__(self, name: str, ratios: list[Ratio]) -> None:
        self._name = name
        self._ratios = ratios
        self._cases: list[dict[str, Any]] = []

    def case(self, benchmark: Any, label: str, compared: list[Variant], whole: str) -> None:
        """Measure one case; `whole` names the variant that goes into pytest-benchmark's own table and history."""
        times = measure(compared)
        ratios = {
            ratio.name: quantiles([y / x for x, y in zip(times[ratio.variant], times[ratio.yardstick], strict=True)])
            for ratio in self._ratios
        }
        self._cases.append({"case": label, "us_per_message": {k: quantiles(v) for k, v in times.items()}, "ratios": ratios})
        benchmark.extra_info.update({name: value["median"] for name, value in ratios.items()})
        work = next(variant.work for variant in compared if variant.name == whole)
        benchmark.pedantic(work, rounds=100, iterations=5, warmup_rounds=2)

    def finish(self, config: pytest.Config, more: dict[str, Any]) -> None:
        if not self._cases:
            return
        text = self._table()
        RESULTS.mkdir(exist_ok=True)
        setting = {**machine(), **more}
        RESULTS.joinpath(f"{self._name}.json").write_text(json.dumps({"setting": setting, "cases": self._cases}, indent=1) + "\n")
        RESULTS.joinpath(f"{self._name}.txt").write_text(text)
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write("\n" + text)

    def _table(self) -> str:
        """Medians as text: microseconds per message, then ratios of speed (1 = as fast as the second one named)."""
        first = self._cases[0]
        width = max(len(name) for name in [*first["us_per_message"], *first["ratios"]]) + 2
        column = max(len(case["case"]) for case in self._cases) + 2
        promised = {ratio.name: ratio.promised for ratio in self._ratios}
        lines = [f"{self._name} benchmark, {ROUNDS} rounds, CPU us per message (median)"]
        lines.append(" " * width + "".join(f"{case['case']:>{column}}" for case in self._cases))
        for row in first["us_per_message"]:
            lines.append(f"{row:<{width}}" + "".join(f"{case['us_per_message'][row]['median']:>{column}.2f}" for case in self._cases))
        lines += ["", "speed, median of paired ratios"]
        for row in first["ratios"]:
            numbers = "".join(f"{case['ratios'][row]['median']:>{column}.3f}" for case in self._cases)
            lines.append(f"{row:<{width}}" + numbers + (f"   to reach {promised[row]}" if promised[row] else ""))
        return "\n".join(lines) + "\n"


def machine() -> dict[str, Any]:
    lines = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": lines[0].split(":")[1].strip() if lines else platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
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
