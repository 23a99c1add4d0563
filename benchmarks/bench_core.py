"""How far is the core from a plain C loop over the same PKCS#11 calls, and from what else there is?

    BENCH_ROUNDS=300 python -m pytest benchmarks/bench_core.py

Writes benchmarks/results/core.json and core.txt. How it measures: paired.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from core_variants import CLoop, variants
from p11_helpers import MECHANISMS, Rig, open_rig
from paired import Ratio, Report

SIZES = (32, 1024, 4096)
RATIOS = [
    Ratio("batch 64 / C loop", "core batch 64", "C loop", 0.95),
    Ratio("single / C loop", "core single", "C loop", 0.85),
    Ratio("batch 64 / python-pkcs11", "core batch 64", "python-pkcs11, resident key"),
    Ratio("single / python-pkcs11", "core single", "python-pkcs11, resident key"),
    Ratio("software batch 64 / AESGCM", "core software batch 64", "cryptography AESGCM"),
    Ratio("software single / AESGCM", "core software single", "cryptography AESGCM"),
]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with open_rig(tmp_path_factory.mktemp("token")) as rig:
        yield rig


@pytest.fixture(scope="module")
def cloop(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> CLoop:
    return CLoop(rig, tmp_path_factory.mktemp("cloop"))


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest, rig: Rig) -> Iterator[Report]:
    report = Report("core", RATIOS)
    yield report
    info = rig.module.info()
    report.finish(request.config, {"module": f"{info['manufacturer']} {info['library_version']}", "mechanisms": MECHANISMS})


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("operation", ["encrypt", "decrypt"])
def test_core(benchmark: Any, rig: Rig, cloop: CLoop, report: Report, operation: str, size: int) -> None:
    report.case(benchmark, f"{operation[:3]} {size}", variants(rig, cloop, operation, size), whole="core batch 64")
