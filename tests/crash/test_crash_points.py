"""Every crash point of create, rotate and destroy, enumerated: before, inside and after each call of the custody and each commit, on the
fake token (which leaves what SoftHSM leaves); then a crash at each step of the recovery as well. Real kills are in test_kills.py.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kmscore import FixedClock, KmsError
from kmscore.bootstrap import open_kms
from kmscore.custody.fake import Crash, FakeKeeper, FakeToken
from kmscore.domain.key import Key
from kmscore.domain.specs import ProtectionLevel
from kmscore.engine.kms import Kms
from kmscore.store.keystore import KeyStore

START = datetime(2030, 1, 1, tzinfo=UTC)
CONTEXT = {"test": "crash"}


class World:
    """One home and one token that outlive the processes."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="kms-crash-"))
        self.token = FakeToken()
        self.clock = FixedClock(START)
        self.key = ""
        self.blob = b""

    @contextmanager
    def process(self) -> Iterator[Kms]:
        with open_kms(self.home, clock=self.clock, hsm=FakeKeeper(self.token)) as kms:
            yield kms

    def prepare(self, level: str) -> None:
        with self.process() as kms:
            self.key = kms.create_key(protection_level=level).key_id
            kms.create_alias(self.key, alias_name="alias/crash")
            self.blob = kms.encrypt(self.key, b"before", CONTEXT).ciphertext_blob

    def schedule(self) -> None:
        with self.process() as kms:
            kms.schedule_key_deletion(self.key, pending_window_in_days=7)
        self.clock.advance(timedelta(days=7))


Scenario = Callable[[World, Kms], None]


@dataclass(frozen=True)
class Case:
    """What runs in a world that was prepared; `check` looks at more than the invariants, afterwards."""

    run: Scenario
    prepare: Callable[[World], None]
    check: Scenario


def create_hsm(world: World, kms: Kms) -> None:
    kms.create_key(protection_level="HSM")


def create_software(world: World, kms: Kms) -> None:
    kms.create_key(protection_level="SOFTWARE")


def rotate(world: World, kms: Kms) -> None:
    kms.rotate_key(world.key)


def destroy(world: World, kms: Kms) -> None:
    kms.run_due()


def prepare_hsm(world: World) -> None:
    world.prepare("HSM")


def prepare_software(world: World) -> None:
    world.prepare("SOFTWARE")


def due(prepare: Callable[[World], None]) -> Callable[[World], None]:
    def both(world: World) -> None:
        prepare(world)
        world.schedule()

    return both


def check_alive(world: World, kms: Kms) -> None:
    for item in kms.list_keys(page_size=100).items:
        assert kms.describe_key(item.key_id).key_state == "Enabled"
        assert kms.decrypt(kms.encrypt(item.key_id, b"x").ciphertext_blob).plaintext == b"x"
    assert kms.decrypt(world.blob, CONTEXT).plaintext == b"before"
    assert kms.rotate_key(world.key)  # nothing stands in the way of the next one


def check_gone(world: World, kms: Kms) -> None:
    assert kms.list_keys().items == ()
    assert kms.list_aliases().total_count == 0
    for call in (lambda: kms.describe_key(world.key), lambda: kms.decrypt(world.blob, CONTEXT)):
        with pytest.raises(KmsError, match="KeyNotFound"):
            call()


SCENARIOS: dict[str, Case] = {
    "create-hsm": Case(create_hsm, prepare_hsm, check_alive),
    "create-software": Case(create_software, prepare_software, check_alive),
    "rotate-hsm": Case(rotate, prepare_hsm, check_alive),
    "rotate-software": Case(rotate, prepare_software, check_alive),
    "destroy-hsm": Case(destroy, due(prepare_hsm), check_gone),
    "destroy-software": Case(destroy, due(prepare_software), check_gone),
}


@pytest.fixture(autouse=True)
def commits_are_steps(monkeypatch: pytest.MonkeyPatch) -> list[FakeToken]:
    """Each append passes a crash point before its commit and one after it."""
    current: list[FakeToken] = []
    append = KeyStore.append

    def stepping(store: KeyStore, *aggregates: object, **more: object) -> None:
        if current:
            current[0].faults.pass_by("commit.before")
        append(store, *aggregates, **more)  # type: ignore[arg-type]
        if current:
            current[0].faults.pass_by("commit.after")

    monkeypatch.setattr(KeyStore, "append", stepping)
    return current


def build(case: Case) -> World:
    world = World()
    case.prepare(world)
    return world


def run(case: Case, world: World, current: list[FakeToken], crash_at: int | None) -> bool:
    """Run the scenario in a process that dies at a step; answers whether it died."""
    try:
        with world.process() as kms:
            current[:] = [world.token]
            world.token.faults.clear()
            if crash_at is not None:
                world.token.faults.crash_at_step(crash_at)
            case.run(world, kms)
    except Crash:
        return True
    finally:
        current.clear()
    return False


def recover(world: World, current: list[FakeToken], crash_at: int | None) -> bool:
    try:
        world.token.faults.clear()
        current[:] = [world.token]
        if crash_at is not None:
            world.token.faults.crash_at_step(crash_at)
        with world.process() as kms:
            kms.run_due()
            kms.reconcile()
    except Crash:
        return True
    finally:
        current.clear()
        passed = list(world.token.faults.passed)
        world.token.faults.clear()
        world.token.faults.passed.extend(passed)
    return False


def check(case: Case, world: World) -> None:
    """The invariants I1, I2, I6 of the reliability page, by behaviour and by what the custodies hold."""
    world.token.faults.clear()
    with world.process() as kms:
        again = kms.reconcile()
        assert again == type(again)(), again  # nothing left to do, nothing unexplained
        case.check(world, kms)
        states = kms._s.queries.material_states()
        live = {material for material, (_, level, state) in states.items() if state == "active" and level == "HSM"}
        assert set(world.token.objects) == live
        assert world.token.fragments == 0
        assert kms._s.queries.open_intents() == []
    shutil.rmtree(world.home)


def crash_at_each_step(case: Case, current: list[FakeToken]) -> None:
    world = build(case)
    assert not run(case, world, current, None)
    steps = len(world.token.faults.passed)
    assert steps >= 4
    check(case, world)
    for step in range(steps):
        world = build(case)
        assert run(case, world, current, step)
        assert not recover(world, current, None)
        check(case, world)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_crash_at_each_step(name: str, commits_are_steps: list[FakeToken]) -> None:
    crash_at_each_step(SCENARIOS[name], commits_are_steps)


@pytest.mark.parametrize("name", ["create-hsm", "rotate-hsm", "destroy-hsm"])
def test_a_crash_at_each_step_of_the_recovery(name: str, commits_are_steps: list[FakeToken]) -> None:
    case = SCENARIOS[name]
    world = build(case)
    run(case, world, commits_are_steps, None)
    steps = len(world.token.faults.passed)
    shutil.rmtree(world.home)
    for step in range(steps):
        again = 0
        while True:
            world = build(case)
            assert run(case, world, commits_are_steps, step)
            if not recover(world, commits_are_steps, again):
                check(case, world)
                break  # the recovery has fewer steps than that
            assert not recover(world, commits_are_steps, None)
            check(case, world)
            again += 1


def test_a_failure_is_cleared_away_at_once_and_answered(commits_are_steps: list[FakeToken]) -> None:
    world = build(SCENARIOS["rotate-hsm"])
    with world.process() as kms:
        before = set(world.token.objects)
        for point in ("generate.before", "generate.half", "generate.after"):
            world.token.faults.at(point, KmsError("ServiceUnavailableTemporary", "the token stumbled"))
            with pytest.raises(KmsError, match="stumbled"):
                kms.rotate_key(world.key)
            assert set(world.token.objects) == before
            assert kms._s.queries.open_intents() == []
        assert kms.rotate_key(world.key)
    check(SCENARIOS["rotate-hsm"], world)


def test_what_cannot_be_cleared_away_is_remembered_and_stands_in_nobodys_way(commits_are_steps: list[FakeToken]) -> None:
    world = build(SCENARIOS["rotate-hsm"])
    with world.process() as kms:
        world.token.faults.at("generate.half", KmsError("ServiceUnavailableTemporary", "gone"))
        world.token.faults.at("destroy.before", KmsError("ServiceUnavailableTemporary", "gone"))
        with pytest.raises(KmsError, match="gone"):
            kms.rotate_key(world.key)
        assert len(kms._s.lifecycle._effects._remains.all()) == 1
        assert kms.rotate_key(world.key)
        assert len(kms._s.lifecycle._effects._remains.all()) == 1
        assert kms._s.reconciler.recover().pending == ()
        assert kms._s.lifecycle._effects._remains.all() == []
    check(SCENARIOS["rotate-hsm"], world)


def test_a_recovery_that_comes_late_destroys_nothing_that_lives(commits_are_steps: list[FakeToken]) -> None:
    """It took the owner for dead and read the stream; then the owner came to its end. On several nodes nobody can be sure of a death."""
    world = build(SCENARIOS["rotate-hsm"])
    with world.process() as owner, world.process() as other:
        read = other._s.store.key
        late = []

        def outcome_comes_in_between() -> None:
            late.append(read(world.key))

        world.token.faults.at("generate.after", outcome_comes_in_between)
        owner.rotate_key(world.key)
        (stale,) = late
        assert stale is not None
        assert stale.open_intent is not None
        material_id = bytes.fromhex(stale.open_intent.material_id)
        other._s.lifecycle._effects._store = StaleOnce(other._s.store, stale)  # type: ignore[assignment]
        keeper = other._s.lifecycle._effects._keepers[ProtectionLevel.HSM]
        assert not other._s.lifecycle._effects._abandon(world.key, keeper, material_id, other._s.lifecycle.by)
        assert material_id in world.token.objects
    check(SCENARIOS["rotate-hsm"], world)


class StaleOnce:
    """A store that was read before something happened."""

    def __init__(self, store: KeyStore, stale: Key) -> None:
        self.append = store.append
        self._store = store
        self._stale: Key | None = stale

    def key(self, key_id: str) -> Key | None:
        stale, self._stale = self._stale, None
        return stale or self._store.key(key_id)


def test_an_attempt_that_was_given_up_by_another_process_is_not_activated(commits_are_steps: list[FakeToken]) -> None:
    """A recovery took this process for dead, and abandoned its attempt while the custody was still at work on it."""
    world = build(SCENARIOS["rotate-hsm"])
    with world.process() as kms:
        before = set(world.token.objects)

        def give_up() -> None:
            key = kms._s.store.key(world.key)
            assert key is not None
            assert key.open_intent is not None
            key.material_abandoned(bytes.fromhex(key.open_intent.material_id), kms._s.lifecycle.by())
            kms._s.store.append(key)

        world.token.faults.at("generate.after", give_up)
        with pytest.raises(KmsError) as refused:
            kms.rotate_key(world.key)
        assert refused.value.code == "ServiceUnavailableTemporary"
        assert set(world.token.objects) == before
        assert kms.list_key_versions(world.key).total_count == 1
    check(SCENARIOS["rotate-hsm"], world)


def test_an_object_that_no_event_explains_is_reported_and_left_alone(commits_are_steps: list[FakeToken]) -> None:
    world = build(SCENARIOS["create-hsm"])
    stranger = bytes(range(16))
    from kmscore.custody.fake import FakeObject

    world.token.objects[stranger] = FakeObject(f"kmscore/test/{stranger.hex()}", b"k" * 32)
    with world.process() as kms:
        assert kms.reconcile().quarantined == (f"HSM {stranger.hex()}",)
    assert stranger in world.token.objects


def test_a_destroyed_object_that_is_back_is_destroyed_again(commits_are_steps: list[FakeToken]) -> None:
    """An older copy of the token was restored."""
    world = build(SCENARIOS["destroy-hsm"])
    kept = dict(world.token.objects)
    with world.process() as kms:
        assert kms.run_due().destroyed == (world.key,)
        gone = set(kept) - set(world.token.objects)
        assert len(gone) == 1
        world.token.objects.update(kept)
        assert set(kms.reconcile().removed) == {material.hex() for material in gone}
    check(SCENARIOS["destroy-hsm"], world)


def test_destruction_waits_for_a_call_in_flight(commits_are_steps: list[FakeToken]) -> None:
    world = build(SCENARIOS["rotate-hsm"])
    with world.process() as kms:
        kms.encrypt(world.key, b"x")
        material = next(m for m, (key, _, _) in kms._s.queries.material_states().items() if key == world.key)
        kms.schedule_key_deletion(world.key, pending_window_in_days=7)
        world.token.busy.add(material)
        world.clock.advance(timedelta(days=7))
    # A new process does not hold the key: nothing stands in the way once the old one is gone.
    world.token.busy.clear()
    with world.process() as kms:
        assert kms.run_due().destroyed == (world.key,)
    check(SCENARIOS["destroy-hsm"], world)
