"""`kms serve` with several processes on one port, and over TLS."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest
from command import Command
from test_serve import service
from wire import Wire

from kmscore.api.localca import local_certificate
from kmscore.api.server import HANDSHAKE_SECONDS, _metrics_directory
from kmscore.process import start_time


def children(pid: int) -> set[int]:
    """Worker processes; the others are helpers of Python's multiprocessing."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended while we looked
            for child in (task / "children").read_text().split():
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.add(int(child))
    return found


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def asked(url: str, home: Path, number: int) -> None:
    """As many calls, each on a connection of its own, so that each worker gets some."""
    for _ in range(number):
        with closing(Wire.of(url, home)) as wire:
            wire.call("ListKeys")


def test_workers_share_a_port_and_one_that_dies_is_replaced(fresh: Command) -> None:
    with service(fresh, "--workers", "2") as (parent, url):
        until(lambda: len(children(parent.pid)) == 2)
        with closing(Wire.of(url, fresh.home)) as wire:
            key = wire.call("CreateKey", ProtectionLevel="HSM")["KeyMetadata"]["KeyId"]
            blob = wire.call("Encrypt", KeyId=key, Plaintext="x")["CiphertextBlob"]
        asked(url, fresh.home, 20)
        # A disable is global when it is acknowledged, whichever process is asked afterwards.
        with closing(Wire.of(url, fresh.home)) as wire:
            wire.call("DisableKey", KeyId=key)
        for _ in range(10):
            with closing(Wire.of(url, fresh.home)) as wire:
                assert wire.code("Decrypt", CiphertextBlob=blob) == "Rejected.Disabled"
        # Any of them answers for all.
        text = urllib.request.urlopen(f"{url}/metrics").read().decode()
        counts = re.findall(r'kms_requests_total\{code="OK",operation="ListKeys"\} (\S+)', text)
        assert [float(count) for count in counts] == [20.0]

        victim = min(children(parent.pid))
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(children(parent.pid) - {victim}) == 2)
        asked(url, fresh.home, 10)
        parent.send_signal(signal.SIGTERM)
        _, err = parent.communicate(timeout=30)
        assert parent.returncode == 0
        assert b"Traceback" not in err


def test_a_worker_that_cannot_start_again_leaves_the_others_at_work(fresh: Command) -> None:
    with service(fresh, "--workers", "2") as (parent, url):
        until(lambda: len(children(parent.pid)) == 2)
        asked(url, fresh.home, 10)
        time.sleep(1.5)  # the supervisor has seen that they serve
        (fresh.home / "kms.toml").write_text("nonsense = 1\n")
        victim = min(children(parent.pid))
        (other,) = children(parent.pid) - {victim}
        os.kill(victim, signal.SIGKILL)
        until(lambda: victim not in children(parent.pid))
        for _ in range(3):
            asked(url, fresh.home, 3)
            time.sleep(0.5)
        assert parent.poll() is None
        assert other in children(parent.pid)
        (fresh.home / "kms.toml").unlink()
        until(lambda: len(children(parent.pid)) == 2)
        asked(url, fresh.home, 10)
        parent.send_signal(signal.SIGTERM)
        _, err = parent.communicate(timeout=60)
        assert parent.returncode == 0
        assert f"worker {victim} ended (-9); another takes its place".encode() in err


def test_metrics_of_another_service_on_the_home_are_left_alone(tmp_path: Path) -> None:
    other = os.getppid()
    alive, dead = tmp_path / f"metrics-{other}-{start_time(other)}", tmp_path / f"metrics-{other}-1"
    for directory in (alive, dead):
        directory.mkdir()
    mine = _metrics_directory(tmp_path)
    assert set(tmp_path.iterdir()) == {alive, mine}


@pytest.mark.slow
def test_a_tls_client_that_says_nothing_is_let_go(fresh: Command) -> None:
    with service(fresh, "--tls") as (_, url):
        host, _, port = url.removeprefix("https://").partition(":")
        with socket.create_connection((host, int(port)), timeout=HANDSHAKE_SECONDS + 15) as silent:
            assert silent.recv(1) == b""


def test_workers_end_with_a_parent_that_was_killed(fresh: Command) -> None:
    with service(fresh, "--workers", "2") as (parent, url):
        until(lambda: len(children(parent.pid)) == 2)
        asked(url, fresh.home, 1)
        workers = children(parent.pid)
        parent.kill()
        parent.wait()
        until(lambda: all(map(gone, workers)))
    with service(fresh, "--listen", url.removeprefix("http://")) as (_, again):
        asked(again, fresh.home, 1)


def test_what_is_under_way_ends_before_the_service_does(fresh: Command) -> None:
    with service(fresh) as (parent, url):
        answers: list[int] = []

        def create() -> None:
            with closing(Wire.of(url, fresh.home)) as wire:
                answers.append(wire.ask("CreateKey", KeySpec="RSA_3072").status)

        asked(url, fresh.home, 1)
        thread = threading.Thread(target=create)
        thread.start()
        with closing(Wire.of(url, fresh.home)) as wire:  # the pair takes a good part of a second; this is not it
            until(lambda: "/healthz" in wire.host or bool(wire.call("ListKeys")))
        time.sleep(0.1)
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(30) == 0
        thread.join()
        assert answers == [200]


def test_tls_by_an_authority_of_the_homes_own(fresh: Command) -> None:
    child = fresh.start("serve", "--tls", "--listen", "127.0.0.1:0", stdout=-1, stderr=-1, bufsize=0)
    try:
        assert child.stdout is not None
        match = re.search(r"https://127\.0\.0\.1:\d+", child.stdout.readline().decode())
        assert match
        lines = [child.stdout.readline().decode() for _ in range(2)]
        authority = fresh.home / "tls" / "ca.pem"
        assert lines[1] == f"certificate authority: {authority}\n"
        assert (fresh.home / "tls" / "server.key").stat().st_mode & 0o777 == 0o600
        trusting = ssl.create_default_context(cafile=authority)
        for host in (match[0], match[0].replace("127.0.0.1", "localhost")):
            with urllib.request.urlopen(f"{host}/healthz", context=trusting) as answer:
                assert answer.status == 200
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(f"{match[0]}/healthz", context=ssl.create_default_context())
    finally:
        child.kill()
        child.communicate()


def test_a_certificate_of_the_home_must_be_for_the_address(fresh: Command) -> None:
    fresh.home.mkdir()
    local_certificate(fresh.home / "tls", "127.0.0.1")
    told = fresh.refused("serve", "--tls", "--listen", "127.0.0.2:0")
    assert "is not for 127.0.0.2, but for 127.0.0.1, " in told
    assert "remove" in told


def test_certificates_that_are_set_must_be_there(fresh: Command) -> None:
    fresh.settings["KMS_TLS_CERTIFICATE"] = str(fresh.home / "none.pem")
    assert "go together" in fresh.refused("serve")
    fresh.settings["KMS_TLS_KEY"] = str(fresh.home / "none.key")
    assert "cannot read" in fresh.refused("serve")
