"""The servers and the proxy that other tests and the local cluster stand on, with a real PostgreSQL and a real Redis."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

psycopg = pytest.importorskip("psycopg")
from local_servers import Postgres, Redis, Server, ServerError, family, free_port  # noqa: E402
from tcp_proxy import TcpProxy  # noqa: E402

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    # Deeper than a unix socket could lie, below a directory that the server's user may not pass.
    with Postgres(tmp_path_factory.mktemp("deep") / ("d" * 120) / "postgres", durable=False) as server:
        yield server


@pytest.fixture(scope="module")
def url(postgres: Postgres) -> str:
    url = postgres.create_database("tests")
    with connect(url) as link:
        link.execute("CREATE TABLE notes (note text)")
    return url


@pytest.fixture
def proxy(postgres: Postgres) -> Iterator[TcpProxy]:
    with TcpProxy("127.0.0.1", postgres.port) as proxy:
        yield proxy


def connect(url: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(url, autocommit=True, connect_timeout=5)


def through(url: str, server: Server, proxy: TcpProxy) -> str:
    return url.replace(f":{server.port}/", f":{proxy.port}/")


def notes(url: str, note: str) -> int:
    with connect(url) as link:
        (count,) = link.execute("SELECT count(*) FROM notes WHERE note = %s", (note,)).fetchone() or (0,)
    return int(str(count))


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 10
    while any(
        Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z" for pid in pids
    ):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_a_database_is_made_once_and_its_user_is_no_superuser(postgres: Postgres, url: str) -> None:
    postgres.start()  # it runs: nothing happens
    assert postgres.create_database("tests") == url
    with connect(url) as link:
        assert link.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone() == (False,)
        assert link.execute("SHOW max_connections").fetchone() == ("300",)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        connect(url.replace(postgres.password, "wrong"))
    with pytest.raises(ValueError, match="not a plain name"):
        postgres.create_database('x"; DROP DATABASE tests')


def test_no_directory_is_opened_to_the_user_of_the_server(postgres: Postgres) -> None:
    """pytest's own directories above have mode 0700, and keep it; what they hold is ours but for the server's directory."""
    assert [stat.S_IMODE(path.stat().st_mode) for path in postgres.directory.parents[1:3]] == [0o700, 0o700]
    assert stat.S_IMODE(postgres.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(postgres.password_file.stat().st_mode) == 0o600
    assert postgres.password_file.stat().st_uid == os.geteuid()
    assert postgres.directory.stat().st_uid != 0


def test_after_a_crash_it_comes_back_on_its_port_with_what_was_committed(postgres: Postgres, url: str) -> None:
    port, link = postgres.port, connect(url)
    link.execute("INSERT INTO notes VALUES ('before the crash')")
    assert postgres.process is not None
    pids = family(postgres.process.pid)
    assert len(pids) > 3
    postgres.kill()
    assert gone(pids)
    with pytest.raises(psycopg.OperationalError):
        link.execute("SELECT 1")
    link.close()
    with pytest.raises(psycopg.OperationalError):
        connect(url)
    postgres.start()
    assert postgres.port == port
    assert notes(url, "before the crash") == 1


def test_a_paused_server_says_nothing_until_it_is_resumed(postgres: Postgres, url: str) -> None:
    with connect(url) as link:
        postgres.pause()
        answers: list[object] = []
        asking = threading.Thread(target=lambda: answers.append(link.execute("SELECT 7").fetchone()))
        asking.start()
        asking.join(0.3)
        assert not answers
        postgres.resume()
        asking.join(10)
        assert answers == [(7,)]


@pytest.mark.parametrize("paused", [False, True])
def test_stop_is_clean_and_leaves_nothing(tmp_path: Path, paused: bool) -> None:
    with Redis(tmp_path / "redis") as server:
        assert server.process is not None
        process = server.process
        if paused:
            server.pause()
    assert process.returncode == 0
    server.stop()  # harmless


def test_redis_keeps_what_it_was_told_where_it_should(tmp_path: Path) -> None:
    redis = pytest.importorskip("redis")
    with Redis(tmp_path / "kept", appendonly=True) as server:
        with redis.Redis.from_url(server.url) as client:
            client.set("a", "b")
        server.kill()
        server.start()
        with redis.Redis.from_url(server.url) as client:
            assert client.get("a") == b"b"
    with Redis(tmp_path / "other") as server, socket.create_connection(("127.0.0.1", server.port), 5) as stranger:
        stranger.sendall(b"GET a\r\n")
        assert stranger.recv(100).startswith(b"-NOAUTH")


def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert free_port(port) != port
        with pytest.raises(ServerError, match=rf"Redis did not start on 127\.0\.0\.1:{port}; its log ends: .*"):
            Redis(tmp_path / "redis", port=port).start()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "PG_VERSION").write_text("9\n")
    (tmp_path / "old" / "kms.ready").touch()
    with pytest.raises(ServerError, match="was made by PostgreSQL 9; install it: apt-get install postgresql-9"):
        Postgres(tmp_path / "old").start()


def test_nothing_outlives_a_killed_process(tmp_path: Path) -> None:
    """Started from a thread that ends, as a test may do: the server outlives that, and only that."""
    program = (
        "import sys, threading, time; from pathlib import Path; from local_servers import Redis\n"
        "server = Redis(Path(sys.argv[1])); thread = threading.Thread(target=server.start); thread.start(); thread.join(); time.sleep(0.2)\n"
        "assert server.running; print(server.process.pid, flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "redis")], cwd=SCRIPTS, stdout=subprocess.PIPE)
    assert child.stdout is not None
    pid = int(child.stdout.readline())
    child.kill()
    child.communicate()
    assert gone([pid])


# --- the proxy


def test_it_counts_the_messages_of_a_statement(proxy: TcpProxy, postgres: Postgres, url: str) -> None:
    with connect(through(url, postgres, proxy)) as link:
        kinds = [message.type for message in proxy.log]
        assert kinds[:3] == ["ssl", "byte", "startup"]
        assert kinds[-1] == "Z"  # ReadyForQuery
        proxy.arm()
        link.execute("SELECT 1")
        assert [(sender, kind) for sender, kind, _ in proxy.log] == [("client", "Q"), *(("server", kind) for kind in "TDCZ")]
        link.execute("SELECT %s::int", (2,))
        assert [kind for sender, kind, _ in proxy.log if sender == "client"] == list("QPBDES")
    assert not proxy.fired


@pytest.mark.parametrize("sender", ["client", "server"])
@pytest.mark.parametrize("forward", [True, False])
def test_a_transaction_cut_at_every_message(proxy: TcpProxy, postgres: Postgres, url: str, sender: str, forward: bool) -> None:
    """Committed exactly where the message of COMMIT reached the server; the last server messages come when it is long done."""
    outcomes = []
    for n in range(1, 50):
        note = f"{sender} {forward} {n}"
        link = connect(through(url, postgres, proxy))
        proxy.cut_at(sender, n, forward=forward)  # type: ignore[arg-type]
        try:
            link.execute("BEGIN")
            link.execute(f"INSERT INTO notes VALUES ('{note}')")
            link.execute("COMMIT")
            raised = False
        except psycopg.OperationalError:
            raised = True
        fired, messages = proxy.fired, proxy.count("client")
        link.close()
        if not fired:
            break
        assert len([each for each in proxy.log if each.sender == sender]) == n
        wanted = messages == 3 and (sender == "server" or forward)
        deadline = time.monotonic() + 5
        while notes(url, note) != wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        outcomes.append((raised, notes(url, note) == 1))
    committed = [each for _, each in outcomes]
    if sender == "client":
        assert committed == [False, False, forward]
        assert all(raised for raised, _ in outcomes)
    else:  # C Z of each of the three statements; the very last, forwarded, is a success
        assert committed == [False] * 4 + [True] * 2
        assert [raised for raised, _ in outcomes] == [True] * 5 + [not forward]


def test_stall_delay_and_refusal(proxy: TcpProxy, postgres: Postgres, url: str) -> None:
    address = through(url, postgres, proxy)
    with connect(address) as link:
        proxy.stall()
        answers: list[object] = []
        asking = threading.Thread(target=lambda: answers.append(link.execute("SELECT 7").fetchone()))
        asking.start()
        asking.join(0.2)
        assert not answers
        with pytest.raises(psycopg.OperationalError, match="timeout"):  # taken, and never answered
            psycopg.connect(address, connect_timeout=2)
        proxy.resume()
        asking.join(10)
        assert answers == [(7,)]
        proxy.refuse()
        assert link.execute("SELECT 8").fetchone() == (8,)
        with pytest.raises(psycopg.OperationalError):
            connect(address)
        proxy.accept()
        proxy.delay(0.05)
        begun = time.monotonic()
        link.execute("SELECT 9")
        assert time.monotonic() - begun > 0.1
        proxy.delay(0)
        proxy.cut_now(stay_down=True)
        with pytest.raises(psycopg.OperationalError):
            link.execute("SELECT 10")
    with pytest.raises(psycopg.OperationalError):
        connect(address)
    proxy.accept()
    connect(address).close()


def test_a_cut_in_the_midst_of_a_message(proxy: TcpProxy, postgres: Postgres, url: str) -> None:
    with connect(through(url, postgres, proxy)) as link:
        proxy.cut_after_bytes("client", 9)
        with pytest.raises(psycopg.OperationalError):
            link.execute("INSERT INTO notes VALUES ('half')")
    assert proxy.fired
    assert notes(url, "half") == 0


def test_bytes_as_they_come_for_other_protocols(tmp_path: Path) -> None:
    with (
        Redis(tmp_path / "redis") as server,
        TcpProxy("127.0.0.1", server.port, framed=False) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), 5) as link,
    ):
        link.sendall(f"AUTH {server.password}\r\n".encode())
        assert link.recv(100) == b"+OK\r\n"
        server.kill()
        assert link.recv(100) == b""
    assert {message.type for message in proxy.log} == {"bytes"}
