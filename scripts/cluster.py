"""The deployed service on one machine: PostgreSQL, Redis, two API nodes, two Celery workers and beat on loopback, under one supervisor.

`make cluster` runs it. Everything lives in $KMS_HOME (default ./var), servers' data in $KMS_HOME/cluster. KMS_LISTEN names the first node;
the second takes the next port. Redis keeps nothing: due work lies in the store. Ends with 0 after a clean stop.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from local_servers import Postgres, Redis, Server, ServerError, free_port, kill_family, spawn  # noqa: E402

from kmscore.config import Settings, home_directory, load_settings  # noqa: E402
from kmscore.errors import KmsError  # noqa: E402

# Outside of the range of outgoing connections, and not where Debian's own services are.
POSTGRES_PORT, REDIS_PORT = 15432, 16379
READY_SECONDS = 60.0  # of one child; the first node makes the home
# By stage, from the last to the first: a node drains for up to 10 seconds, a worker ends its task. Less than 30 together.
STOP_SECONDS = (12.0, 11.0, 2.0, 4.0)
RESTART_SECONDS, MOST_RESTART_SECONDS = 0.5, 30.0  # the second after a child that dies again and again
STEADY_SECONDS = 10.0  # who ran so long has not died "again"
POLL_SECONDS = 0.1
COLOURS = (36, 32, 33, 35, 34, 31)


class ClusterError(Exception):
    """One line for people: what is wrong, and what to do."""


@dataclass
class Child:
    """A row of the table: what runs, in which stage it starts, and its process."""

    name: str
    stage: int
    what: Server | list[str]
    """A server, or a command line."""
    ready: Callable[[], bool] = lambda: True
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    not_before: float = 0.0
    wait: float = RESTART_SECONDS
    pump: threading.Thread | None = field(default=None, repr=False)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def stop_signal(self) -> signal.Signals:
        return self.what.stop_signal if isinstance(self.what, Server) else signal.SIGTERM


class Cluster:
    """Starts, watches and stops the children. All of it in the main thread, but for one thread for each one's output."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.home = settings.home
        self.place = settings.home / "cluster"
        self.nodes = _two_addresses(settings.listen)
        self.asked = 0  # how often we were asked to stop
        self.failed = False
        self._say_lock = threading.Lock()
        self._names: list[str] = []
        self._postgres = Postgres(self.place / "postgres")
        self._redis = Redis(self.place / "redis")
        self._env: dict[str, str] = {}
        self.children: list[Child] = []

    def table(self) -> list[Child]:
        """Who runs, in the order of the start. All commands have the environment of `_environment`, and this checkout before their eyes."""
        kms = [sys.executable, "-m", "kmscore.cli"]
        scheduler = [sys.executable, "-m", "scheduler"]
        one, two = self.nodes
        return [
            Child("postgres", 0, self._postgres, self._postgres.ready),
            Child("redis", 1, self._redis, self._redis.ready),
            Child("node1", 2, [*kms, "serve", "--listen", one], lambda: self._healthy(one)),
            Child("node2", 3, [*kms, "serve", "--listen", two], lambda: self._healthy(two)),
            Child("worker1", 3, [*scheduler, "worker", "--hostname=worker1@%h", "--concurrency=1"]),
            Child("worker2", 3, [*scheduler, "worker", "--hostname=worker2@%h", "--concurrency=1"]),
            Child("beat", 3, [*scheduler, "beat"]),
        ]

    def _environment(self) -> dict[str, str]:
        return {
            "KMS_HOME": str(self.home),
            "KMS_DATABASE_URL": self._postgres.url("kms"),
            "KMS_REDIS_URL": self._redis.url,
        }

    # --- start

    def run(self) -> int:
        """Until it is asked to stop. Returns the exit status."""
        self._check_machine()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        self._postgres.port, self._redis.port = free_port(POSTGRES_PORT), free_port(REDIS_PORT)
        for server in (self._postgres, self._redis):
            server.prepare()
        self.children = self.table()
        self._names = [child.name for child in self.children]
        try:
            if self._start():
                self._announce()
                self._watch()
        except (ClusterError, ServerError) as error:
            self.failed = True
            self.say(f"{error}; stopping")
        self._stop()
        return 1 if self.failed else 0

    def _check_machine(self) -> None:
        """Raises ClusterError for what would make a child fail."""
        if shutil.which("redis-server") is None:
            raise ClusterError("redis-server is missing: apt-get install redis-server")
        for module in ("psycopg", "celery", "scheduler"):
            if importlib.util.find_spec(module) is None:
                raise ClusterError(f"the Python package {module} is missing: scripts/setup.sh cluster installs what it can")
        for address in self.nodes:
            host, port = _host_port(address)
            try:
                socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
            except OSError as error:
                reason = str(error.strerror).partition(" (while")[0]  # create_server repeats the address
                raise ClusterError(f"cannot listen on {address}: {reason}; stop what is there, or set KMS_LISTEN to another") from None

    def _start(self) -> bool:
        """False when it was asked to stop meanwhile."""
        for stage in sorted({child.stage for child in self.children}):
            now = [child for child in self.children if child.stage == stage]
            for child in now:
                self._launch(child)
            deadline = time.monotonic() + READY_SECONDS
            for child in now:
                while not child.ready():
                    if self.asked:
                        return False
                    if not child.running or time.monotonic() > deadline:
                        raise ClusterError(f"{child.name} did not get ready; what it said stands above")
                    time.sleep(POLL_SECONDS)
            if stage == 0:
                self._postgres.create_database("kms")
                self._env = self._environment()
                self._write_env()
        return not self.asked

    def _launch(self, child: Child) -> None:
        if isinstance(child.what, Server):
            child.process = child.what.launch(stdout=subprocess.PIPE)
        else:
            env = {**os.environ, **self._env, "PYTHONUNBUFFERED": "1"}
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            child.process = spawn(child.what, on_our_death=child.stop_signal, account=None, cwd=ROOT, env=env, **pipes)
        child.started_at = time.monotonic()
        assert child.process.stdout is not None
        child.pump = threading.Thread(target=self._pump, args=(child.name, child.process.stdout), daemon=True)
        child.pump.start()
        self.say(f"{child.name} is process {child.process.pid}")

    # --- run

    def _watch(self) -> None:
        while not self.asked:
            for child in self.children:
                if not child.running:
                    self._bring_back(child)
            time.sleep(POLL_SECONDS)

    def _bring_back(self, child: Child) -> None:
        now = time.monotonic()
        if child.process is not None:
            if now - child.started_at > STEADY_SECONDS:
                child.wait = RESTART_SECONDS
            status = child.process.returncode
            with suppress(ProcessLookupError):
                os.killpg(child.process.pid, signal.SIGKILL)  # its own children, which may hold its port
            self.say(f"{child.name} ended ({signal.Signals(-status).name if status < 0 else status}); again in {child.wait:g} s")
            child.process, child.not_before = None, now + child.wait
            child.wait = min(2 * child.wait, MOST_RESTART_SECONDS)
        elif now >= child.not_before:
            self._launch(child)

    def _healthy(self, address: str) -> bool:
        with suppress(OSError):  # HTTPError too
            context = ssl._create_unverified_context() if self.settings.tls_certificate else None  # noqa: S323 - it asks itself
            with urllib.request.urlopen(f"{self._url(address)}/healthz", timeout=2, context=context) as answer:  # noqa: S310
                return bool(answer.status == 200)
        return False

    def _url(self, address: str) -> str:
        return f"{'https' if self.settings.tls_certificate else 'http'}://{address}"

    # --- stop

    def _on_signal(self, number: int, _: object) -> None:
        self.asked += 1

    def _stop(self) -> None:
        """From the last stage to the first; what does not end in time, or is told so by a second signal, is killed."""
        self.asked = max(self.asked, 1)
        self.say("stopping; once more kills" if sys.stdin.isatty() else "stopping")
        for stage, seconds in zip((3, 2, 1, 0), STOP_SECONDS, strict=True):
            now = [child for child in self.children if child.stage == stage and child.running]
            for child in now:
                assert child.process is not None
                child.process.send_signal(child.stop_signal)
            deadline = time.monotonic() + seconds
            while any(child.running for child in now) and self.asked < 2 and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS / 2)
            for child in now:
                if child.running and child.process is not None:
                    self.say(f"{child.name} is killed")
                    kill_family(child.process)
                    self.failed = True
        for child in self.children:
            if child.pump:
                child.pump.join(1)  # its last words
        self.say("stopped")

    # --- words

    def _write_env(self) -> None:
        """For a shell, since the addresses hold passwords that no screen and no log needs to show."""
        path = self.place / "env"
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.writelines(f"export {name}={shlex.quote(value)}\n" for name, value in self._env.items())

    def _announce(self) -> None:
        kms = _shown(Path(sys.executable).with_name("kms"))
        one, two = (self._url(address) for address in self.nodes)
        credentials = "from the environment or kms.toml" if self.settings.root_access_key_id else _shown(self.settings.credentials_file)
        lines = [
            f"ready: {one} and {two}",
            f"credentials: {credentials}",
            "for kms commands beside it, KMS_HOME, KMS_DATABASE_URL and KMS_REDIS_URL:",
            f"  . {_shown(self.place / 'env')}",
            "try, after that:",
            f"  {kms} --endpoint {one} CreateKey --ProtectionLevel {'HSM' if self.settings.has_token else 'SOFTWARE'}",
            f"  {kms} --endpoint {two} ListKeys",
            "Ctrl-C stops it",
        ]
        if self.settings.database.exists():
            lines.append(f"the keys of {_shown(self.settings.database)} are not among those of this cluster, unless kms migrate moved them")
        for line in lines:
            self.say(line)

    def say(self, text: str) -> None:
        self._print("cluster", text.encode(), "1")

    def _pump(self, name: str, stream: IO[bytes]) -> None:
        colour = str(COLOURS[self._names.index(name) % len(COLOURS)])
        with stream:
            for line in stream:
                self._print(name, line.rstrip(b"\r\n"), colour)

    def _print(self, name: str, line: bytes, colour: str) -> None:
        prefix = f"{name:8} | "
        if sys.stdout.isatty():
            prefix = f"\x1b[{colour}m{prefix}\x1b[0m"
        with self._say_lock, suppress(BrokenPipeError):  # nobody listens: no reason to stop serving
            sys.stdout.buffer.write(prefix.encode() + line + b"\n")
            sys.stdout.buffer.flush()


def _two_addresses(listen: str) -> tuple[str, str]:
    host, port = _host_port(listen)
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{port}", f"{shown}:{port + 1}"


def _host_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65535:
        raise ClusterError(f"KMS_LISTEN must be HOST:PORT, with a port below 65535 for the second node, not {address!r}")
    return host.strip("[]"), int(port)


def _shown(path: Path) -> str:
    """As a shell where this was started would name it."""
    relative = os.path.relpath(path)
    return shlex.quote(str(path) if relative.startswith("..") else relative)


@contextmanager
def _only_one(place: Path) -> Iterator[None]:
    """Holds the lock of the cluster of a home. Raises ClusterError when another has it."""
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    place.mkdir(exist_ok=True, mode=0o700)
    with open(place / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClusterError(f"a cluster runs on {place.parent} already; stop it, or set KMS_HOME to another home") from None
        yield


def main() -> int:
    """Reads the environment; errors are one line on standard error."""
    ours = {name: value for name, value in os.environ.items() if name not in ("KMS_DATABASE_URL", "KMS_REDIS_URL")}
    try:
        settings = load_settings(home_directory(environ=ours), ours)
        cluster = Cluster(settings)
        with _only_one(cluster.place):
            return cluster.run()
    except (ClusterError, ServerError) as error:
        print(f"cluster: {error}", file=sys.stderr)
    except KmsError as error:
        print(f"cluster: {error.message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
