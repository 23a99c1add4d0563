"""The freshness gate: one counter and a slot per process in a mapped file, seen by every process that maps it."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmscore.errors import SetupError
from kmscore.store._gate import SIZE, SLOTS, Gate

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "gate"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.fixture
def gate(path: Path) -> Iterator[Gate]:
    gate = Gate(str(path))
    yield gate
    gate.close()


def word(path: Path, offset: int) -> int:
    with path.open("rb") as file:
        file.seek(offset)
        return int.from_bytes(file.read(8), sys.byteorder)


def in_process(path: Path, code: str) -> subprocess.Popen[str]:
    program = f"from kmscore.store._gate import Gate\ngate = Gate({str(path)!r})\nprint('ready', flush=True)\n{code}"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


# --- the file ----------------------------------------------------------------------------------------------------------------------


def test_layout(path: Path, gate: Gate) -> None:
    assert (SLOTS, SIZE) == (1024, 4096 + 1024 * 64)
    assert word(path, 0) != 0
    assert gate.generation == 0
    assert gate.bump() == 1
    assert word(path, 64) == 1
    gate.claim(1023, 77, 88)
    gate.publish(9)
    at = 4096 + 64 * 1023
    assert (word(path, at), word(path, at + 8), word(path, at + 16)) == (77, 88, 9)
    assert gate.read(1023) == (77, 88, 9)
    assert gate.read(0) == (0, 0, 0)


def test_a_second_gate_sees_the_same(path: Path, gate: Gate) -> None:
    gate.bump()
    other = Gate(str(path))
    assert other.generation == 1
    other.claim(3, 1, 2)
    assert gate.read(3) == (1, 2, 0)
    other.close()
    assert gate.read(3) == (1, 2, 0)  # closing releases nothing


@pytest.mark.parametrize("size", [0, SIZE - 1, SIZE + 1])
def test_a_file_of_another_size_is_refused(path: Path, size: int) -> None:
    path.write_bytes(bytes(size))
    with pytest.raises(SetupError, match="not a gate file"):
        Gate(str(path))


@pytest.mark.parametrize("offset", [0, 8, 64, 4096, SIZE - 1])
def test_a_foreign_file_is_refused_and_left_alone(path: Path, offset: int) -> None:
    content = bytearray(SIZE)
    content[offset] = 1
    path.write_bytes(content)
    with pytest.raises(SetupError, match="not a gate file"):
        Gate(str(path))
    assert path.read_bytes() == content


def test_another_version_is_refused(path: Path, gate: Gate) -> None:
    content = bytearray(path.read_bytes())
    content[0 if sys.byteorder == "little" else 7] ^= 3
    path.write_bytes(content)
    with pytest.raises(SetupError, match="of this version"):
        Gate(str(path))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Gate(str(tmp_path / "absent"))
    (tmp_path / "directory").mkdir()
    with pytest.raises(IsADirectoryError):
        Gate(str(tmp_path / "directory"))


# --- slots -------------------------------------------------------------------------------------------------------------------------


def test_slots(path: Path, gate: Gate) -> None:
    with pytest.raises(ValueError, match="no slot"):
        gate.publish(1)
    gate.release()  # harmless
    gate.claim(5, os.getpid(), 123)
    assert gate.read(5) == (os.getpid(), 123, 0)
    gate.publish(42)
    assert gate.read(5) == (os.getpid(), 123, 42)
    gate.claim(5, os.getpid(), 124)  # the same one anew: seen is 0 again
    assert gate.read(5) == (os.getpid(), 124, 0)
    with pytest.raises(ValueError, match="another slot"):
        gate.claim(6, 1, 1)
    gate.release()
    assert gate.read(5) == (0, 0, 0)
    gate.claim(6, 1, (1 << 64) - 1)
    assert gate.read(6) == (1, (1 << 64) - 1, 0)
    for slot in (-1, SLOTS, 1 << 40):
        for call in (lambda slot=slot: gate.read(slot), lambda slot=slot: gate.claim(slot, 1, 1)):
            with pytest.raises(ValueError, match="0 to 1023"):
                call()


def test_closed(path: Path, gate: Gate) -> None:
    gate.close()
    gate.close()
    for call in (lambda: gate.generation, gate.bump, lambda: gate.wait(0, 0), lambda: gate.read(0), lambda: gate.publish(1), gate.release):
        with pytest.raises(SetupError, match="closed"):
            call()
    hollow = Gate.__new__(Gate)
    with pytest.raises(SetupError, match="closed"):
        hollow.bump()
    hollow.close()
    for leak in (lambda: pickle.dumps(gate), lambda: copy.copy(gate)):
        with pytest.raises(TypeError):
            leak()


# --- waiting -----------------------------------------------------------------------------------------------------------------------


def test_wait_returns_at_once_when_there_is_news_or_no_time(gate: Gate) -> None:
    gate.bump()
    assert gate.wait(0, 60) == 1
    assert gate.wait(7, 60) == 1
    assert gate.wait(1, 0) == 1
    assert gate.wait(1, -5) == 1
    assert gate.wait(1, 0.01) == 1
    assert gate.wait(0, float("inf")) == 1
    with pytest.raises(ValueError, match="not a number"):
        gate.wait(1, float("nan"))


def test_a_bump_wakes_waiters_of_this_process(gate: Gate) -> None:
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(gate.wait(0, 60))) for _ in range(4)]
    for thread in threads:
        thread.start()
    gate.bump()
    for thread in threads:
        thread.join(30)
    assert results == [1, 1, 1, 1]


def test_a_bump_wakes_waiters_of_another_process(path: Path, gate: Gate) -> None:
    process = in_process(path, "seen = 0\nfor _ in range(50):\n    seen = gate.wait(seen, 60)\n    print(seen, flush=True)")
    assert process.stdout is not None
    for expected in range(1, 51):
        assert gate.bump() == expected
        assert process.stdout.readline() == f"{expected}\n"
    assert process.communicate(timeout=30) == ("", None)
    assert process.returncode == 0


def test_bumps_of_many_processes_are_all_counted(path: Path, gate: Gate) -> None:
    processes = [in_process(path, "input()\nfor _ in range(5000): gate.bump()") for _ in range(3)]
    for process in processes:
        process.communicate("\n", timeout=60)
        assert process.returncode == 0
    for _ in range(1000):
        gate.bump()
    assert gate.generation == 16000


def test_first_openers_race_for_the_magic(path: Path) -> None:
    processes = [in_process(path, "input()\nprint(gate.bump())") for _ in range(4)]
    numbers = sorted(int(process.communicate("\n", timeout=60)[0]) for process in processes)
    assert numbers == [1, 2, 3, 4]


def test_a_signal_interrupts_a_wait(gate: Gate) -> None:
    class Interrupted(Exception):
        pass

    def handler(signum: int, frame: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Interrupted):
            gate.wait(0, 60)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert gate.generation == 0


def test_close_under_a_waiter(path: Path) -> None:
    gate = Gate(str(path))
    ready = threading.Event()

    def wait() -> None:
        ready.set()
        gate.wait(0, 0.2)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    ready.wait()
    gate.close()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


# --- fork --------------------------------------------------------------------------------------------------------------------------


def test_a_child_reads_and_bumps_and_claims_nothing(gate: Gate) -> None:
    gate.claim(4, os.getpid(), 1)
    gate.publish(7)
    if (pid := os.fork()) == 0:
        code = 1
        try:
            assert gate.read(4) == (os.getppid(), 1, 7)
            for call in (lambda: gate.claim(5, 1, 1), lambda: gate.publish(8), gate.release):
                with pytest.raises(SetupError, match="was opened before fork; open it again in the child"):
                    call()
            assert gate.bump() == 1
            gate.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert gate.generation == 1
    assert gate.read(4) == (os.getpid(), 1, 7)
