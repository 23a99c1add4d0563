"""Which requests were seen: across processes, kills and epochs, in bounded space. And how many an access key may make, and the answers."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import uuid
from enum import StrEnum
from pathlib import Path

import pytest

from kmscore.api import answers, nonces
from kmscore.api.nonces import EPOCH_SECONDS, Nonces
from kmscore.api.throttle import BURST_SECONDS, Throttle, Throttled
from kmscore.errors import KmsError

T = 1_000_000.0 * EPOCH_SECONDS  # the beginning of an epoch


class Clock:
    def __init__(self, now: float = T) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def code(call: object, *arguments: str) -> str:
    with pytest.raises(KmsError) as error:
        call(*arguments)  # type: ignore[operator]
    return error.value.code


def test_once_only_for_each_access_key(tmp_path: Path) -> None:
    seen = Nonces(tmp_path)
    for nonce in ("a", "b", "", "\x00", "é", "x" * 100_000):
        seen.take("one", nonce)
        seen.take("other", nonce)
    for nonce in ("a", "b", "", "\x00", "é", "x" * 100_000):
        assert code(seen.take, "one", nonce) == "SignatureNonceUsed"
        assert code(seen.take, "other", nonce) == "SignatureNonceUsed"
    seen.take("onea", "")  # not the same as one and a


def test_two_processes_know_of_each_other(tmp_path: Path) -> None:
    """Each its own object on one directory; also tables that the other makes later."""
    one, other = (Nonces(tmp_path, (32, 64)) for _ in range(2))
    for number in range(40):
        one.take("k", f"{number}")
        assert code(other.take, "k", f"{number}") == "SignatureNonceUsed"
        other.take("k", f"{number} of the other")
        assert code(one.take, "k", f"{number} of the other") == "SignatureNonceUsed"


def test_of_many_that_take_one_at_once_one_gets_it(tmp_path: Path) -> None:
    """Four processes, the same 500 nonces in the same order, through tables that fill."""
    context = multiprocessing.get_context("fork")
    queue, start = context.Queue(), context.Barrier(4)

    def take() -> None:
        seen = Nonces(tmp_path, (256, 1024))
        start.wait()
        got = []
        for number in range(500):
            try:
                seen.take("k", str(number))
                got.append(number)
            except KmsError as error:
                assert error.code == "SignatureNonceUsed"
        queue.put(got)

    workers = [context.Process(target=take) for _ in range(4)]
    for worker in workers:
        worker.start()
    got = [number for _ in workers for number in queue.get(timeout=60)]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert sorted(got) == list(range(500))


def test_a_killed_process_takes_nothing_with_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def take() -> None:
        seen = Nonces(tmp_path)
        for number in range(1000):
            seen.take("k", str(number))
            queue.put(number)
        signal.pause()

    worker = context.Process(target=take)
    worker.start()
    for _ in range(300):
        last = queue.get()
    os.kill(worker.pid, signal.SIGKILL)  # type: ignore[arg-type]
    worker.join()
    seen = Nonces(tmp_path)
    assert all(code(seen.take, "k", str(number)) == "SignatureNonceUsed" for number in range(last + 1))


def test_an_epoch_ends_and_what_was_seen_is_remembered(tmp_path: Path) -> None:
    clock = Clock(T + EPOCH_SECONDS - 1)
    seen = Nonces(tmp_path, clock=clock)
    seen.take("k", "late")
    clock.now = T + EPOCH_SECONDS
    assert code(seen.take, "k", "late") == "SignatureNonceUsed"
    seen.take("k", "early")
    clock.now = T + EPOCH_SECONDS - 0.5  # the clock is set back
    assert code(seen.take, "k", "early") == "SignatureNonceUsed"
    clock.now = T + 2 * EPOCH_SECONDS - 1  # half an hour after it came; a quarter suffices
    assert code(seen.take, "k", "late") == "SignatureNonceUsed"


def test_processes_that_see_an_epoch_end_differently(tmp_path: Path) -> None:
    before, after = (Nonces(tmp_path, clock=Clock(now)) for now in (T - 0.001, T))
    before.take("k", "a")
    assert code(after.take, "k", "a") == "SignatureNonceUsed"
    after.take("k", "b")
    assert code(Nonces(tmp_path, clock=Clock(T - 0.001)).take, "k", "b") == "SignatureNonceUsed"


def test_nobody_can_choose_where_a_nonce_goes(tmp_path: Path) -> None:
    """Two homes have two keys; all processes of one have the same."""
    places = []
    for home in ("a", "b"):
        (tmp_path / home).mkdir()
        Nonces(tmp_path / home)
        Nonces(tmp_path / home)
        (key,) = (tmp_path / home).glob("nonces-*/key*")
        assert key.stat().st_mode & 0o777 == 0o600
        places.append(key.read_bytes())
    assert len(set(places)) == 2
    assert {len(place) for place in places} == {32}


def test_an_epoch_that_ends_while_a_nonce_is_taken(tmp_path: Path) -> None:
    """It is then in both, so that the next epoch's neighbours find it."""
    ticks = [T - 1, T, T]
    Nonces(tmp_path, clock=lambda: ticks.pop(0)).take("k", "a")
    assert not ticks
    assert code(Nonces(tmp_path, clock=Clock(T + EPOCH_SECONDS)).take, "k", "a") == "SignatureNonceUsed"


def test_old_epochs_and_other_boots_leave_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    seen = Nonces(tmp_path, (32,), clock)
    for epoch in range(6):
        clock.now = T + epoch * EPOCH_SECONDS
        seen.take("k", "a" * epoch)
    (directory,) = tmp_path.iterdir()
    assert len([path for path in directory.iterdir() if path.name != "key"]) == 2
    assert directory.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in directory.iterdir())
    monkeypatch.setattr(nonces, "boot_id", lambda: "another")
    Nonces(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["nonces-another"]


def test_tables_fill_one_after_the_other_and_then_the_access_key_waits(tmp_path: Path) -> None:
    clock = Clock()
    seen = Nonces(tmp_path, (32, 64), clock)
    taken = []
    for number in range(200):
        try:
            seen.take("k", str(number))
        except KmsError as error:
            assert (error.code, error.status) == ("Rejected.Throttling", 429)
            break
        taken.append(str(number))
    assert 64 < len(taken) <= 96
    assert all(code(seen.take, "k", nonce) == "SignatureNonceUsed" for nonce in taken)
    seen.take("other", "a")  # others are not kept out
    clock.now += EPOCH_SECONDS
    assert all(code(seen.take, "k", nonce) == "SignatureNonceUsed" for nonce in taken[:32])
    seen.take("k", "new")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert code(Nonces(tmp_path).take, "k", "a") == "ServiceUnavailableTemporary"
    monkeypatch.undo()
    Nonces(tmp_path).take("k", "a")


# --- throttle ----------------------------------------------------------------------------------------------------------------------


def test_no_rate_is_no_limit() -> None:
    throttle = Throttle(0)
    for _ in range(10_000):
        throttle.take("k")


def test_a_rate_for_each_access_key() -> None:
    clock = Clock(0.0)
    throttle = Throttle(10, clock)
    for _ in range(int(10 * BURST_SECONDS)):
        throttle.take("k")
    with pytest.raises(Throttled) as error:
        throttle.take("k")
    assert (error.value.code, error.value.status, error.value.retryable) == ("Rejected.Throttling", 429, True)
    assert error.value.retry_after == pytest.approx(0.1)
    throttle.take("other")
    clock.now = 0.05
    assert code(throttle.take, "k") == "Rejected.Throttling"  # asking again does not put it off
    clock.now = 0.1001
    throttle.take("k")
    assert code(throttle.take, "k") == "Rejected.Throttling"
    clock.now = 1e9
    for _ in range(int(10 * BURST_SECONDS)):
        throttle.take("k")
    assert code(throttle.take, "k") == "Rejected.Throttling"


def test_a_rate_of_less_than_one_lets_one_through() -> None:
    clock = Clock(0.0)
    throttle = Throttle(0.1, clock)
    throttle.take("k")
    with pytest.raises(Throttled) as error:
        throttle.take("k")
    assert error.value.retry_after == pytest.approx(10)


# --- answers -----------------------------------------------------------------------------------------------------------------------


def test_success() -> None:
    status, headers, body = answers.success({"KeyId": "é\u2028", "RequestId": "r"}, "r")
    assert status == 200
    assert dict(headers) == {
        b"content-type": b"application/json;charset=utf-8",
        b"content-length": str(len(body)).encode(),
        b"x-acs-request-id": b"r",
    }
    assert json.loads(body) == {"KeyId": "é\u2028", "RequestId": "r"}


class Shade(StrEnum):
    DARK = "dark"


def test_an_answer_is_written_as_the_json_module_writes_it() -> None:
    texts = ["", "QUJD" * 2000 + "=", *map(chr, range(0x180)), "a\u2028", "\U0001f511", 'a"', "\\", Shade.DARK]
    for value in [*texts, None, True, 7, 0.5, [], ['"', {"a": "\n"}], {"a": {"b": None}}]:
        answer = {"RequestId": "r", 'odd "name"\n': value}
        assert answers.success(answer, "r")[2] == json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()


def test_failure() -> None:
    request_id = str(uuid.uuid4())
    status, headers, body = answers.failure(KmsError("Forbidden.KeyNotFound", 'no\n"é\ud800'), request_id, "h:1")
    assert status == 404
    assert json.loads(body) == {
        "RequestId": request_id,
        "HttpStatus": 404,
        "Code": "Forbidden.KeyNotFound",
        "Message": 'no\n"é?',
        "HostId": "h:1",
    }
    assert dict(headers) == {
        b"content-type": b"application/json;charset=utf-8",
        b"content-length": str(len(body)).encode(),
        b"x-acs-request-id": request_id.encode(),
    }


@pytest.mark.parametrize(
    ("error", "more"),
    [
        (Throttled(0.02), {b"retry-after": b"1", b"x-acs-retry-after": b"20"}),
        (Throttled(2.5), {b"retry-after": b"3", b"x-acs-retry-after": b"2500"}),
        (KmsError("Rejected.Throttling", "m"), {b"retry-after": b"1", b"x-acs-retry-after": b"1000"}),
        (KmsError("ServiceUnavailableTemporary", "m"), {b"retry-after": b"1"}),
        (KmsError("InternalFailure", "m"), {}),
    ],
)
def test_when_to_come_again(error: KmsError, more: dict[bytes, bytes]) -> None:
    _, headers, _ = answers.failure(error, "r", "h")
    assert {name: value for name, value in headers if b"retry" in name} == more


def test_the_end_of_a_connection() -> None:
    _, headers, _ = answers.failure(KmsError("InternalFailure", "m"), "r", "h", close=True)
    assert (b"connection", b"close") in headers
