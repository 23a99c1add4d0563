"""Opening and closing homes: without a token, after losses, with odd settings, clocks and directories; the ticker."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from clocks import ShiftedClock
from test_kms import code

import kmscore


def test_without_a_token(tmp_path: Path) -> None:
    with kmscore.open_kms(tmp_path / "home", pkcs11_module="none") as kms:
        assert code(kms.create_key, protection_level="HSM") == "Unsupported.ProtectionLevel"
        key = kms.create_key().key_id
        blob = kms.encrypt(key, b"x").ciphertext_blob
        assert (tmp_path / "home" / "root.key").stat().st_mode & 0o777 == 0o600
    with kmscore.open_kms(tmp_path / "home", pkcs11_module="none") as kms:
        assert kms.decrypt(blob).plaintext == b"x"
    (tmp_path / "home" / "root.key").unlink()
    with pytest.raises(kmscore.SetupError, match="restore"):
        kmscore.open_kms(tmp_path / "home", pkcs11_module="none")


def test_a_home_whose_root_key_is_in_its_token_is_not_opened_without_it(tmp_path: Path) -> None:
    script = """
import sys, kmscore
with kmscore.open_kms(sys.argv[1]): pass
try:
    kmscore.open_kms(sys.argv[1], pkcs11_module="none")
except kmscore.SetupError as error:
    assert "token" in str(error), error
else:
    raise AssertionError("opened")
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "home")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_restart_finds_everything(tmp_path: Path) -> None:
    script = """
import sys, kmscore
home, blobs = sys.argv[1], sys.argv[2:]
with kmscore.open_kms(home) as kms:
    for blob in blobs:
        assert kms.decrypt(bytes.fromhex(blob)).plaintext == b"x"
    for level in ("HSM", "SOFTWARE"):
        key = kms.create_key(protection_level=level).key_id
        print(kms.encrypt(key, b"x").ciphertext_blob.hex())
"""
    blobs: list[str] = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "home"), *blobs], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        blobs += done.stdout.split()


def test_the_ticker_rotates_and_destroys_by_itself(tmp_path: Path) -> None:
    clock = ShiftedClock()
    with kmscore.open_kms(tmp_path / "home", clock=clock, tick_seconds=0.05, pkcs11_module="none") as kms:
        rotating = kms.create_key(enable_automatic_rotation=True, rotation_interval="7d").key_id
        dying = kms.create_key().key_id
        kms.schedule_key_deletion(dying, pending_window_in_days=7)
        clock.offset = timedelta(days=7, minutes=1)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if kms.list_key_versions(rotating).total_count == 2 and kms.history(dying)[-1]["event"] == "KeyDestroyed":
                return
            time.sleep(0.02)
    raise AssertionError("the ticker did nothing")


def test_a_closed_engine_says_so(tmp_path: Path) -> None:
    kms = kmscore.open_kms(tmp_path / "home", pkcs11_module="none")
    key = kms.create_key().key_id
    kms.close()
    kms.close()
    for call in (lambda: kms.encrypt(key, b"x"), lambda: kms.decrypt(b"x"), lambda: kms.describe_key(key), kms.create_key, kms.run_due):
        with pytest.raises(kmscore.SetupError, match="closed"):
            call()


@pytest.mark.sqlite
def test_homes_and_settings_that_are_refused(tmp_path: Path) -> None:
    document = tmp_path / "document"
    document.write_text("mine")
    with pytest.raises(kmscore.SetupError, match="cannot read"):
        kmscore.open_kms(document / "home")
    with pytest.raises(kmscore.SetupError, match="cannot"):
        kmscore.open_kms(document)
    for bad in (
        {"poll_seconds": 0},
        {"poll_seconds": float("nan")},
        {"tick_seconds": "5"},
        {"max_keys": -1},
        {"key_version_min_days": 10**12},
        {"region": "a:b"},
        {"account_id": "²"},
        {"account_id": 5},
        {"database_url": "mysql://x"},
        {"no_such_setting": 1},
    ):
        with pytest.raises(kmscore.SetupError):
            kmscore.open_kms(tmp_path / "never", **bad)
    assert not (tmp_path / "never").exists()


@pytest.mark.sqlite
def test_a_lost_database_beside_a_token_with_keys_is_not_replaced(tmp_path: Path) -> None:
    script = """
import sys, pathlib, kmscore
home = pathlib.Path(sys.argv[1])
with kmscore.open_kms(home) as kms:
    kms.create_key(protection_level="HSM")
for path in home.glob("kms.db*"):
    path.unlink()
try:
    kmscore.open_kms(home)
except kmscore.SetupError as error:
    assert "restore it from backup" in str(error), error
else:
    raise AssertionError("opened with an empty store")
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "home")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_level_without_its_custody_is_refused_at_use(tmp_path: Path) -> None:
    """A home made without a token, used with one for a while, then without it again."""
    script = """
import sys, kmscore
home = sys.argv[1]
with kmscore.open_kms(home, pkcs11_module="none"):
    pass
with kmscore.open_kms(home) as kms:
    key = kms.create_key(protection_level="HSM").key_id
    blob = kms.encrypt(key, b"x").ciphertext_blob
with kmscore.open_kms(home, pkcs11_module="none") as kms:
    for call in (lambda: kms.encrypt(key, b"x"), lambda: kms.decrypt(blob), lambda: kms.rotate_key(key)):
        try:
            call()
        except kmscore.KmsError as error:
            assert error.code == "Unsupported.ProtectionLevel", error
        else:
            raise AssertionError("served")
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "home")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_clock_file_that_tells_no_time_is_a_refusal(tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    clock.write_text("2030-01-01T00:00:00Z")
    with kmscore.open_kms(tmp_path / "home", clock_file=str(clock), pkcs11_module="none") as kms:
        key = kms.create_key().key_id
        for bad in ("", "soon", "2030-01-01T00:00:00"):
            clock.write_text(bad)
            assert code(kms.create_key) == "ServiceUnavailableTemporary"
        clock.write_text("2030-02-01T00:00:00Z")
        assert kms.rotate_key(key).creation_date == datetime(2030, 2, 1, tzinfo=UTC)


def test_quotas(tmp_path: Path) -> None:
    with kmscore.open_kms(tmp_path / "home", pkcs11_module="none", max_keys=2, max_aliases=1) as kms:
        key = kms.create_key().key_id
        kms.create_key()
        assert code(kms.create_key) == "Rejected.LimitExceeded"
        kms.create_alias(key, alias_name="alias/a")
        assert code(kms.create_alias, key, alias_name="alias/b") == "Rejected.LimitExceeded"


@pytest.mark.sqlite
def test_an_empty_directory_becomes_a_home_that_is_the_owners_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    with kmscore.open_kms(home, pkcs11_module="none"):
        pass
    assert home.stat().st_mode & 0o777 == 0o700
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    (shared / "document").touch()
    with kmscore.open_kms(shared, pkcs11_module="none") as kms:
        assert [f.do for f in kms.doctor() if f.level == "fail"] == [f"chmod go-rwx '{shared}'"]
    assert (shared / "document").exists()
