"""The guard of token.object: SoftHSM empties it when it is killed, or the disk is full, during any login (RELIABILITY 1.1, R-1)."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from custody_helpers import STRACE, child, fast_directory, header_of, new_ref, open_keeper, opened, run_child

from kmscore.custody.port import MaterialRef
from kmscore.errors import SetupError

OPEN = """
keeper = open_keeper(home, material_known=True)
print(keeper.token_serial)
keeper.close()
"""


@pytest.fixture(scope="module")
def model() -> Iterator[tuple[Path, MaterialRef]]:
    """A home with one key, to be copied by each test."""
    with fast_directory() as path:
        with opened(path / "model") as keeper:
            ref = new_ref()
            keeper.generate(ref)
        yield path / "model", ref


@pytest.fixture
def home(model: tuple[Path, MaterialRef], tmp_path: Path) -> Iterator[Path]:
    with fast_directory() as path:
        shutil.copytree(model[0], path / "home")
        (path / "home").chmod(0o700)
        yield path / "home"


def _token_object(home: Path) -> Path:
    (directory,) = (home / "tokens").iterdir()
    return directory / "token.object"


def _check(home: Path, ref: MaterialRef) -> None:
    with opened(home, material_known=True) as keeper:
        key, header = keeper.load(ref), header_of(ref)
        assert key.decrypt(19, header, key.encrypt(header, header, b"x")) == b"x"
    assert _token_object(home).stat().st_size == (home / "guard" / "token.object").stat().st_size == 320


def _damages(data: bytes) -> dict[str, bytes | None]:
    return {
        "missing": None,
        "empty": b"",
        "short": data[:100],
        "cut in a value": data[:-1],
        "one attribute short": data[:-96],
        "zeros": bytes(len(data)),
        "garbage": b"\xff" * len(data),
    }


@pytest.mark.parametrize("damage", _damages(b""))
def test_a_damaged_token_object_is_restored(home: Path, model: tuple[Path, MaterialRef], damage: str) -> None:
    live = _token_object(home)
    data = _damages(live.read_bytes())[damage]
    live.unlink() if data is None else live.write_bytes(data)
    _check(home, model[1])


def test_a_damaged_copy_is_made_anew_from_the_live_one(home: Path, model: tuple[Path, MaterialRef]) -> None:
    saved = home / "guard" / "token.object"
    for damage in (b"", b"x" * 320):
        saved.write_bytes(damage)
        _check(home, model[1])
    shutil.rmtree(home / "guard")
    _check(home, model[1])


@pytest.mark.parametrize("known", [True, False])
def test_without_a_whole_copy_it_says_so_and_touches_nothing(home: Path, known: bool) -> None:
    _token_object(home).write_bytes(b"")
    (home / "guard" / "token.object").write_bytes(b"")
    before = sorted(path.name for path in home.rglob("*"))
    with pytest.raises(SetupError, match="backup"), opened(home, material_known=known):
        pass
    assert sorted(path.name for path in home.rglob("*")) == before


def test_other_tokens_beside_ours_are_left_alone(home: Path, model: tuple[Path, MaterialRef]) -> None:
    with opened(home.parent / "other"):
        pass
    (theirs,) = (home.parent / "other" / "tokens").iterdir()
    (ours,) = (home / "tokens").iterdir()
    theirs.rename(home / "tokens" / theirs.name)
    (ours / "token.object").write_bytes(b"")
    with opened(home, material_known=True) as keeper:
        assert keeper.load(model[1])
        assert keeper.token_serial == ours.name.replace("-", "")[-16:]


@pytest.mark.skipif(STRACE is None, reason="needs strace")
def test_killed_while_a_login_rewrites_it(home: Path, model: tuple[Path, MaterialRef]) -> None:
    live = _token_object(home)
    options = ["-P", str(live), "-e", "trace=write", "-e", "inject=write:signal=KILL:when=1", "-o", "/dev/null"]
    assert run_child(OPEN, home, strace=options).returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
    assert live.stat().st_size == 0  # the token is lost, for anyone without a guard
    _check(home, model[1])


@pytest.mark.skipif(STRACE is None, reason="needs strace")
def test_a_disk_that_is_full_during_the_login_is_mended_in_the_same_start(home: Path, model: tuple[Path, MaterialRef]) -> None:
    live = _token_object(home)
    options = ["-P", str(live), "-e", "trace=write", "-e", "inject=write:error=ENOSPC:when=1", "-o", "/dev/null"]
    answer = run_child(OPEN, home, strace=options)
    assert answer.returncode == 0, answer.stderr
    assert live.stat().st_size == 320
    _check(home, model[1])


@pytest.mark.timeout(60)
def test_a_kill_loop_over_logins_loses_nothing(home: Path, model: tuple[Path, MaterialRef]) -> None:
    loop = "while True:\n    mark('round')\n    open_keeper(home, material_known=True).close()"
    for delay in range(12):
        process = child(loop, home)
        assert process.stderr is not None
        process.stderr.readline()  # it has begun
        time.sleep(0.003 * delay)
        process.kill()
        process.communicate()
    _check(home, model[1])


@pytest.mark.timeout(60)
def test_eight_processes_at_once_on_an_empty_home_and_on_a_known_one() -> None:
    make = "keeper = open_keeper(home)\nkeeper.generate(new_ref())\nprint(keeper.token_serial)\nkeeper.close()"
    with fast_directory() as path:
        for code in (make, OPEN):
            processes = [child(code, path / "home") for _ in range(8)]
            answers = [process.communicate(timeout=50) for process in processes]
            assert [process.returncode for process in processes] == [0] * 8, answers
            assert len({out for out, _ in answers}) == 1
        with opened(path / "home") as keeper:
            assert len(keeper.inventory().materials) == 8
            assert keeper.inventory().foreign == ()


def test_a_second_open_in_the_same_process_shares_the_login(home: Path, model: tuple[Path, MaterialRef]) -> None:
    first = open_keeper(home, material_known=True)
    written = _token_object(home).stat().st_mtime_ns
    second = open_keeper(home, material_known=True)
    assert _token_object(home).stat().st_mtime_ns == written
    first.close()
    assert second.load(model[1])
    second.close()
