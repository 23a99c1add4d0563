"""Long runs of what the suite does shortly: `python -m tests.campaigns.NAME`, from the top of the checkout."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
for folder in (TESTS / "e2e", TESTS.parent / "scripts"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
