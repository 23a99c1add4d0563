from __future__ import annotations

from pathlib import Path

import pytest
from command import Command
from hostile import hostile, hostile_home, it  # noqa: F401 - fixtures


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A home that the tests of one file share; what a test needs of it, it makes."""
    command = Command(tmp_path_factory.mktemp("e2e") / "home")
    assert command.run("ListKeys").returncode == 0
    return command


@pytest.fixture
def fresh(tmp_path: Path) -> Command:
    return Command(tmp_path / "home")


@pytest.fixture
def key(kms: Command) -> str:
    return str(kms.json("CreateKey", "--ProtectionLevel", "HSM")["KeyMetadata"]["KeyId"])
