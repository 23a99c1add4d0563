"""The first start of a home's own token: killed at any instant, the next start has a whole one; a known token is never made anew."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from custody_helpers import STRACE, fast_directory, header_of, new_ref, opened, run_child, sample, settings_of, syscalls_after_mark

from kmscore.custody import module
from kmscore.disk import write_file
from kmscore.errors import SetupError

FIRST_START = """
mark("start")
keeper = open_keeper(home)
mark("end")
keeper.close()
"""
# Every call that changes a file or a directory, or makes such a change durable.
CHANGES = ("openat", "write", "ftruncate", "rename", "unlink", "unlinkat", "rmdir", "mkdir", "fsync", "fchmod", "chmod")
# A sample; all of them (some 250) take half a minute and pass too.
POINTS = 24


@pytest.fixture
def directory() -> Iterator[Path]:
    with fast_directory() as path:
        yield path


def _check_whole(home: Path) -> None:
    """The home opens, holds exactly one token, and a key made in it works after another open."""
    with opened(home) as keeper:
        ref = new_ref()
        keeper.generate(ref)
        serial = keeper.token_serial
    with opened(home, material_known=True) as keeper:
        key, header = keeper.load(ref), header_of(ref)
        assert key.decrypt(19, header, key.encrypt(header, header, b"x")) == b"x"
        assert keeper.token_serial == serial
        assert keeper.inventory().materials == {ref.material_id}
    assert not (home / "tokens.new").exists()
    assert len(list((home / "tokens").iterdir())) == 1
    assert (home / "guard" / "token.object").stat().st_size == 320


@pytest.mark.skipif(STRACE is None, reason="needs strace")
@pytest.mark.timeout(120)
def test_killed_at_any_system_call(directory: Path) -> None:
    log = directory / "log"
    assert run_child(FIRST_START, directory / "whole", strace=["-e", f"trace={','.join(CHANGES)}", "-o", str(log)]).returncode == 0
    points = syscalls_after_mark(log, "start", CHANGES)
    assert len(points) > 60

    def kill_at(number: int, point: tuple[str, int]) -> tuple[Path, int]:
        home = directory / f"home{number}"
        options = ["-e", f"trace={point[0]}", "-e", f"inject={point[0]}:signal=KILL:when={point[1]}", "-o", "/dev/null"]
        status = run_child(FIRST_START, home, strace=options).returncode
        run_child(FIRST_START, home, strace=options)  # the start after it is killed as well, if it gets that far
        return home, status

    with ThreadPoolExecutor(2) as pool:
        killed = list(pool.map(kill_at, range(POINTS), sample(points, POINTS)))
    assert all(status in (-signal.SIGKILL, 128 + signal.SIGKILL) for _, status in killed)
    for home, _ in killed:
        _check_whole(home)


def test_a_home_opens_again_and_again(directory: Path) -> None:
    for number in range(3):
        _check_whole(directory / str(number))


def test_secrets_are_private_whatever_the_umask(directory: Path) -> None:
    before = os.umask(0)
    try:
        _check_whole(directory / "home")
    finally:
        os.umask(before)
    for path in (directory / "home", *(directory / "home").rglob("*")):
        if path.name.endswith(".lock") and path.parent.name == "run":
            continue
        assert path.stat().st_mode & 0o077 == 0, path


def test_ordinary_tools_see_the_token(directory: Path) -> None:
    home = directory / "home"
    with opened(home) as keeper:
        ref = new_ref()
        keeper.generate(ref)
    pin = (home / "pin").read_text().strip()
    command = ["pkcs11-tool", "--module", settings_of(home).pkcs11_module, "--token-label", "kmscore", "--login", "--pin", pin, "-O"]
    try:
        listing = subprocess.run(
            command, env={**os.environ, "SOFTHSM2_CONF": str(home / "softhsm2.conf")}, capture_output=True, text=True, timeout=30
        )
    except FileNotFoundError:
        pytest.skip("needs pkcs11-tool (opensc)")
    assert listing.returncode == 0, listing.stderr
    assert ref.material_id.hex() in listing.stdout
    assert f"kmscore/test/{ref.material_id.hex()}" in listing.stdout
    with opened(home, material_known=True) as keeper:  # the tool's login took no lock of ours
        assert keeper.load(ref)


def test_a_token_that_the_store_knows_is_never_made_anew(directory: Path) -> None:
    home = directory / "home"
    with opened(home):
        pass
    (home / "tokens").rename(home / "elsewhere")
    for _ in range(2):
        with pytest.raises(SetupError, match="from backup"), opened(home, material_known=True):
            pass
    assert not (home / "tokens").exists()
    assert not (home / "tokens.new").exists()
    (home / "tokens").mkdir(mode=0o700)  # an empty one is none
    with pytest.raises(SetupError, match="from backup"), opened(home, material_known=True):
        pass
    (home / "tokens").rmdir()
    (home / "elsewhere").rename(home / "tokens")
    with opened(home, material_known=True):
        pass


def test_another_token_in_its_place_is_refused(directory: Path) -> None:
    for name in ("a", "b"):
        with opened(directory / name):
            pass
    (directory / "a" / "tokens").rename(directory / "a" / "elsewhere")
    (directory / "b" / "tokens").rename(directory / "a" / "tokens")
    for known in (True, False):
        with pytest.raises(SetupError, match="another token"), opened(directory / "a", material_known=known):
            pass


def test_a_moved_home_gets_a_new_configuration(directory: Path) -> None:
    with opened(directory / "old") as keeper:
        ref = new_ref()
        keeper.generate(ref)
    (directory / "old").rename(directory / "new")
    with opened(directory / "new", material_known=True) as keeper:
        assert keeper.load(ref)
    assert str(directory / "new" / "tokens") in (directory / "new" / "softhsm2.conf").read_text()


def test_paths_with_odd_characters(directory: Path) -> None:
    _check_whole(directory / "a home with späces, (brackets) & 'quotes'")
    for name in ("a=b", "a#b"):
        for _ in range(2):
            with pytest.raises(SetupError, match="path"), opened(directory / name):
                pass


def test_a_home_by_another_name_is_the_same_home(directory: Path) -> None:
    (directory / "link").symlink_to(directory / "home")
    with opened(directory / "home") as first, opened(directory / "link") as second:
        assert first.token_serial == second.token_serial


def test_a_wrong_pin_is_said_and_harms_nothing(directory: Path) -> None:
    home = directory / "home"
    with opened(home):
        pass
    pin = (home / "pin").read_bytes()
    (home / "pin").write_bytes(b"12345678\n")
    with pytest.raises(SetupError, match="does not take the PIN"), opened(home, material_known=True):
        pass
    (home / "pin").unlink()
    with pytest.raises(SetupError, match="PIN"), opened(home, material_known=True):
        pass
    write_file(home / "pin", pin)
    with opened(home, material_known=True):
        pass


@pytest.mark.parametrize("name", ["pin", "so-pin", "tokens"])
def test_files_that_others_can_reach_are_refused(directory: Path, name: str) -> None:
    home = directory / "home"
    with opened(home):
        pass
    (home / name).chmod(0o755)
    with pytest.raises(SetupError, match="chmod"), opened(home):
        pass
    (home / name).chmod(0o700)
    with opened(home):
        pass


def test_a_nearly_full_disk_is_refused_before_a_login(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = directory / "home"
    with opened(home):
        pass
    before = [path.stat().st_mtime_ns for path in sorted((home / "tokens").rglob("*"))]
    monkeypatch.setattr("kmscore.disk.free_bytes", lambda path: 1 << 20)
    with pytest.raises(SetupError, match="16 MiB"), opened(home):
        pass
    assert [path.stat().st_mtime_ns for path in sorted((home / "tokens").rglob("*"))] == before
    assert not module._open
