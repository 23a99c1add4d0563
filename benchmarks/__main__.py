"""`make bench`: every benchmark here, one after the other; results in benchmarks/results/, tables on standard output."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

if __name__ == "__main__":
    files = [str(path) for path in sorted(HERE.glob("bench_*.py"))]
    sys.exit(pytest.main([*files, "-v", "-p", "no:cacheprovider", "--benchmark-columns=median,iqr,rounds", "--no-header", *sys.argv[1:]]))
