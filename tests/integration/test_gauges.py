"""What an open engine counts and says of itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import kmscore
from kmscore import counts
from kmscore.bootstrap import open_kms
from kmscore.custody.fake import Crash, FakeKeeper, FakeToken
from kmscore.engine.gauges import Gauges
from kmscore.engine.kms import Kms
from kmscore.errors import KmsError
from kmscore.results import DueStatus

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def clock() -> kmscore.FixedClock:
    return kmscore.FixedClock(START)


@pytest.fixture
def kms(tmp_path: Path, clock: kmscore.FixedClock) -> Iterator[Kms]:
    with kmscore.open_kms(tmp_path / "home", clock=clock) as kms:
        yield kms


def test_the_cache(kms: Kms) -> None:
    def loads() -> int:
        return sum(number for (name, _), number in counts.counted().items() if name == counts.KEY_LOADS)

    before = loads()
    key_id = kms.create_key(protection_level="HSM").key_id
    for _ in range(3):
        kms.encrypt(key_id, b"x")
    found = kms.gauges.own()
    assert (found["key_views"], found["keys_loaded"], loads() - before) == (1, 1, 1)
    assert found["token_sessions"] >= 1
    assert found["token_session_keys"] >= 1
    kms.disable_key(key_id)
    assert kms.gauges.own()["keys_loaded"] == 0
    kms.enable_key(key_id)
    kms.encrypt(key_id, b"x")
    for _ in range(2):
        kms._s.ring.drop_idle()
    assert (kms.gauges.own()["keys_loaded"], loads() - before) == (0, 2)


def test_due_work_and_the_log(kms: Kms, clock: kmscore.FixedClock) -> None:
    before = kms.gauges.stored()
    assert (before["due_backlog"], before["due_oldest_seconds"], before["open_intents"]) == (0, 0, 0)
    for _ in range(2):
        kms.schedule_key_deletion(kms.create_key().key_id, pending_window_in_days=7)
        clock.advance(timedelta(seconds=10))
    clock.advance(timedelta(days=7))
    found = kms.gauges.stored()
    assert (found["due_backlog"], found["due_oldest_seconds"]) == (2, 20)
    assert found["log_position"] == before["log_position"] + 8  # of each: created, requested, activated, scheduled
    assert found["due_parked"] == found["workers_alive"] == 0
    assert "sweep_age_seconds" not in found
    kms.run_due()
    assert kms.gauges.stored()["due_backlog"] == 0


def test_the_age_of_an_open_intent_is_that_of_the_event_that_opened_it(tmp_path: Path, clock: kmscore.FixedClock) -> None:
    hsm = FakeKeeper(FakeToken())
    with open_kms(tmp_path / "home", clock=clock, hsm=hsm, intent_wait_seconds=0.01) as kms:
        keys = [kms.create_key(protection_level="HSM").key_id for _ in range(2)]

        def dies(*_: object) -> None:
            raise Crash("in the middle of it")

        hsm.generate = dies  # type: ignore[method-assign, assignment]
        for key_id in keys:
            with pytest.raises(Crash):
                kms.rotate_key(key_id)
            clock.advance(timedelta(minutes=1))
        kms.update_key_description(keys[0], description="a later event of the same key")
        found = kms.gauges.stored()
        assert (found["open_intents"], found["open_intent_oldest_seconds"]) == (2, 120)


def test_what_is_told_by_others(kms: Kms) -> None:
    services = kms._s
    due = DueStatus(backlog=3, oldest_due_seconds=4.0, parked=5, last_sweep_seconds_ago=6.0, workers_alive=2)
    more = Gauges(services.ring, {}, services.gauges._stored, services.clock, lambda: due, lambda: 0.5)
    assert more.own()["lease_age_seconds"] == 0.5
    told = more.stored()
    names = ("due_backlog", "due_oldest_seconds", "due_parked", "sweep_age_seconds", "workers_alive")
    assert [told[name] for name in names] == [3, 4.0, 5, 6.0, 2]


def test_a_change_is_a_line_in_the_log(kms: Kms, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "kmscore"), kms.acting(None, "request-1"):
        key_id = kms.create_key().key_id
        kms.create_alias(key_id, alias_name="alias/a")
    told = [record.__dict__["told"] for record in caplog.records]
    assert [(fields.get("key_id"), fields["events"], fields["request_id"]) for fields in told] == [
        (key_id, ["KeyCreated", "MaterialRequested"], "request-1"),
        (key_id, ["MaterialActivated"], "request-1"),
        (None, ["AliasBound"], "request-1"),
    ]


def test_a_store_that_is_closed_is_counted(tmp_path: Path) -> None:
    def reads() -> int:
        return counts.counted().get((counts.STORE_ERRORS, ("read",)), 0)

    with kmscore.open_kms(tmp_path / "home", ticker=False) as kms:
        gauges = kms.gauges
    before = reads()
    with pytest.raises(KmsError):
        gauges.stored()
    assert reads() == before + 1
    gauges.own()
