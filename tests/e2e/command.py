"""Runs the `kms` command as a user does: in a process of its own, on a home of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
KMS = [sys.executable, "-m", "kmscore.cli"]


@dataclass
class Command:
    home: Path
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "KMS_HOME": str(self.home), **self.settings}

    def run(self, *arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*KMS, *map(str, arguments)], cwd=ROOT, env=self.environment, input=stdin, capture_output=True, timeout=120, check=False
        )

    def start(self, *arguments: str | Path, **more: Any) -> subprocess.Popen[bytes]:
        """A running command. It heeds Ctrl-C also where the test run itself does not, as behind a shell's `&`."""
        more.setdefault("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
        return subprocess.Popen([*KMS, *map(str, arguments)], cwd=ROOT, env=self.environment, **more)

    def text(self, *arguments: str | Path, stdin: bytes = b"") -> str:
        """Standard output of a command that must succeed and say nothing else."""
        done = self.run(*arguments, stdin=stdin)
        assert (done.returncode, done.stderr) == (0, b""), done
        return done.stdout.decode()

    def json(self, *arguments: str | Path) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.text(*arguments))
        assert len(answer.pop("RequestId")) == 36
        return answer

    def refused(self, *arguments: str | Path, stdin: bytes = b"") -> str:
        """The one line on standard error of a command that must be refused: `Code: message`."""
        done = self.run(*arguments, stdin=stdin)
        assert (done.returncode, done.stdout) == (1, b""), done
        (line,) = done.stderr.decode().splitlines()
        return line

    def code(self, *arguments: str | Path) -> str:
        return self.refused(*arguments).partition(": ")[0]

    def set_clock(self, instant: datetime) -> None:
        path = self.home.with_suffix(".clock")
        temporary = path.with_suffix(".new")
        temporary.write_text(instant.isoformat())
        temporary.rename(path)
        self.settings["KMS_CLOCK_FILE"] = str(path)


def slow(*values: Any) -> Any:
    """Parameters of a case that make test-full runs: each call of a command takes a third of a second."""
    return pytest.param(*values, marks=pytest.mark.slow)
