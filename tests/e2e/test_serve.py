"""`kms serve` in a process of its own: ready, healthy, and gone when asked."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from command import Command


@contextmanager
def service(kms: Command, *arguments: str, stderr: Any = subprocess.PIPE) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A running service and its address; killed at the end if it still runs."""
    child = kms.start("serve", "--listen", "127.0.0.1:0", *arguments, stdout=subprocess.PIPE, stderr=stderr, bufsize=0)
    try:
        assert child.stdout is not None
        line = child.stdout.readline().decode()
        match = re.search(r"https?://127\.0\.0\.1:\d+", line)
        assert match, (line, child.stderr.read() if child.stderr else "")
        yield child, match[0]
    finally:
        child.kill()
        child.communicate()


def get(url: str) -> tuple[int, dict[str, str]]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {}


def test_the_first_start_makes_the_home_and_says_what_to_do(fresh: Command) -> None:
    with service(fresh) as (child, url):
        assert get(f"{url}/healthz") == (200, {"status": "ok", "version": "0.1.0"})
        assert get(f"{url}/nope")[0] == 404
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=30)
    assert child.returncode == 0
    assert out.decode().splitlines() == [
        f"credentials: {fresh.home}/credentials",
        "try:",
        f'  kms --home {fresh.home} CreateKey --ProtectionLevel HSM --Description "Key1 in Managed HSM"',
        f"  kms --home {fresh.home} ListKeys",
    ]
    assert err.decode() == f"made a new home at {fresh.home}\n"
    credentials = fresh.home / "credentials"
    assert re.fullmatch(r"access_key_id=\S{10,}\naccess_key_secret=\S{30,}\n", credentials.read_text())
    assert credentials.stat().st_mode & 0o7777 == 0o600


def test_it_starts_again_with_everything_as_it_was(fresh: Command) -> None:
    with service(fresh) as (child, url):
        assert get(f"{url}/healthz")[0] == 200
        key = fresh.json("CreateKey", "--ProtectionLevel", "HSM")["KeyMetadata"]  # beside the running service
        credentials = (fresh.home / "credentials").read_text()
        child.kill()
        child.communicate()
    with service(fresh) as (child, url):
        assert get(f"{url}/healthz")[0] == 200
        assert (fresh.home / "credentials").read_text() == credentials
        described = fresh.json("DescribeKey", "--KeyId", key["KeyId"])["KeyMetadata"]
        assert described | key == described
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 0


def test_credentials_that_are_given_are_not_made(fresh: Command) -> None:
    fresh.settings |= {"KMS_ROOT_ACCESS_KEY_ID": "root", "KMS_ROOT_ACCESS_KEY_SECRET": "a secret that is not shown"}
    with service(fresh) as (child, _):
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=30)
    assert b"credentials: from the environment or kms.toml" in out
    assert b"a secret" not in out + err
    assert not (fresh.home / "credentials").exists()


def test_an_address_that_is_taken_or_wrong(kms: Command) -> None:
    with service(kms) as (_, url):
        taken = url.removeprefix("http://")
        assert (
            kms.refused("serve", "--listen", taken)
            == f"InternalFailure: cannot listen on {taken}: Address already in use; --listen or KMS_LISTEN names another"
        )
    for wrong in ("8480", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999"):
        assert kms.refused("serve", "--listen", wrong) == f"InternalFailure: KMS_LISTEN must be HOST:PORT, not {wrong!r}"


def test_the_environment_names_the_address(kms: Command) -> None:
    kms.settings["KMS_LISTEN"] = "nonsense"
    try:
        assert "not 'nonsense'" in kms.refused("serve")
    finally:
        del kms.settings["KMS_LISTEN"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_start_ends_it_quietly(fresh: Command, how: signal.Signals) -> None:
    with service(fresh) as (child, _):
        child.send_signal(how)  # the address is printed before the server runs
        _, err = child.communicate(timeout=30)
    assert child.returncode == 0
    assert b"Traceback" not in err


def test_no_other_process_may_read_its_memory(fresh: Command) -> None:
    """prctl(2), PR_SET_DUMPABLE: the files of such a process belong to root, whoever runs it; core dumps are off."""
    with service(fresh) as (child, url):
        assert get(f"{url}/healthz")[0] == 200
        with open(f"/proc/{child.pid}/limits") as limits:
            assert re.search(r"Max core file size +0 +", limits.read())
