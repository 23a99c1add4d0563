"""`make cluster` for real: two nodes, two workers and beat on PostgreSQL and Redis; some die, all end."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import ROOT, Command
from local_servers import family, free_port
from test_serve import get

from kmscore.config import Settings, load_settings
from kmscore.errors import SetupError

pytestmark = pytest.mark.slow

CHILDREN = ("postgres", "redis", "node1", "node2", "worker1", "worker2", "beat")


def _missing() -> str:
    if importlib.util.find_spec("scheduler") is None:
        return "there is no package scheduler yet"
    if shutil.which("redis-server") is None:
        return "redis-server is not installed"
    try:
        settings: Settings = load_settings("unused", {"KMS_DATABASE_URL": "postgresql://kms@127.0.0.1/kms"})
    except SetupError as error:
        return f"there is no PostgreSQL support yet: {error.message}"
    assert settings.database_url
    return ""


class Running:
    """The script, and what it says."""

    def __init__(self, home: Path, port: int) -> None:
        self.home = home
        self.urls = [f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"]
        env = {**os.environ, "KMS_HOME": str(home), "KMS_LISTEN": f"127.0.0.1:{port}"}
        command = [sys.executable, str(ROOT / "scripts" / "cluster.py")]
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=home.parent)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.decode().rstrip())

    def until(self, holds: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, "\n".join(self.lines)
            assert self.process.poll() is None, "\n".join(self.lines)
            time.sleep(0.1)

    def said(self, pattern: str) -> list[str]:
        return [match[1] for line in list(self.lines) if (match := re.fullmatch(rf"cluster  \| {pattern}", line))]

    def pid(self, name: str) -> int:
        """Of the newest process of this name."""
        return int(self.said(rf"{name} is process (\d+)")[-1])

    def client(self, node: int) -> Command:
        return Command(self.home, {"KMS_ENDPOINT": self.urls[node]})

    def stop(self) -> float:
        """Seconds that it took to end, with 0 and without a survivor."""
        everyone = family(self.process.pid)
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(40) == 0, "\n".join(self.lines)
        taken = time.monotonic() - begun
        assert [pid for pid in everyone if Path(f"/proc/{pid}").exists()] == []
        self.close()
        return taken

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Running]]:
    if reason := _missing():
        pytest.skip(reason)
    made: list[Running] = []
    port = free_port()

    def start() -> Running:
        made.append(Running(tmp_path / "home", port))
        made[-1].until(lambda: bool(made[-1].said("(Ctrl-C stops it)")), 120)
        return made[-1]

    yield start
    for running in made:
        running.close()


def test_a_cluster_lives_through_the_death_of_its_parts(start: Callable[[], Running]) -> None:
    cluster = start()
    key = cluster.client(0).json("CreateKey", "--ProtectionLevel", "HSM")["KeyMetadata"]["KeyId"]
    blob = cluster.client(1).json("Encrypt", "--KeyId", key, "--Plaintext", "aGVsbG8=")["CiphertextBlob"]
    before = {name: cluster.pid(name) for name in CHILDREN}
    for name in ("worker1", "node2", "redis"):
        os.kill(before[name], signal.SIGKILL)
    cluster.until(lambda: all(cluster.pid(name) != before[name] for name in ("worker1", "node2", "redis")))
    assert cluster.said(r"(node2) ended \(SIGKILL\); again in 0\.5 s") == ["node2"]
    cluster.until(lambda: _healthy(cluster.urls[1]))
    assert cluster.client(1).json("Decrypt", "--CiphertextBlob", blob)["Plaintext"] == "aGVsbG8="
    assert {name for name in CHILDREN if cluster.pid(name) != before[name]} == {"worker1", "node2", "redis"}
    assert not any("password" in line.lower() for line in cluster.lines)
    assert cluster.stop() < 30

    again = start()  # finds everything as it was
    assert again.client(1).json("Decrypt", "--CiphertextBlob", blob)["Plaintext"] == "aGVsbG8="
    os.kill(again.process.pid, signal.SIGKILL)  # the supervisor itself: nobody outlives it
    again.process.wait()
    deadline = time.monotonic() + 30
    while left := [name for name in CHILDREN if Path(f"/proc/{again.pid(name)}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def _healthy(url: str) -> bool:
    try:
        return get(f"{url}/healthz")[0] == 200
    except OSError:
        return False


def test_what_is_taken_or_missing_is_said_in_one_line(start: Callable[[], Running], tmp_path: Path) -> None:
    cluster = start()
    script = [sys.executable, str(ROOT / "scripts" / "cluster.py")]
    port = cluster.urls[0].rpartition(":")[2]
    home = str(cluster.home)
    for env, wanted in [
        ({"KMS_HOME": home}, f"cluster: a cluster runs on {home} already; stop it, or set KMS_HOME to another home\n"),
        (
            {"KMS_HOME": str(tmp_path / "other"), "KMS_LISTEN": f"127.0.0.1:{port}"},
            f"cluster: cannot listen on 127.0.0.1:{port}: Address already in use; stop what is there, or set KMS_LISTEN to another\n",
        ),
        ({"KMS_HOME": str(tmp_path / "other"), "PATH": "/nowhere"}, "cluster: redis-server is missing: apt-get install redis-server\n"),
        (
            {"KMS_HOME": str(tmp_path / "other"), "KMS_LISTEN": "8480"},
            "cluster: KMS_LISTEN must be HOST:PORT, with a port below 65535 for the second node, not '8480'\n",
        ),
    ]:
        done = subprocess.run(script, env={**os.environ, **env}, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", wanted)
    cluster.stop()
