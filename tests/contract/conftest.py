from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from benches import KINDS, Bench
from custody_helpers import fast_directory


@pytest.fixture(scope="module", params=KINDS)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with fast_directory() as directory, ExitStack() as stack:
        yield Bench(request.param, *KINDS[request.param](directory, stack))
