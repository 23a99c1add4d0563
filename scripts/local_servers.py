"""PostgreSQL and Redis as child processes on loopback, for the tests and for the local cluster. Standard library only.

Each server lives in a directory of its own, made at the first start. Who runs as root drops to another user for it, since initdb refuses
root; no mode of a parent directory is changed: the server reaches its directory through a descriptor that it inherits.
Only loopback is listened on, with passwords: unix sockets have a length limit that the paths of tests exceed. A port stays the same for the
life of the object, so that clients can reconnect after kill().
"""

from __future__ import annotations

import ctypes
import os
import pwd
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

READY_SECONDS = 30.0  # also for the recovery after a crash
STOP_SECONDS = 15.0
_POLL_SECONDS = 0.01
_PORTS = range(20_000, 30_000)
_PR_SET_PDEATHSIG = 1  # prctl(2)
_libc = ctypes.CDLL(None)
# The kernel sends the signal when the *thread* that made the child ends: so it is one that lives as long as this process.
_spawner = ThreadPoolExecutor(1, "spawner")


class ServerError(Exception):
    """One line for people: what is wrong, and what to do."""


def spawn(
    command: Sequence[str], *, on_our_death: signal.Signals, account: pwd.struct_passwd | None = None, **more: Any
) -> subprocess.Popen[bytes]:
    """A child in a session of its own (Ctrl-C is for us alone), which gets a signal when this process dies however it dies."""

    def prepare() -> None:  # after the change of user, which would clear the request
        _libc.prctl(_PR_SET_PDEATHSIG, int(on_our_death))

    identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "start_new_session": True, "preexec_fn": prepare, **identity, **more}
    return _spawner.submit(lambda: subprocess.Popen(command, **options)).result()


def family(pid: int) -> list[int]:
    """`pid` and its living descendants, as /proc has them now: the processes of PostgreSQL are no process group."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (parent := _parent(int(entry))):
            children.setdefault(parent, []).append(int(entry))
    found = [pid]
    for each in found:
        found.extend(children.get(each, []))
    return found


def kill_family(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for all of it, as a crash of the machine would; returns when none is left. Halted first: no new child escapes."""
    pids = _signal_all(process.pid, signal.SIGSTOP) if process.poll() is None else []
    for pid in pids:
        _kill(pid, signal.SIGKILL)
    process.wait()
    while any(_parent(pid) for pid in pids):
        time.sleep(_POLL_SECONDS)


def _signal_all(pid: int, number: signal.Signals) -> list[int]:
    """Signals the parent before its children, until a look finds no new ones."""
    seen: list[int] = []
    while new := [each for each in family(pid) if each not in seen]:
        for each in new:
            _kill(each, number)
        seen += new
    return seen


def _kill(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _parent(pid: int) -> int:
    """0 for a process that is gone, a zombie too."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if state in "ZX" else int(parent)


def free_port(*preferred: int) -> int:
    """The first of `preferred` that is free on 127.0.0.1, else another one.

    Never from the range of outgoing connections: a client that retries a dead server there sooner or later connects to itself.
    """
    for port in (*preferred, *random.sample(_PORTS, 200)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise ServerError("no free port on 127.0.0.1")


class Server:
    """What both have in common: a directory, a port, a password, a process."""

    name = ""
    stop_signal = signal.SIGTERM  # ends it cleanly; it also gets this one when we die

    def __init__(self, directory: Path, *, port: int = 0) -> None:
        self.directory = Path(directory).absolute()
        self.port = port  # 0: chosen at the first start
        self.process: subprocess.Popen[bytes] | None = None
        self.account = _account() if os.geteuid() == 0 else None
        self._fd = -1
        self._paused = False

    def start(self) -> None:
        """Returns when it takes connections. A server that runs is left alone. Its log goes to server.log in its directory.

        Raises ServerError when it cannot be started.
        """
        if self.running:
            return
        self.prepare()
        with open(self.directory / "server.log", "ab") as log:
            self.launch(stdout=log)
        try:
            self.wait_ready()
        except ServerError:
            self.kill()
            raise

    def prepare(self) -> None:
        """Everything before the launch: the directory, its first contents, the port. May be repeated."""
        if not self.directory.exists():
            self.directory.mkdir(mode=0o700, parents=True)
            if self.account:
                os.chown(self.directory, self.account.pw_uid, self.account.pw_gid)
        if self._fd < 0:
            self._fd = os.open(self.directory, os.O_PATH | os.O_DIRECTORY)
        if not self.password_file.exists():
            _write_private(self.password_file, secrets.token_hex(16))
        self.port = self.port or free_port()
        self._populate()

    def launch(self, *, stdout: int | IO[bytes]) -> subprocess.Popen[bytes]:
        """Starts the process, once prepared, and does not wait for it."""
        self._paused = False
        self.process = self._spawn(self.command(), stdout=stdout, stderr=subprocess.STDOUT)
        return self.process

    def wait_ready(self) -> None:
        """Raises ServerError when it ends instead, or takes READY_SECONDS."""
        deadline = time.monotonic() + READY_SECONDS
        while not (self.running and self.ready()):
            if not self.running or time.monotonic() > deadline:
                raise ServerError(f"{self.name} did not start on 127.0.0.1:{self.port}; its log{self._last_words()}")
            time.sleep(_POLL_SECONDS)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """A clean shutdown that does not wait for clients; after STOP_SECONDS a kill. Harmless when it does not run."""
        if self.process and self.running:
            self.resume()
            self.process.send_signal(self.stop_signal)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
        self._release()

    def kill(self) -> None:
        """A crash: SIGKILL to every process of it at once. start() brings it back on the same port with what it had committed."""
        if self.process:
            kill_family(self.process)
        self._release()

    def pause(self) -> None:
        """It hangs: connections stay, and are taken by the kernel, but nothing answers."""
        if self.process and self.running:
            _signal_all(self.process.pid, signal.SIGSTOP)
            self._paused = True

    def resume(self) -> None:
        if self.process and self._paused:
            for pid in reversed(family(self.process.pid)):
                _kill(pid, signal.SIGCONT)
            self._paused = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def password_file(self) -> Path:
        """Beside the directory, which is the server's user's."""
        return self.directory.with_name(f"{self.directory.name}.password")

    @property
    def password(self) -> str:
        return self.password_file.read_text().strip()

    def command(self) -> list[str]:
        raise NotImplementedError

    def ready(self) -> bool:
        raise NotImplementedError

    def _populate(self) -> None:
        raise NotImplementedError

    @property
    def _own_path(self) -> str:
        """The directory as the server names it: its user may not be allowed to pass the directories above."""
        return f"/proc/self/fd/{self._fd}"

    def _spawn(self, command: Sequence[str], **more: Any) -> subprocess.Popen[bytes]:
        env = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
        return spawn(command, on_our_death=self.stop_signal, account=self.account, cwd="/", pass_fds=[self._fd], env=env, **more)

    def _release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _last_words(self) -> str:
        log = self.directory / "server.log"
        lines = log.read_text(errors="replace").splitlines()[-1:] if log.exists() else []
        return f" ends: {lines[0]}" if lines else " stands above"


class Postgres(Server):
    """A server of the newest PostgreSQL of this machine, or of the version that made the directory.

    Its only account that may log in is `kms`: no superuser, so that nothing comes to need one. `durable=False` is for tests: only a crash
    of the machine loses what was committed, kill() does not. So synchronous_commit stays on: off, a commit is acknowledged while it lies
    in the server's own memory.
    """

    name = "PostgreSQL"
    stop_signal = signal.SIGINT  # "fast": clients are told to go, and a checkpoint is written

    def __init__(self, directory: Path, *, port: int = 0, durable: bool = True, max_connections: int = 300) -> None:
        super().__init__(directory, port=port)
        self._durable = durable
        self._max_connections = max_connections

    def url(self, database: str) -> str:
        """With the password: not for a log."""
        return f"postgresql://kms:{self.password}@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str) -> str:
        """The url of a database, which is made when there is none of this name; the server must run."""
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name):
            raise ValueError(f"not a plain name: {name!r}")
        sql = f"SELECT 'CREATE DATABASE {name}' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '{name}')\\gexec"
        self.psql(sql)
        return self.url(name)

    def psql(self, sql: str, database: str = "postgres") -> str:
        """What psql answers, without headers. For what a test has no driver for."""
        command = [self._program("psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", str(self.port), "-U", "kms", database]
        env = {**os.environ, "PGPASSWORD": self.password}
        done = subprocess.run(command, env=env, input=sql, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ServerError(f"psql: {done.stderr.strip()}")
        return done.stdout.strip()

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": self._max_connections,
            **({} if self._durable else {"fsync": "off", "full_page_writes": "off"}),
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [self._program("postgres"), "-D", self._own_path, "-p", str(self.port), *options]

    def ready(self) -> bool:
        """As pg_ctl tells it: the eighth line of the lock file that this process wrote."""
        with suppress(FileNotFoundError):
            lines = (self.directory / "postmaster.pid").read_text().split("\n")
            return self.process is not None and lines[0] == str(self.process.pid) and len(lines) > 7 and lines[7].strip() == "ready"
        return False

    def _populate(self) -> None:
        done = self.directory / "kms.ready"  # last: what a killed first start left is made anew
        if done.exists():
            return
        for entry in self.directory.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        sync = [] if self._durable else ["--no-sync"]
        form = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"]
        self._once([self._program("initdb"), "-D", self._own_path, *form, *sync, "--no-instructions"])
        (self.directory / "pg_hba.conf").write_text("host all kms 127.0.0.1/32 scram-sha-256\n")
        role = f"CREATE ROLE kms LOGIN CREATEDB PASSWORD '{self.password}';\n"
        self._once([self._program("postgres"), "--single", "-D", self._own_path, "postgres"], role)
        done.touch()

    def _once(self, command: list[str], stdin: str = "") -> None:
        process = self._spawn(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said, _ = process.communicate(stdin.encode())
        if process.returncode or b"ERROR:" in said:  # a single-user backend ends with 0 after an error
            raise ServerError(f"{Path(command[0]).name} failed: {said.decode(errors='replace').strip().splitlines()[-1]}")

    def _program(self, name: str) -> str:
        version_file = self.directory / "PG_VERSION"
        version = version_file.read_text().strip() if version_file.exists() else ""
        for directory in _postgres_programs():
            said = subprocess.run([directory / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
            if not version or re.findall(r"\d+", said)[:1] == [version]:
                return str(directory / name)
        if version:
            raise ServerError(f"{self.directory} was made by PostgreSQL {version}; install it: apt-get install postgresql-{version}")
        raise ServerError("PostgreSQL is missing; install it: apt-get install postgresql")


class Redis(Server):
    """A Redis that keeps nothing; with `appendonly`, what it was told a second ago survives a crash."""

    name = "Redis"

    def __init__(self, directory: Path, *, port: int = 0, appendonly: bool = False) -> None:
        super().__init__(directory, port=port)
        self._appendonly = appendonly

    @property
    def url(self) -> str:
        """With the password: not for a log."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        program = shutil.which("redis-server")
        if program is None:
            raise ServerError("Redis is missing; install it: apt-get install redis-server")
        return [program, f"{self._own_path}/redis.conf"]

    def ready(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as link:
            link.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
            return link.makefile("rb").readlines(8)[-1:] == [b"+PONG\r\n"]  # not -LOADING
        return False

    def _populate(self) -> None:
        settings = {
            "bind": "127.0.0.1",
            "port": self.port,
            "dir": self._own_path,
            "requirepass": self.password,
            "save": '""',
            "appendonly": "yes" if self._appendonly else "no",
            "daemonize": "no",
        }
        _write_private(self.directory / "redis.conf", "".join(f"{name} {value}\n" for name, value in settings.items()), self.account)


def _account() -> pwd.struct_passwd:
    """Whom root becomes for a server."""
    with suppress(KeyError):
        return pwd.getpwnam("postgres")
    return pwd.getpwnam("nobody")


def _postgres_programs() -> Iterator[Path]:
    """Newest first; then the path."""
    found = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit() and (path / "postgres").exists()]
    yield from sorted(found, key=lambda path: int(path.parent.name), reverse=True)
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent


def _write_private(path: Path, text: str, owner: pwd.struct_passwd | None = None) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "w") as file:
        file.write(text)
        if owner:
            os.fchown(fd, owner.pw_uid, owner.pw_gid)
    temporary.rename(path)
