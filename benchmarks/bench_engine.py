"""What does the engine add to the core: names, freshness, state, context, result?

    BENCH_ROUNDS=300 python -m pytest benchmarks/bench_engine.py

Writes benchmarks/results/engine.json and engine.txt. How it measures: paired.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from paired import Ratio, Report, Variant

import kmscore
from kmscore.engine.kms import Kms

BATCH = 64
RATIOS = [
    Ratio("engine single / core single", "engine single", "core single", 0.5),
    Ratio("engine batch 64 / core batch 64", "engine batch 64", "core batch 64"),
    Ratio("with a context / without", "engine single, context", "engine single"),
]


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kms]:
    with kmscore.open_kms(tmp_path_factory.mktemp("bench") / "home", ticker=False) as kms:
        yield kms


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    report = Report("engine", RATIOS)
    yield report
    report.finish(request.config, {})


@pytest.mark.parametrize("size", [32, 1024, 4096])
@pytest.mark.parametrize("operation", ["encrypt", "decrypt"])
@pytest.mark.parametrize("level", ["HSM", "SOFTWARE"])
def test_engine(benchmark: Any, kms: Kms, report: Report, level: str, operation: str, size: int) -> None:
    key = kms.create_key(protection_level=level).key_id
    context = {"tenant": "4711", "table": "orders"}
    texts = [os.urandom(size) for _ in range(BATCH)]
    blobs = kms.encrypt_batch(key, texts)
    bound = kms.encrypt_batch(key, texts, context)
    use = kms._s.ring.to_encrypt(key)
    aead, header, aad = use.loaded, use.header[0], use.aad[0]
    assert aead is not None

    def each(call: Any, items: list[bytes], *more: Any) -> Any:
        def work() -> None:
            for item in items:
                call(*more, item)

        return work

    if operation == "encrypt":
        compared = [
            Variant("core single", BATCH, each(aead.encrypt, texts, header, aad)),
            Variant("engine single", BATCH, each(kms.encrypt, texts, key)),
            Variant("engine single, context", BATCH, each(lambda text: kms.encrypt(key, text, context), texts)),
            Variant("core batch 64", BATCH, lambda: aead.encrypt_batch(header, aad, texts)),
            Variant("engine batch 64", BATCH, lambda: kms.encrypt_batch(key, texts)),
        ]
    else:
        compared = [
            Variant("core single", BATCH, each(aead.decrypt, blobs, 19, aad)),
            Variant("engine single", BATCH, each(kms.decrypt, blobs)),
            Variant("engine single, context", BATCH, each(lambda blob: kms.decrypt(blob, context), bound)),
            Variant("core batch 64", BATCH, lambda: aead.decrypt_batch(19, aad, blobs)),
            Variant("engine batch 64", BATCH, lambda: kms.decrypt_batch(blobs)),
        ]
    report.case(benchmark, f"{level[:4].lower()} {operation[:3]} {size}", compared, whole="engine batch 64")
