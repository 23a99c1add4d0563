"""The units of docs/systemd: what they start is there, and every variable they name is one that is read."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from kmscore import config
from kmscore.cli.main import main  # noqa: F401 - the program of `kms`
from kmscore.cli.serve import serve

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted((ROOT / "docs" / "systemd").glob("*.service"))
BIN = "/opt/kmscore/.venv/bin/"
HARDENING = {
    "NoNewPrivileges": "true",
    "ProtectSystem": "strict",
    "ReadWritePaths": "/var/lib/kms",
    "PrivateTmp": "true",
    "MemorySwapMax": "0",
    "LimitCORE": "0",
    "LimitMEMLOCK": "infinity",
    "LimitNOFILE": "16384",
    "Restart": "always",
    "KillSignal": "SIGTERM",
    "User": "kms",
    "EnvironmentFile": "/etc/kmscore/kms.env",
}


def parsed(path: Path) -> dict[str, dict[str, str]]:
    """Section -> key -> value; none of ours repeats a key."""
    sections: dict[str, dict[str, str]] = {}
    for line in path.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        if match := re.fullmatch(r"\[(\w+)\]", line):
            section = sections.setdefault(match[1], {})
            continue
        name, equals, value = line.partition("=")
        assert equals, line
        assert name not in section, line
        section[name] = value
    return sections


def test_the_units_are_there() -> None:
    assert [path.name for path in UNITS] == ["kms-api@.service", "kms-beat.service", "kms-worker.service"]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_is_hardened_and_comes_back(path: Path) -> None:
    unit = parsed(path)
    assert list(unit) == ["Unit", "Service", "Install"]
    assert unit["Service"].items() >= HARDENING.items()
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert int(unit["Service"]["TimeoutStopSec"]) > 10  # requests drain for so long


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_what_a_unit_starts_is_a_command_of_ours(path: Path) -> None:
    program, *arguments = shlex.split(parsed(path)["Service"]["ExecStart"])
    assert program.startswith(BIN)
    if program == BIN + "kms":
        assert arguments[0] == "serve"
        with click.Context(serve) as context:
            serve.make_parser(context).parse_args([argument.replace("%i", "8480") for argument in arguments[1:]])
    else:
        assert program == BIN + "python"
        assert arguments[:2] == ["-m", "scheduler"]
        assert arguments[2] in ("worker", "beat")
        assert (ROOT / "scheduler").exists() == (ROOT / "scheduler" / "__main__.py").exists()


def test_every_variable_is_a_setting() -> None:
    texts = [path.read_text() for path in (*UNITS, ROOT / "docs" / "systemd" / "kms.env")]
    named = set(re.findall(r"\bKMS_[A-Z0-9_]+", "\n".join(texts)))
    assert named >= {"KMS_HOME", "KMS_DATABASE_URL", "KMS_REDIS_URL"}
    assert named <= {"KMS_HOME", *(f"KMS_{name.upper()}" for name in config._ENVIRONMENT)}


def test_systemd_has_nothing_to_say(tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not here")
    copies = []
    for path in UNITS:  # with a program that exists here, and as an instance
        copy = tmp_path / path.name.replace("@.", "@8480.")
        copy.write_text(re.sub(rf"{BIN}\w+", "/bin/true", path.read_text()))
        copies.append(str(copy))
    done = subprocess.run([tool, "verify", "--man=no", *copies], capture_output=True, text=True, timeout=60, check=False)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "kms" in line]
    assert (done.returncode, ours) == (0, [])
