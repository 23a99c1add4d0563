"""What all tests share: the header of the run, hypothesis profiles, where vectors from outside are found."""

from __future__ import annotations

import os
import runpy
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from local_servers import Postgres

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "scripts")]  # custody_helpers, local_servers

# The same examples in every run: a failure in CI is a failure here. HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--store", choices=("sqlite", "postgresql"), default="sqlite", help="what every home of the tests keeps its events in")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--store") == "postgresql":
        hook = Path(__file__).parent / "on_postgres"
        from local_servers import Postgres

        directory = tempfile.TemporaryDirectory(prefix="kmscore-postgres-")
        config.add_cleanup(directory.cleanup)
        server = Postgres(Path(directory.name) / "server", durable=False)
        config.add_cleanup(server.stop)  # first
        server.start()
        os.environ["TEST_POSTGRES_URL"] = server.create_database("kms")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(hook), os.environ.get("PYTHONPATH"))))
        runpy.run_path(str(hook / "sitecustomize.py"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--store") == "postgresql":
        left = [item for item in items if item.get_closest_marker("sqlite") is None]
        config.hook.pytest_deselected(items=[item for item in items if item not in left])
        items[:] = left


def pytest_report_header() -> str:
    from kmscore.config import load_settings
    from kmscore.errors import SetupError

    try:
        module = load_settings("unused").pkcs11_module
    except SetupError as error:
        return f"token: none ({error.message})"
    tool = shutil.which("softhsm2-util")
    version = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False).stdout.strip() if tool else "unknown"
    return f"token: {module}, SoftHSM {version}"


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The folder of vectors from outside, KMS_VECTORS; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("KMS_VECTORS", ROOT.parent / "shared" / "vectors"))
    if not folder.is_dir():
        pytest.skip(f"no vectors at {folder}; name their folder in KMS_VECTORS")
    return folder


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A PostgreSQL of this session. Who stops, kills or pauses it starts it again."""
    from local_servers import Postgres

    with Postgres(tmp_path_factory.mktemp("postgres") / "server", durable=False) as server:
        server.create_database("kms")
        yield server


@pytest.fixture
def database(postgres: Postgres) -> str:
    """The URL of an empty schema in it."""
    import psycopg

    assert postgres.running
    name = f"test_{secrets.token_hex(8)}"
    with psycopg.connect(postgres.url("kms"), autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
    return f"{postgres.url('kms')}?options={quote(f'-csearch_path={name}')}"


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own KMS_ variables must not decide what a test does."""
    for name in list(os.environ):
        if name.startswith("KMS_") and name not in ("KMS_VECTORS", "KMS_KILL_SEED"):
            monkeypatch.delenv(name)
