"""Several processes on one home: they start together, and a disable in one is a disable in all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import kmscore
from kmscore.bootstrap import open_kms
from kmscore.engine.kms import Kms
from kmscore.process import boot_id

STARTER = """
import sys, kmscore
with kmscore.open_kms(sys.argv[1]) as kms:
    key = kms.create_key(protection_level="HSM")
    blob = kms.encrypt(key.key_id, b"x").ciphertext_blob
    assert kms.decrypt(blob).plaintext == b"x"
"""

# Answers, for each line "encrypt KEY" or "decrypt BLOB" on its standard input, the code of the refusal or "ok".
PEER = """
import sys, kmscore
with kmscore.open_kms(sys.argv[1]) as kms:
    print("ready", flush=True)
    for line in sys.stdin:
        verb, argument = line.split()
        try:
            if verb == "encrypt":
                kms.encrypt(argument, b"x")
            else:
                kms.decrypt(bytes.fromhex(argument))
            print("ok", flush=True)
        except kmscore.KmsError as error:
            print(error.code, flush=True)
"""


def start_together(home: Path, number: int) -> None:
    children = [
        subprocess.Popen([sys.executable, "-c", STARTER, str(home)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(number)
    ]
    failures = [out.decode() for child in children if (out := child.communicate()[0]) or child.returncode]
    assert not failures, failures[0]


def test_eight_processes_start_at_once_on_an_empty_home(tmp_path: Path) -> None:
    start_together(tmp_path / "home", 8)
    with open_kms(tmp_path / "home") as kms:
        assert kms.list_keys().total_count == 8
        assert kms.reconcile() == type(kms.reconcile())()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_eight_processes_twenty_times(tmp_path: Path) -> None:
    for attempt in range(20):
        start_together(tmp_path / str(attempt % 10), 8)  # ten on an empty home, ten on one that exists


class Peer:
    def __init__(self, home: Path) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", PEER, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.read() == "ready"

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, verb: str, argument: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{verb} {argument}\n")
        self.process.stdin.flush()
        return self.read()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def kms(home: Path) -> Iterator[Kms]:
    with open_kms(home) as kms:
        yield kms


@pytest.fixture
def peer(kms: Kms, home: Path) -> Iterator[Peer]:
    peer = Peer(home)
    yield peer
    peer.process.kill()
    peer.process.communicate()


@pytest.mark.parametrize("level", ["HSM", "SOFTWARE"])
def test_a_disable_is_global_when_it_returns(kms: Kms, peer: Peer, level: str) -> None:
    key = kms.create_key(protection_level=level).key_id
    blob = kms.encrypt(key, b"x").ciphertext_blob.hex()
    for _ in range(50):
        assert peer.ask("encrypt", key) == "ok"
        assert peer.ask("decrypt", blob) == "ok"
        kms.disable_key(key)
        assert peer.ask("encrypt", key) == "Rejected.Disabled"
        assert peer.ask("decrypt", blob) == "Rejected.Disabled"
        kms.enable_key(key)


def test_aliases_and_rotations_are_seen_at_once(kms: Kms, peer: Peer) -> None:
    one, other = (kms.create_key(protection_level="HSM").key_id for _ in range(2))
    kms.create_alias(one, alias_name="alias/a")
    assert peer.ask("encrypt", "alias/a") == "ok"
    kms.update_alias(other, alias_name="alias/a")
    kms.disable_key(other)
    assert peer.ask("encrypt", "alias/a") == "Rejected.Disabled"
    kms.delete_alias(alias_name="alias/a")
    assert peer.ask("encrypt", "alias/a") == "Forbidden.AliasNotFound"
    blob = kms.encrypt(one, b"x").ciphertext_blob
    kms.rotate_key(one)
    newer = kms.encrypt(one, b"x").ciphertext_blob
    assert blob[3:19] != newer[3:19]
    assert peer.ask("decrypt", blob.hex()) == peer.ask("decrypt", newer.hex()) == "ok"


def test_no_use_starts_after_a_disable_in_the_same_process(kms: Kms) -> None:
    key = kms.create_key(protection_level="HSM").key_id
    phase = 0  # odd from the acknowledgement of a disable until its enable is asked for
    wrong: list[int] = []
    served = 0
    stop = threading.Event()

    def use() -> None:
        nonlocal served
        while not stop.is_set():
            before = phase
            try:
                kms.encrypt(key, b"x")
            except kmscore.KmsError as error:
                assert error.code == "Rejected.Disabled"
                continue
            served += 1
            if before % 2 and phase == before:
                wrong.append(before)

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(60):
        kms.disable_key(key)
        phase += 1
        for _ in range(5):
            with pytest.raises(kmscore.KmsError, match="Disabled"):
                kms.encrypt(key, b"x")
        phase += 1
        kms.enable_key(key)
    stop.set()
    for thread in threads:
        thread.join()
    assert served
    assert not wrong


def test_a_forked_child_is_refused(home: Path) -> None:
    script = """
import os, sys, kmscore
kms = kmscore.open_kms(sys.argv[1])
key = kms.create_key(protection_level="HSM").key_id
soft = kms.create_key().key_id
kms.encrypt(key, b"x"); kms.encrypt(soft, b"x")
pid = os.fork()
if pid == 0:
    codes = []
    for call in (lambda: kms.encrypt(key, b"x"), lambda: kms.encrypt(soft, b"x"), lambda: kms.create_key(), lambda: kms.describe_key(key)):
        try:
            call()
            codes.append("served")
        except kmscore.SetupError as error:
            codes.append("refused" if "fork" in str(error) else str(error))
    print(codes, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
kms.encrypt(key, b"x")
kms.close()
if os.fork() == 0:
    with kmscore.open_kms(sys.argv[1]) as mine:  # opened after the fork
        mine.encrypt(key, b"x")
    print("own", flush=True)
    os._exit(0)
os.wait()
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script, str(home)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "['refused', 'refused', 'refused', 'refused']\nown\n", done.stdout + done.stderr


def test_a_gate_whose_maker_was_killed_is_made_again(home: Path) -> None:
    (home / "run").mkdir(parents=True)
    (home / "run" / f"gate-{boot_id()}").touch()
    (home / "run" / "gate-of-an-earlier-boot").write_bytes(b"torn")
    with open_kms(home, pkcs11_module="none") as kms:
        key = kms.create_key().key_id
        kms.disable_key(key)
        with pytest.raises(kmscore.KmsError, match="Disabled"):
            kms.encrypt(key, b"x")


def test_a_dead_writer_that_announced_nothing_is_noticed(kms: Kms) -> None:
    """Killed between its commit and the bump: nothing was acknowledged, but the change holds, and the poll finds it."""
    key = kms.create_key().key_id
    kms.encrypt(key, b"x")
    aggregate = kms._s.store.key(key)
    assert aggregate is not None
    aggregate.disable(kms._s.lifecycle.by())
    kms._s.store.append(aggregate)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            kms.encrypt(key, b"x")
        except kmscore.KmsError as error:
            assert error.code == "Rejected.Disabled"
            return
        time.sleep(0.05)
    raise AssertionError("the change was never seen")


@pytest.mark.sqlite
def test_destruction_waits_for_a_process_that_is_stopped(home: Path) -> None:
    """A stopped process may hold session keys: the destruction is not acknowledged before it has let go, or is dead."""
    clock = kmscore.FixedClock(datetime(2030, 1, 1, tzinfo=UTC))
    with open_kms(home, clock=clock, eviction_wait_seconds=0.3) as kms:
        key = kms.create_key(protection_level="HSM").key_id
        peer = Peer(home)
        assert peer.ask("encrypt", key) == "ok"
        kms.schedule_key_deletion(key, pending_window_in_days=7)
        clock.advance(timedelta(days=7))
        os.kill(peer.process.pid, signal.SIGSTOP)
        report = kms.run_due()
        assert report.destroyed == ()
        assert report.failed == ((key, "ServiceUnavailableTemporary"),)
        with pytest.raises(kmscore.KmsError, match="KeyNotFound"):
            kms.describe_key(key)
        os.kill(peer.process.pid, signal.SIGCONT)
        deadline = time.monotonic() + 20
        while not kms.run_due().destroyed and time.monotonic() < deadline:
            pass
        assert kms.history(key)[-1]["event"] == "KeyDestroyed"
        assert peer.ask("encrypt", key) == "Forbidden.KeyNotFound"
        peer.process.kill()
        peer.process.communicate()
