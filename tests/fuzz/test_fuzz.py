"""The parsers that strangers reach bear any bytes: the kept corpus, and a short run of the fuzzer. `make fuzz` runs longer."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path(__file__).parent / "corpus"
RUNS = {"params": 5_000}  # else 20,000: each takes a second or two


def kept(target: str) -> list[Path]:
    return sorted((CORPUS / target).iterdir())


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus(target: str) -> None:
    files = kept(target)
    assert len(files) >= 5
    for path in files:
        assert path.stat().st_size <= 4096
        TARGETS[target](path.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_a_short_run(target: str, tmp_path: Path) -> None:
    """In a process of its own: the fuzzer instruments what it imports, and ends the process."""
    runs = RUNS.get(target, 20_000)
    options = ["--runs", str(runs), "--seconds", "60", "--seed", "1", "--work", str(tmp_path)]
    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz", target, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    executed = re.search(r"stat::number_of_executed_units: ([0-9]+)", done.stderr)
    assert executed
    assert int(executed[1]) >= runs
    assert not list(tmp_path.glob("*/failure-*"))
