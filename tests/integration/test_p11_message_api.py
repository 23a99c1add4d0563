"""The message functions of PKCS#11 3.0 on the hot path, on NSS softoken: the same blobs as by any other way, set up once for each key."""

from __future__ import annotations

import gc
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import test_p11_aead as aead
from asym_helpers import Bench, nss_module, open_nss
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from p11_helpers import AAD, HEADER, Shim, build_shim, open_rig, xaes_subkey
from test_p11_faults import Background

from kmscore.custody._p11 import AeadKey, Secret, soft_key
from kmscore.errors import KmsError, TokenError


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    return build_shim(tmp_path_factory.mktemp("shim"), nss_module())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, built: Shim) -> Iterator[Bench]:
    with open_nss(tmp_path_factory.mktemp("token"), path=built.path) as bench:
        assert bench.token.message_api
        yield bench


@pytest.fixture
def rig(shared: Bench, shim: Shim) -> Iterator[Bench]:
    """The shared token; what a test made must be gone from it when the test ends."""
    live = shared.token.live_derived
    yield shared
    shared.token.derived_limit = 4096
    gc.collect()
    assert shared.token.live_derived == live


@pytest.fixture(params=[1, 2], ids=["suite1", "suite2"])
def key(rig: Bench, request: pytest.FixtureRequest) -> Iterator[AeadKey]:
    handle = rig.key(derives=request.param == 1)
    key = rig.token.xaes_key(handle) if request.param == 1 else rig.token.gcm_key(handle)
    yield key
    assert key.retire()


# What holds on SoftHSM holds here.
test_round_trip = aead.test_round_trip
test_headers_and_associated_data_of_any_size = aead.test_headers_and_associated_data_of_any_size
test_kinds_of_input = aead.test_kinds_of_input
test_a_long_plaintext_is_refused = aead.test_a_long_plaintext_is_refused
test_every_damage_gives_the_one_opaque_error = aead.test_every_damage_gives_the_one_opaque_error
test_another_key_gives_the_opaque_error = aead.test_another_key_gives_the_opaque_error
test_errors_do_not_poison_sessions = aead.test_errors_do_not_poison_sessions
test_batch = aead.test_batch
test_a_batch_of_the_greatest_messages = aead.test_a_batch_of_the_greatest_messages
test_a_batch_takes_every_kind_and_every_sequence = aead.test_a_batch_takes_every_kind_and_every_sequence
test_bad_items_spoil_no_others = aead.test_bad_items_spoil_no_others
test_an_epoch_ends_after_its_messages = aead.test_an_epoch_ends_after_its_messages
test_derived_keys_are_kept_in_order_of_use_up_to_the_limit = aead.test_derived_keys_are_kept_in_order_of_use_up_to_the_limit
test_retire = aead.test_retire
test_a_fresh_key_after_retirement = aead.test_a_fresh_key_after_retirement


@pytest.mark.parametrize("suite", [1, 2])
def test_others_read_what_it_writes_and_the_other_way_round(rig: Bench, suite: int) -> None:
    value = os.urandom(32)
    handle = rig.key(value, derives=suite == 1)
    key = rig.token.xaes_key(handle) if suite == 1 else rig.token.gcm_key(handle)
    software = soft_key(Secret.copy_of(value), suite)
    texts = [os.urandom(size) for size in (0, 1, 15, 16, 17, 1000, 8192)]
    n = 19 + aead.NONCE[suite]
    for text, blob in zip(texts, key.encrypt_batch(HEADER, AAD, texts), strict=True):
        assert isinstance(blob, bytes)
        nonce = blob[19:n]
        gcm_key = xaes_subkey(value, nonce) if suite == 1 else value
        assert AESGCM(gcm_key).decrypt(nonce[-12:], blob[n:], AAD) == text
        assert software.decrypt(19, AAD, blob) == text
    assert key.decrypt_batch(19, AAD, software.encrypt_batch(HEADER, AAD, texts)) == texts  # type: ignore[arg-type]


# --- how often what is called ------------------------------------------------------------------------------------------------------


def count(shim: Shim, work: Callable[[], object]) -> dict[str, int]:
    before = {name: shim.calls(name) for name in shim.FUNCTIONS}
    work()
    return {name: made for name in shim.FUNCTIONS if (made := shim.calls(name) - before[name])}


def test_a_run_is_set_up_once(shim: Shim, key: AeadKey) -> None:
    blobs: list[Any] = key.encrypt_batch(HEADER, AAD, [b"x"] * 200)
    assert count(shim, lambda: key.encrypt_batch(HEADER, AAD, [b"x"] * 200)) == {
        "C_MessageEncryptInit": 1,
        "C_EncryptMessage": 200,
        "C_MessageEncryptFinal": 1,
    }
    assert count(shim, lambda: key.decrypt_batch(19, AAD, blobs)) == {
        "C_MessageDecryptInit": 1,
        "C_DecryptMessage": 200,
        "C_MessageDecryptFinal": 1,
    }
    assert count(shim, lambda: key.encrypt(HEADER, AAD, b"x")) == {
        "C_MessageEncryptInit": 1,
        "C_EncryptMessage": 1,
        "C_MessageEncryptFinal": 1,
    }


def test_a_run_over_several_keys_is_set_up_anew_for_each(rig: Bench, shim: Shim) -> None:
    key = rig.token.xaes_key(rig.key(), 2)
    blobs: list[Any] = key.encrypt_batch(HEADER, AAD, [b"%d" % number for number in range(8)])
    made = count(shim, lambda: key.decrypt_batch(19, AAD, blobs))
    assert made == {"C_MessageDecryptInit": 4, "C_DecryptMessage": 8, "C_MessageDecryptFinal": 4}
    answers: list[bytes | KmsError] = []
    made = count(shim, lambda: answers.extend(key.decrypt_batch(19, AAD, [blobs[n] for n in (0, 2, 4, 6, 1, 3, 5, 7)])))
    assert made == {"C_MessageDecryptInit": 8, "C_DecryptMessage": 8, "C_MessageDecryptFinal": 8}
    assert answers == [b"0", b"2", b"4", b"6", b"1", b"3", b"5", b"7"]


# --- failures ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["C_MessageEncryptInit", "C_EncryptMessage"])
@pytest.mark.parametrize("rv", [0x02, 0x05, 0x06, 0x30, 0x32, 0xE0, 0x101, 0x190])
def test_a_token_that_is_away(rig: Bench, shim: Shim, function: str, rv: int) -> None:
    key = rig.token.gcm_key(rig.key(derives=False))
    blob = key.encrypt(HEADER, AAD, b"x")
    sessions = rig.token.live_sessions
    shim.fail(function, rv)
    with pytest.raises(TokenError) as caught:
        key.encrypt(HEADER, AAD, b"x")
    assert (caught.value.function, caught.value.rv) == (function, rv)
    assert rig.token.live_sessions == sessions - 1
    assert key.decrypt(19, AAD, blob) == b"x"
    assert rig.token.live_sessions == sessions


def test_an_item_that_fails_costs_its_session_and_no_other_item(shim: Shim, key: AeadKey) -> None:
    texts = [b"%d" % number for number in range(20)]
    key.encrypt(HEADER, AAD, b"x")
    shim.fail("C_EncryptMessage", 0x30, skip=7, times=2)
    opened = shim.calls("C_OpenSession")
    blobs = key.encrypt_batch(HEADER, AAD, texts)
    assert [index for index, blob in enumerate(blobs) if isinstance(blob, TokenError)] == [7, 8]
    assert shim.calls("C_OpenSession") - opened == 2
    good = [blob for blob in blobs if isinstance(blob, bytes)]
    assert key.decrypt_batch(19, AAD, good) == texts[:7] + texts[9:]
    shim.fail("C_MessageEncryptInit", 0x30)
    blobs = key.encrypt_batch(HEADER, AAD, texts)
    assert [index for index, blob in enumerate(blobs) if isinstance(blob, TokenError)] == [0]
    shim.fail("C_DecryptMessage", 0x32, skip=3)
    answers = key.decrypt_batch(19, AAD, good)
    assert isinstance(answers[3], TokenError) and answers[:3] + answers[4:] == texts[:3] + texts[4:7] + texts[9:]


@pytest.mark.parametrize("rv", [0x05, 0x40, 0x41, 0x42])
def test_only_from_c_decrypt_message_these_codes_mean_a_wrong_tag(shim: Shim, key: AeadKey, rv: int) -> None:
    blob = key.encrypt(HEADER, AAD, b"x")
    shim.fail("C_DecryptMessage", rv)
    with pytest.raises(KmsError) as caught:
        key.decrypt(19, AAD, blob)
    assert caught.value.code == "InvalidParameter"
    shim.fail("C_MessageDecryptInit", rv)
    with pytest.raises(TokenError):
        key.decrypt(19, AAD, blob)
    shim.fail("C_EncryptMessage", rv)
    with pytest.raises(TokenError):
        key.encrypt(HEADER, AAD, b"x")
    assert key.decrypt(19, AAD, blob) == b"x"


@pytest.mark.parametrize("operation", ["Encrypt", "Decrypt"])
def test_a_session_that_died_is_replaced_once(shim: Shim, key: AeadKey, operation: str) -> None:
    texts = [b"a", b"b", b"c"]
    blobs: list[Any] = key.encrypt_batch(HEADER, AAD, texts)

    def work() -> list[Any]:
        if operation == "Decrypt":
            return list(key.decrypt_batch(19, AAD, blobs))
        return list(key.decrypt_batch(19, AAD, key.encrypt_batch(HEADER, AAD, texts)))  # type: ignore[arg-type]

    for function in (f"C_Message{operation}Init", f"C_{operation}Message"):
        for skip in (0, 1, 2) if "Init" not in function else (0,):
            shim.fail(function, 0xB3, skip=skip)
            assert work() == texts
        shim.fail(function, 0xB3, times=2)
        (first, *others) = key.encrypt_batch(HEADER, AAD, texts) if operation == "Encrypt" else key.decrypt_batch(19, AAD, blobs)
        assert isinstance(first, TokenError) and first.name == "CKR_SESSION_HANDLE_INVALID"
        assert not any(isinstance(other, KmsError) for other in others)


@pytest.mark.parametrize("after", [False, True])
def test_an_end_that_fails_costs_the_session_and_no_item(rig: Bench, shim: Shim, after: bool) -> None:
    key = rig.token.xaes_key(rig.key(), 2)
    texts = [b"%d" % number for number in range(6)]
    shim.fail("C_MessageEncryptFinal", 0x30, times=3, after=after)
    blobs: list[Any] = key.encrypt_batch(HEADER, AAD, texts)
    shim.fail("C_MessageDecryptFinal", 0x91, times=3, after=after)
    assert key.decrypt_batch(19, AAD, blobs) == texts
    sessions = rig.token.live_sessions
    assert key.decrypt_batch(19, AAD, blobs) == texts
    assert rig.token.live_sessions <= sessions + 1


def test_a_session_key_that_went_is_derived_anew(rig: Bench) -> None:
    key = rig.token.xaes_key(rig.key())
    blob = key.encrypt(HEADER, AAD, b"x")
    nonce = blob[19:43]
    rig.token.destroy(key.derive_subkey_for_test(nonce))
    assert key.decrypt(19, AAD, blob) == b"x"
    rig.token.destroy(key.derive_subkey_for_test(nonce))
    assert all(isinstance(answer, bytes) for answer in key.encrypt_batch(HEADER, AAD, [b"y"] * 5))
    del key


def test_retire_while_a_call_is_in_the_token(rig: Bench, shim: Shim) -> None:
    master = rig.key()
    key = rig.token.xaes_key(master)
    early = key.encrypt(HEADER, AAD, b"early")
    with shim.held("C_EncryptMessage"):
        call = Background(lambda: key.encrypt(HEADER, AAD, b"late"))
        shim.wait_for("C_EncryptMessage")  # reached only if the other thread gave up the GIL
        assert key.retire() is False
        with pytest.raises(KmsError) as caught:
            key.decrypt(19, AAD, early)
        assert caught.value.code == "Rejected.Unavailable"
    late = call.finish()
    assert key.retire() is True
    assert rig.token.xaes_key(master).decrypt_batch(19, AAD, [early, late]) == [b"early", b"late"]


def test_threads(rig: Bench) -> None:
    keys: list[AeadKey] = [rig.token.xaes_key(rig.key(), 50), rig.token.gcm_key(rig.key(derives=False))]
    failures: list[object] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(60):
                key = rng.choice(keys)
                texts = [rng.randbytes(rng.choice((0, 32, 4096))) for _ in range(rng.choice((1, 2, 30)))]
                blobs: list[Any] = key.encrypt_batch(HEADER, AAD, texts)
                assert key.decrypt_batch(19, AAD, blobs) == texts
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for key in keys:
        assert key.retire()


def test_each_token_goes_its_own_way(tmp_path: Path, rig: Bench) -> None:
    """SoftHSM the old one, NSS the new one, in one process."""
    with open_rig(tmp_path) as softhsm:
        assert not softhsm.token.message_api
        for token, handle in ((softhsm.token, softhsm.key()), (rig.token, rig.key())):
            key = token.xaes_key(handle)
            assert key.decrypt_batch(19, AAD, key.encrypt_batch(HEADER, AAD, [b"x"] * 3)) == [b"x"] * 3  # type: ignore[arg-type]
