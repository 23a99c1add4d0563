"""Fixtures of the tests of the core on real tokens, and of those that make one fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from asym_helpers import Bench, bench_of, open_nss
from p11_helpers import Shim, build_shim, open_rig

from kmscore.store.postgres import PostgresStore


@pytest.fixture(scope="module", params=["SoftHSM", "NSS"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    directory = tmp_path_factory.mktemp("token")
    if request.param == "NSS":
        with open_nss(directory) as bench:
            yield bench
    else:
        with open_rig(directory, mechanisms="ALL") as rig, bench_of(rig) as bench:
            yield bench


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    """The fault-injecting module before SoftHSM; a test that wants another token before it overrides this one."""
    return build_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def shim(built: Shim) -> Iterator[Shim]:
    """No fault is set when the test begins, and none when it has ended."""
    built.reset()
    yield built
    built.reset()


@pytest.fixture
def shimmed(tmp_path: Path, shim: Shim) -> Iterator[Bench]:
    with open_rig(tmp_path, path=shim.path, mechanisms="ALL") as rig, bench_of(rig) as bench:
        yield bench


@pytest.fixture
def direct(database: str) -> Iterator[PostgresStore]:
    """The database of the test, beside whatever link of it fails."""
    store = PostgresStore(database)
    yield store
    store.close()
