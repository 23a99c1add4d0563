"""Every crash point of an import, of a removal of imported material and of its expiry: as in test_crash_points.py, on both levels."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta

import peers
import pytest
from test_crash_points import CONTEXT, Case, World, check, commits_are_steps, crash_at_each_step, run

from kmscore.custody.fake import FakeToken
from kmscore.engine.kms import Kms
from kmscore.results import ImportParameters

assert commits_are_steps  # the fixture that makes each commit a step

MATERIAL = bytes(range(32))
NEXT = bytes(range(1, 33))
ALGORITHM = "RSAES_OAEP_SHA_1"


def offer(world: World, kms: Kms) -> ImportParameters:
    return kms.get_parameters_for_import(world.key, wrapping_algorithm=ALGORITHM, wrapping_key_spec="RSA_2048")


def prepare(level: str, *, imported: bool, hours: int = 0) -> Callable[[World], None]:
    """An external key with an offer; with its material, that ends after some hours, where asked for."""

    def make(world: World) -> None:
        with world.process() as kms:
            world.key = kms.create_key(protection_level=level, origin="EXTERNAL").key_id
            world.offer = offer(world, kms)  # type: ignore[attr-defined]
            if imported:
                bring(world, kms, MATERIAL, hours)
                world.blob = kms.encrypt(world.key, b"before", CONTEXT).ciphertext_blob
        if hours:
            world.clock.advance(timedelta(hours=hours))

    return make


def bring(world: World, kms: Kms, material: bytes = MATERIAL, hours: int = 0) -> None:
    offer: ImportParameters = world.offer  # type: ignore[attr-defined]
    wrapped = peers.wrap(offer.public_key, ALGORITHM, material)
    expires = int((world.clock.now() + timedelta(hours=hours)).timestamp()) if hours else None
    kms.import_key_material(world.key, encrypted_key_material=wrapped, import_token=offer.import_token, key_material_expire_unix=expires)


def bring_again_longer(world: World, kms: Kms) -> None:
    bring(world, kms, MATERIAL, 1000)


def bring_next(world: World, kms: Kms) -> None:
    offer: ImportParameters = world.offer  # type: ignore[attr-defined]
    wrapped = peers.wrap(offer.public_key, ALGORITHM, NEXT)
    kms.import_next_key_material(world.key, encrypted_key_material=wrapped, import_token=offer.import_token)


def ask_for_parameters(world: World, kms: Kms) -> None:
    offer(world, kms)


def delete(world: World, kms: Kms) -> None:
    kms.delete_key_material(world.key)


def expire(world: World, kms: Kms) -> None:
    kms.run_due()


def check_import(world: World, kms: Kms) -> None:
    """Whatever happened, the import can be done (again), with the token that was there before."""
    bring(world, kms)
    assert kms.decrypt(kms.encrypt(world.key, b"x").ciphertext_blob).plaintext == b"x"
    if world.blob:
        assert kms.decrypt(world.blob, CONTEXT).plaintext == b"before"
    # Every pair ends with its time, also one of a call that died.
    world.clock.advance(timedelta(hours=25))
    kms.run_due()
    assert kms._s.queries.live_imports(world.key) == []


def check_next(world: World, kms: Kms) -> None:
    assert kms.decrypt(world.blob, CONTEXT).plaintext == b"before"
    assert kms.list_key_versions(world.key).total_count in (1, 2)
    check_import(world, kms)


def cases(level: str) -> dict[str, Case]:
    return {
        "offer": Case(ask_for_parameters, prepare(level, imported=False), check_import),
        "import": Case(bring, prepare(level, imported=False), check_import),
        "import-again": Case(bring_again_longer, prepare(level, imported=True), check_import),
        "import-next": Case(bring_next, prepare(level, imported=True), check_next),
        "delete": Case(delete, prepare(level, imported=True), check_import),
        "expire": Case(expire, prepare(level, imported=True, hours=2), check_import),
    }


@pytest.mark.parametrize("level", ["HSM", "SOFTWARE"])
@pytest.mark.parametrize("name", cases("HSM"))
def test_a_crash_at_each_step(name: str, level: str, commits_are_steps: list[FakeToken]) -> None:
    crash_at_each_step(cases(level)[name], commits_are_steps)


@pytest.mark.parametrize("level", ["HSM", "SOFTWARE"])
def test_a_failed_attempt_leaves_nothing_and_counts(level: str, commits_are_steps: list[FakeToken]) -> None:
    world = World()
    prepare(level, imported=False)(world)
    with world.process() as kms:
        before = dict(world.token.objects)
        offer: ImportParameters = world.offer  # type: ignore[attr-defined]
        for _ in range(3):
            with pytest.raises(Exception, match="InvalidKeyMaterial"):
                kms.import_key_material(world.key, encrypted_key_material=os.urandom(256), import_token=offer.import_token)
        assert world.token.objects == before
        key = kms._s.store.key(world.key)
        assert key is not None
        assert list(key.failed_imports.values()) == [3]
    check(Case(bring, prepare(level, imported=False), check_import), world)


def test_a_killed_attempt_counts_as_a_failed_one(commits_are_steps: list[FakeToken]) -> None:
    case = cases("HSM")["import"]
    world = World()
    case.prepare(world)
    assert run(case, world, commits_are_steps, 1)
    with world.process() as kms:
        key = kms._s.store.key(world.key)
        assert key is not None
        assert list(key.failed_imports.values()) == [1]
        assert key.settled  # the start gave it up
    check(case, world)
