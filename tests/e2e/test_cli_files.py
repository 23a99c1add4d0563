"""`kms encrypt-file` and `decrypt-file`: real files, real keys, and whatever can interrupt them."""

from __future__ import annotations

import filecmp
import os
import random
import resource
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import ROOT, Command

MIB = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def content(path: Path, size: int) -> Path:
    path.write_bytes(secrets.token_bytes(size))
    return path


def test_a_file_survives_rotation_and_a_disabled_key_opens_nothing(kms: Command, key: str, folder: Path) -> None:
    plain = content(folder / "plain", 3 * MIB + 1)
    assert kms.text("encrypt-file", "--key", key, plain, folder / "sealed") == ""
    kms.json("rotate", key)
    assert kms.text("decrypt-file", folder / "sealed", folder / "back") == ""
    assert (folder / "back").read_bytes() == plain.read_bytes()
    kms.json("DisableKey", "--KeyId", key)
    refusal = "Rejected.Disabled: The request was rejected because the key state is Disabled."
    assert kms.refused("decrypt-file", folder / "sealed", folder / "back2") == refusal
    assert kms.refused("encrypt-file", "--key", key, plain, folder / "sealed2") == refusal
    assert sorted(os.listdir(folder)) == ["back", "plain", "sealed"]


def test_standard_input_and_an_alias(kms: Command, key: str, folder: Path) -> None:
    kms.json("CreateAlias", "--KeyId", key, "--AliasName", "alias/files")
    data = secrets.token_bytes(2 * MIB)
    kms.text("encrypt-file", "--key", "alias/files", "-", folder / "sealed", stdin=data)
    kms.text("decrypt-file", "-", folder / "back", stdin=(folder / "sealed").read_bytes())
    assert (folder / "back").read_bytes() == data
    assert kms.refused("decrypt-file", folder / "sealed", "-").startswith("InvalidParameter: OUT cannot be standard output")


def test_a_damaged_file_and_one_of_another_home(kms: Command, fresh: Command, key: str, folder: Path) -> None:
    plain = content(folder / "plain", 10_000)
    sealed = folder / "sealed"
    kms.text("encrypt-file", "--key", key, plain, sealed)
    assert kms.refused("decrypt-file", plain, folder / "back") == (
        f"InvalidParameter: {plain} is damaged or is not a file that kms encrypted"
    )
    fresh.run("ListKeys")
    assert fresh.code("decrypt-file", sealed, folder / "back") == "Forbidden.KeyNotFound"
    data = bytearray(sealed.read_bytes())
    data[60] ^= 1  # in the encrypted data key
    sealed.write_bytes(data)
    assert kms.refused("decrypt-file", sealed, folder / "back").endswith("is damaged or is not a file that kms encrypted")
    assert not (folder / "back").exists()


def test_a_file_too_large_for_its_place_leaves_nothing(kms: Command, key: str, folder: Path) -> None:
    plain = content(folder / "plain", 8 * MIB)
    small = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4 * MIB, 4 * MIB))}
    child = kms.start("encrypt-file", "--key", key, plain, folder / "sealed", stderr=subprocess.PIPE, **small)
    assert (child.communicate()[1].decode(), child.returncode) == (
        f"InternalFailure: cannot write {folder / 'sealed'}: File too large; nothing was left behind\n",
        1,
    )
    assert os.listdir(folder) == ["plain"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_leaves_nothing(kms: Command, key: str, folder: Path, how: signal.Signals) -> None:
    """Input comes through a pipe that stays open, so the command is in the middle of its work whenever it is interrupted."""
    sealed = folder / "sealed"
    kms.text("encrypt-file", "--key", key, content(folder / "plain", 4 * MIB), sealed)
    target = folder / "target"
    target.write_bytes(b"what was there")
    before = sorted(os.listdir(folder))
    chance = random.Random(how)
    for command, data in (
        (["encrypt-file", "--key", key, "-", target], secrets.token_bytes(3 * MIB)),
        (["decrypt-file", "-", target], sealed.read_bytes()[: 3 * MIB]),
    ):
        child = kms.start(*command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        assert child.stdin is not None
        child.stdin.write(data)
        child.stdin.flush()
        time.sleep(chance.uniform(0.1, 0.3))
        child.send_signal(how)
        _, told = child.communicate(timeout=60)
        assert child.returncode == (-how if how is signal.SIGKILL else 130)
        assert b"Traceback" not in told
        assert sorted(os.listdir(folder)) == before
        assert target.read_bytes() == b"what was there"


# ru_maxrss would count what the parent had before exec(2); VmHWM starts anew.
MEASURED = """
import re, sys
from kmscore.cli.main import main
status = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
sys.exit(status)
"""


def peak_kilobytes(kms: Command, *arguments: str | Path) -> int:
    command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
    return int(subprocess.run(command, cwd=ROOT, env=kms.environment, capture_output=True, check=True).stdout)


def test_memory_is_constant(kms: Command, key: str, folder: Path) -> None:
    peaks = []
    for size in (4 * MIB, 100 * MIB):
        plain = content(folder / "plain", size)
        sealing = peak_kilobytes(kms, "encrypt-file", "--key", key, plain, folder / "sealed")
        peaks.append((sealing, peak_kilobytes(kms, "decrypt-file", folder / "sealed", folder / "back")))
        assert filecmp.cmp(folder / "back", plain, shallow=False)
    for small, large in zip(*peaks, strict=True):
        assert large - small < 8 * 1024
