"""Does the time of the OAEP decoder tell good padding from bad, or one kind of bad padding from another? (Manger; RELIABILITY O3, G11)

    PADDING_PAIRS=20000 python -m pytest benchmarks/bench_padding.py

Times encoded messages in pairs, in random order: one whose label is wrong, and one that is good or wrong in another way. Says for each
kind both medians, how much their distributions overlap, and the z of a sign test over the pairs. The first row compares the wrong label
with itself: its z is what the machine makes of no difference, and only what lies well beyond it says something. The row of the good
ones holds a few nanoseconds of its own: it answers an object and not None. A decoder that stops at the first byte is measured
in the same way, to show that the method sees one. Writes benchmarks/results/padding.json and padding.txt.
"""

from __future__ import annotations

import gc
import json
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from paired import RESULTS, machine

from kmscore.custody._p11 import oaep_decode

PAIRS = int(os.environ.get("PADDING_PAIRS", "20000"))
MESSAGES = 2000
SIZE = 256  # RSA-2048
HASH = {"SHA-1": hashes.SHA1(), "SHA-256": hashes.SHA256()}

Decode = Callable[[bytes, str], bytes | None]


def digest(name: str, data: bytes) -> bytes:
    context = hashes.Hash(HASH[name])
    context.update(data)
    return context.finalize()


def mgf1(name: str, seed: bytes, size: int) -> bytes:
    blocks = (digest(name, seed + counter.to_bytes(4)) for counter in range(size // HASH[name].digest_size + 1))
    return b"".join(blocks)[:size]


def encoded(name: str, db: bytes, first: int = 0) -> bytes:
    """EM of RFC 8017 section 7.1.1 from a data block."""
    seed = os.urandom(HASH[name].digest_size)
    masked = bytes(a ^ b for a, b in zip(db, mgf1(name, seed, len(db)), strict=True))
    hidden = bytes(a ^ b for a, b in zip(seed, mgf1(name, masked, len(seed)), strict=True))
    return bytes([first]) + hidden + masked


def block(name: str, kind: str) -> bytes:
    """A data block with no message in it, so that both answers, empty and None, are objects that exist already."""
    label = digest(name, b"")
    room = SIZE - 1 - 2 * len(label) - 1
    if kind == "another label":
        label = digest(name, b"x")
    padding = bytes(room) + b"\1"
    if kind == "no end of the padding":
        padding = bytes(room + 1)
    if kind == "a byte before the end":
        padding = bytes(room // 2) + b"\2" + padding[room // 2 + 1 :]
    if kind == "a byte at the start":
        padding = b"\2" + padding[1:]
    return label + padding


def make(name: str, kind: str) -> bytes:
    return encoded(name, block(name, kind), 1 if kind == "a first byte that is not zero" else 0)


YARDSTICK = "another label"
KINDS = (YARDSTICK, "good", "a first byte that is not zero", "no end of the padding", "a byte before the end", "a byte at the start")


def hasty(em: bytes, name: str) -> bytes | None:
    """What must not be: it looks at the first byte and stops."""
    return None if em[0] else oaep_decode(em, name)


def compare(decode: Decode, name: str, kind: str) -> dict[str, float]:
    order = random.Random(1)
    clock = time.perf_counter_ns
    pools: tuple[list[bytes], list[bytes]] = ([], [])
    for this in order.sample([False, True] * MESSAGES, 2 * MESSAGES):
        pools[this].append(make(name, kind if this else YARDSTICK))
    assert {decode(em, name) for em in pools[0]} == {None}
    assert {decode(em, name) for em in pools[1]} == {b"" if kind == "good" else None}
    times: tuple[list[int], list[int]] = ([], [])
    gc.disable()
    try:
        for _ in range(PAIRS):
            pair = order.choice(pools[0]), order.choice(pools[1])
            first = order.random() < 0.5
            for which in (first, not first):
                em = bytes(memoryview(pair[which]))  # a copy that lies where the last one lay: where a message lies would show, too
                start = clock()
                decode(em, name)
                took = clock() - start
                del em
                times[which].append(took)
    finally:
        gc.enable()
    slower = sum(b > a for a, b in zip(*times, strict=True))
    faster = sum(b < a for a, b in zip(*times, strict=True))
    return {
        "yardstick_ns": statistics.median(times[0]),
        "this_ns": statistics.median(times[1]),
        "overlap": round(overlap(*times), 4),
        "z": round((slower - faster) / math.sqrt(max(1, slower + faster)), 2),
    }


def overlap(one: list[int], two: list[int]) -> float:
    """Shared area of two histograms with bins of a fiftieth of the median: 1 when they are the same."""
    width = max(1.0, statistics.median(one + two) / 50)
    counts = [{}, {}]  # type: list[dict[int, int]]
    for count, times in zip(counts, (one, two), strict=True):
        for value in times:
            count[int(value / width)] = count.get(int(value / width), 0) + 1
    return sum(min(counts[0].get(bin_, 0), counts[1].get(bin_, 0)) for bin_ in counts[0].keys() | counts[1].keys()) / len(one)


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest) -> Iterator[dict[str, dict[str, float]]]:
    rows: dict[str, dict[str, float]] = {}
    yield rows
    width = max(len(row) for row in rows) + 2
    lines = [f"OAEP decoder, {PAIRS} pairs with a wrong label, RSA-2048"]
    lines.append(f"{'':<{width}}{'label, ns':>10}{'this, ns':>10}{'overlap':>10}{'z':>8}")
    for row, r in rows.items():
        numbers = f"{r['yardstick_ns']:>10.0f}{r['this_ns']:>10.0f}{r['overlap']:>10.3f}{r['z']:>8.1f}"
        lines.append(f"{row:<{width}}{numbers}")
    text = "\n".join(lines) + "\n"
    RESULTS.mkdir(exist_ok=True)
    RESULTS.joinpath("padding.txt").write_text(text)
    RESULTS.joinpath("padding.json").write_text(json.dumps({"setting": {**machine(), "pairs": PAIRS}, "rows": rows}, indent=1) + "\n")
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write("\n" + text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HASH)
def test_padding(benchmark: Any, rows: dict[str, dict[str, float]], name: str, kind: str) -> None:
    rows[f"{name}, {kind}"] = compare(oaep_decode, name, kind)
    bad = make(name, kind)
    benchmark.pedantic(lambda: oaep_decode(bad, name), rounds=100, iterations=5, warmup_rounds=2)


def test_a_hasty_decoder_is_seen(benchmark: Any, rows: dict[str, dict[str, float]]) -> None:
    rows["hasty decoder, a first byte that is not zero"] = row = compare(hasty, "SHA-256", "a first byte that is not zero")
    assert abs(row["z"]) > 10
    good = make("SHA-256", "good")
    benchmark.pedantic(lambda: hasty(good, "SHA-256"), rounds=100, iterations=5, warmup_rounds=2)
