"""`python -m tests.fuzz TARGET`: looks for bytes that a target does not bear, from the corpus on. Ends with 0 when it found none.

What it finds on the way goes to `--work`, never into the corpus: a failure's bytes are put there by hand, with the fix.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import atheris

CORPUS = Path(__file__).parent / "corpus"

with atheris.instrument_imports(include=["kmscore.signing", "kmscore.api", "kmscore.operations", "kmscore.domain"]):
    from tests.fuzz.fuzz_targets import TARGETS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--runs", type=int, default=-1, help="stop after so many, too")
    parser.add_argument("--seed", type=int, default=0, help="0: another one in each run")
    parser.add_argument("--max-bytes", type=int, default=4096)
    parser.add_argument("--work", type=Path, required=True, help="a directory for what is found; made")
    chosen = parser.parse_args()
    work = chosen.work / chosen.target
    work.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={chosen.seconds}",
        f"-runs={chosen.runs}",
        f"-seed={chosen.seed}",
        f"-max_len={chosen.max_bytes}",
        f"-artifact_prefix={work}/failure-",
        "-timeout=10",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(work), str(CORPUS / chosen.target)], TARGETS[chosen.target])
    atheris.Fuzz()


main()
