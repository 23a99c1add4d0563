"""Imports on a home of each test's own: the end of tokens and pairs, unwrapping by the host, and a thousand wrong wrappings."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import timedelta

import peers
import pytest
from cryptography.hazmat.primitives.serialization import load_der_public_key
from custody_helpers import fast_directory
from test_import import LEVELS, World
from test_kms import START, code

import kmscore
from kmscore import FixedClock, KmsError
from kmscore.results import ImportParameters


@pytest.mark.parametrize("level", LEVELS)
def test_an_old_token_is_expired_and_its_pair_is_gone(level: str) -> None:
    clock = FixedClock(START)
    with fast_directory() as directory, kmscore.open_kms(directory / "home", clock=clock) as kms:
        world = World(kms, clock)
        key, material = world.key(level), os.urandom(32)
        empty = world.custody()
        offer = world.offer(key)
        clock.advance(timedelta(hours=24) - timedelta(seconds=1))
        world.bring(key, material, offer=offer)
        clock.advance(timedelta(seconds=1))
        assert code(world.bring, key, material, offer=offer) == "ExpiredImportToken"
        kms.delete_key_material(key)
        assert kms.run_due().destroyed == ()  # a pair is no key of anybody's
        assert world.custody() == empty
        assert code(world.bring, key, material, offer=offer) == "ExpiredImportToken"


@pytest.mark.parametrize("level", LEVELS)
def test_expired_pairs_go_without_a_scheduler_and_with_their_key(level: str) -> None:
    clock = FixedClock(START)
    with fast_directory() as directory, kmscore.open_kms(directory / "home", clock=clock) as kms:
        world = World(kms, clock)
        key = world.key(level)
        empty = world.custody()
        for _ in range(8):
            world.offer(key)
        assert code(world.offer, key) == "Rejected.LimitExceeded"
        clock.advance(timedelta(hours=24))
        world.offer(key)
        assert len(kms._s.queries.live_imports(key)) == 1
        kms.schedule_key_deletion(key, pending_window_in_days=7)
        clock.advance(timedelta(hours=1))
        world.offer(key)  # allowed in every state (SEMANTICS section 1)
        clock.advance(timedelta(days=7))
        kms.run_due()
        assert world.custody() == empty


# --- by the host, where a token cannot -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["RSAES_OAEP_SHA_256", "RSA_AES_KEY_WRAP_SHA_256"])
def test_unwrapping_by_the_host_is_a_choice_of_the_operator(algorithm: str) -> None:
    clock = FixedClock(START)
    with fast_directory() as directory, kmscore.open_kms(directory / "home", clock=clock, allow_host_unwrap=True) as kms:
        world = World(kms, clock)
        key, material = world.key("HSM"), os.urandom(32)
        world.bring(key, material, algorithm)
        world.opens(material, key)
        (event,) = [event for event in kms.history(key) if event["event"] == "MaterialImported"]
        assert event["facts"]["facts"]["unwrapped_in"] == "host"
        assert code(world.bring, key, os.urandom(32), algorithm) == "InvalidKeyMaterial"
        world.custody()


def test_the_choice_is_asked_again_when_the_material_comes() -> None:
    clock = FixedClock(START)
    with fast_directory() as directory:
        with kmscore.open_kms(directory / "home", clock=clock, allow_host_unwrap=True) as kms:
            world = World(kms, clock)
            key = world.key("HSM")
            offer = world.offer(key, "RSAES_OAEP_SHA_256")
        with kmscore.open_kms(directory / "home", clock=clock) as kms:
            world = World(kms, clock)
            assert code(world.bring, key, os.urandom(32), "RSAES_OAEP_SHA_256", offer) == "InvalidParameter"
            assert kms.describe_key(key).key_state == "PendingImport"
            world.custody()


# --- oracles -------------------------------------------------------------------------------------------------------------------------


def mutations(algorithm: str, offer: ImportParameters, number: int) -> Iterator[bytes]:
    """Wrapped bytes that are wrong in every way an attacker can make them: paddings of their own under the public key among them."""
    public = load_der_public_key(offer.public_key).public_numbers()  # type: ignore[union-attr]
    size = (public.n.bit_length() + 7) // 8  # type: ignore[union-attr]

    def raw(encoded: bytes) -> bytes:
        return pow(int.from_bytes(encoded), public.e, public.n).to_bytes(size)  # type: ignore[union-attr]

    good = peers.wrap(offer.public_key, algorithm, os.urandom(32))
    filler = bytes(1 + b % 255 for b in os.urandom(size))
    kinds: list[Callable[[], bytes]] = [
        lambda: os.urandom(size),
        lambda: bytes(b ^ (1 << (i % 8)) if i == number % size else b for i, b in enumerate(good)),
        lambda: good[:-1],
        lambda: good + b"\0",
        lambda: raw(b"\0\2" + filler[: size - 36] + b"\0" + os.urandom(33)),  # one byte too many
        lambda: raw(b"\0\2" + filler[: size - 34] + b"\0" + os.urandom(31)),
        lambda: raw(b"\0\1" + filler[: size - 35] + b"\0" + os.urandom(32)),  # another block type
        lambda: raw(b"\0\2" + filler[: size - 2]),  # no end of the padding
        lambda: raw(b"\0" + os.urandom(size - 1)),  # Manger: the first byte is right
        lambda: raw(b"\0" * 20 + os.urandom(size - 20)),
        lambda: peers.encrypt(offer.public_key, "RSAES_PKCS1_V1_5", os.urandom(16)),
        lambda: peers.encrypt(offer.public_key, "RSAES_OAEP_SHA_1", os.urandom(64)),
        lambda: (public.n).to_bytes(size),  # type: ignore[union-attr]
        lambda: bytes(size),
    ]
    yield kinds[number % len(kinds)]()


def batter(level: str, algorithms: list[str], attempts: int) -> None:
    clock = FixedClock(START)
    with fast_directory() as directory, kmscore.open_kms(directory / "home", clock=clock, import_failure_seconds=0.01) as kms:
        world = World(kms, clock)
        key = world.key(level)
        empty = world.custody()
        errors = set()
        for number in range(attempts):
            algorithm = algorithms[number // 8 % len(algorithms)]
            if number % 8 == 0:
                offer = world.offer(key, algorithm)
            for wrapped in mutations(algorithm, offer, number):
                with pytest.raises(KmsError) as refused:
                    kms.import_key_material(key, encrypted_key_material=wrapped, import_token=offer.import_token)
                errors.add((refused.value.code, refused.value.message, refused.value.status))
        assert errors == {("InvalidKeyMaterial", "The key material is not valid.", 400)}
        clock.advance(timedelta(hours=24))
        kms.run_due()
        assert world.custody() == empty


@pytest.mark.parametrize("level", LEVELS)
def test_mutated_wrappings_have_one_answer(level: str) -> None:
    batter(level, ["RSAES_PKCS1_V1_5", "RSAES_OAEP_SHA_1", "RSA_AES_KEY_WRAP_SHA_1"], 48)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("level", LEVELS)
def test_a_thousand_mutated_wrappings_have_one_answer(level: str) -> None:
    batter(level, ["RSAES_PKCS1_V1_5", "RSAES_OAEP_SHA_1", "RSA_AES_KEY_WRAP_SHA_1"], 1000)
