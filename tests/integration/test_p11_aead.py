"""The hot path on a real SoftHSM: round trips, refusals, batches, epochs, the list of derived keys, retirement, threads."""

from __future__ import annotations

import gc
import os
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from p11_helpers import AAD, HEADER, Rig, open_rig

from kmscore.custody._p11 import AeadKey, Secret
from kmscore.errors import KmsError, TokenError

OPAQUE = 'InvalidParameter: The specified parameter "CiphertextBlob" is not valid.'
NONCE = {1: 24, 2: 12}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with open_rig(tmp_path_factory.mktemp("token")) as rig:
        yield rig


@pytest.fixture
def rig(shared: Rig) -> Iterator[Rig]:
    """The shared token; what a test made must be gone from it when the test ends."""
    live = shared.token.live_derived
    yield shared
    shared.token.derived_limit = 4096
    gc.collect()  # a caught exception holds the frame of its test, and that the keys in it
    assert shared.token.live_derived == live


@pytest.fixture(params=[1, 2], ids=["suite1", "suite2"])
def key(rig: Rig, request: pytest.FixtureRequest) -> Iterator[AeadKey]:
    handle = rig.key(derives=request.param == 1)
    key = rig.token.xaes_key(handle) if request.param == 1 else rig.token.gcm_key(handle)
    yield key
    assert key.retire()


def refused(call: Callable[[], object]) -> None:
    with pytest.raises(KmsError) as caught:
        call()
    assert type(caught.value) is KmsError
    assert str(caught.value) == OPAQUE


# --- one message -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 32, 1024, 4096, 6144, 8192])
def test_round_trip(key: AeadKey, size: int) -> None:
    plaintext = os.urandom(size)
    blob = key.encrypt(HEADER, AAD, plaintext)
    assert blob[:19] == HEADER
    assert len(blob) == 19 + NONCE[key.suite] + size + 16
    assert key.decrypt(19, AAD, blob) == plaintext
    assert key.encrypt(HEADER, AAD, plaintext) != blob


@pytest.mark.parametrize("header", [b"", b"h", HEADER, bytes(300)])
@pytest.mark.parametrize("aad", [b"", b"a", bytes(20000)])
def test_headers_and_associated_data_of_any_size(key: AeadKey, header: bytes, aad: bytes) -> None:
    blob = key.encrypt(header, aad, b"text")
    assert key.decrypt(len(header), aad, blob) == b"text"
    refused(lambda: key.decrypt(len(header), aad + b"x", blob))


def test_kinds_of_input(key: AeadKey) -> None:
    text = b"sixteen bytes of"
    secret = Secret.copy_of(text)
    for data in (text, bytearray(text), memoryview(text), memoryview(b"xx" + text + b"yy")[2:-2], secret):
        blob = key.encrypt(HEADER, AAD, data)
        for again in (blob, bytearray(blob), memoryview(blob)):
            assert key.decrypt(19, AAD, again) == text
            assert key.decrypt_secret(19, AAD, again).reveal() == text
    growing = bytearray()
    assert key.decrypt(19, AAD, key.encrypt(HEADER, AAD, growing)) == b""
    growing += b"x"  # the buffer was held for the length of the call and no longer
    assert key.decrypt_secret(19, AAD, key.encrypt(HEADER, AAD, b"")).size == 0
    assert secret.size == 16  # still the caller's
    for wrong in ("text", 5, None, [1], memoryview(text)[::2]):
        with pytest.raises((TypeError, BufferError)):
            key.encrypt(HEADER, AAD, wrong)  # type: ignore[arg-type]
        with pytest.raises((TypeError, BufferError)):
            key.decrypt(19, AAD, wrong)  # type: ignore[arg-type]
    for arguments in ((bytearray(HEADER), AAD, b""), (HEADER, bytearray(AAD), b""), (None, AAD, b""), (HEADER, None, b"")):
        with pytest.raises(TypeError):
            key.encrypt(*arguments)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        key.decrypt(19, AAD, secret)  # type: ignore[arg-type]
    secret.close()
    with pytest.raises(ValueError, match="closed"):
        key.encrypt(HEADER, AAD, secret)


def test_a_long_plaintext_is_refused(key: AeadKey) -> None:
    for call in (lambda: key.encrypt(HEADER, AAD, bytes(8193)), lambda: key.encrypt(HEADER, AAD, bytearray(1 << 20))):
        with pytest.raises(KmsError) as caught:
            call()
        assert caught.value.code == "InvalidParameter"
        assert "Plaintext" in caught.value.message


def test_every_damage_gives_the_one_opaque_error(key: AeadKey) -> None:
    blob = key.encrypt(HEADER, AAD, b"the plaintext")
    for position in range(19, len(blob)):
        damaged = bytearray(blob)
        damaged[position] ^= 1
        refused(lambda damaged=damaged: key.decrypt(19, AAD, damaged))
    for size in range(len(blob)):
        refused(lambda size=size: key.decrypt(19, AAD, blob[:size]))
    refused(lambda: key.decrypt(19, AAD, blob + b"\0"))
    refused(lambda: key.decrypt(19, AAD, blob + bytes(9000)))
    refused(lambda: key.decrypt(19, AAD, b""))
    for header_size in (0, 18, 20, -1, 1 << 40):
        refused(lambda header_size=header_size: key.decrypt(header_size, AAD, blob))
    refused(lambda: key.decrypt(19, b"", blob))
    refused(lambda: key.decrypt_secret(19, b"", blob))
    assert key.decrypt(19, AAD, blob) == b"the plaintext"


def test_another_key_gives_the_opaque_error(rig: Rig, key: AeadKey) -> None:
    other = rig.token.xaes_key(rig.key()) if key.suite == 1 else rig.token.gcm_key(rig.key(derives=False))
    refused(lambda: other.decrypt(19, AAD, key.encrypt(HEADER, AAD, b"x")))


def test_errors_do_not_poison_sessions(rig: Rig, key: AeadKey) -> None:
    # RELIABILITY R-2 and section 4.1: a valid call after every failed one, and the number of sessions stays what it was.
    good = key.encrypt(HEADER, AAD, b"good")
    bad = good[:-1] + bytes([good[-1] ^ 1])
    before = rig.token.live_sessions
    for number in range(500):
        refused(lambda: key.decrypt(19, AAD, bad))
        if number % 2:
            assert key.decrypt(19, AAD, good) == b"good"
        else:
            assert key.decrypt(19, AAD, key.encrypt(HEADER, AAD, b"new")) == b"new"
    assert rig.token.live_sessions <= before + 1


def test_a_key_that_may_not(rig: Rig) -> None:
    with pytest.raises(TokenError) as caught:
        rig.token.xaes_key(rig.key(derives=False))
    assert (caught.value.function, caught.value.name) == ("C_DeriveKey", "CKR_KEY_FUNCTION_NOT_PERMITTED")
    key = rig.token.gcm_key(rig.key(derives=True))
    for _ in range(3):
        with pytest.raises(TokenError) as caught:
            key.encrypt(HEADER, AAD, b"x")
        assert (caught.value.function, caught.value.rv, caught.value.code) == ("C_EncryptInit", 0x68, "InternalFailure")
    # From C_DecryptInit no code means a wrong tag.
    with pytest.raises(TokenError) as caught:
        key.decrypt(19, AAD, bytes(19 + 12 + 16))
    assert caught.value.function == "C_DecryptInit"
    for failure in key.encrypt_batch(HEADER, AAD, [b"x", b"y"]):
        assert isinstance(failure, TokenError)
    for wrong in (0, 999_999):
        with pytest.raises(TokenError) as caught:
            rig.token.xaes_key(wrong)
        assert caught.value.code == "Rejected.Unavailable"
    for epoch in (0, (1 << 32) + 1):
        with pytest.raises(ValueError, match="epoch_messages"):
            rig.token.xaes_key(1, epoch)


# --- batches -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 64, 255, 256, 257, 1000])
def test_batch(key: AeadKey, count: int) -> None:
    texts = [os.urandom(number % 70) for number in range(count)]
    blobs = key.encrypt_batch(HEADER, AAD, texts)
    assert key.decrypt_batch(19, AAD, blobs) == texts  # type: ignore[arg-type]
    assert len({blob[19:] for blob in blobs}) == count  # type: ignore[index]
    assert [key.decrypt(19, AAD, blob) for blob in blobs[:3]] == texts[:3]  # type: ignore[arg-type]


def test_a_batch_of_the_greatest_messages(key: AeadKey) -> None:
    texts = [bytes([number]) * 8192 for number in range(100)]
    blobs = key.encrypt_batch(HEADER, AAD, texts)
    assert key.decrypt_batch(19, AAD, blobs) == texts  # type: ignore[arg-type]


def test_a_batch_takes_every_kind_and_every_sequence(key: AeadKey) -> None:
    texts: list[Any] = [b"a", bytearray(b"b"), memoryview(b"c"), Secret.copy_of(b"d"), b""]
    for sequence in (texts, tuple(texts), iter(texts)):
        blobs = key.encrypt_batch(HEADER, AAD, sequence)  # type: ignore[arg-type]
        assert key.decrypt_batch(19, AAD, map(bytearray, blobs)) == [b"a", b"b", b"c", b"d", b""]  # type: ignore[arg-type]
    for wrong in (["text"], [b"a", None], 5):
        with pytest.raises(TypeError):
            key.encrypt_batch(HEADER, AAD, wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            key.decrypt_batch(19, AAD, wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        key.decrypt_batch(19, AAD, [Secret.copy_of(b"x" * 80)])  # type: ignore[list-item]


def test_bad_items_spoil_no_others(rig: Rig, key: AeadKey) -> None:
    texts: list[bytes] = [b"text %d" % number for number in range(600)]
    plaintexts = [bytes(9000) if number % 7 == 3 else text for number, text in enumerate(texts)]
    blobs = key.encrypt_batch(HEADER, AAD, plaintexts)
    for number, blob in enumerate(blobs):
        if number % 7 == 3:
            assert isinstance(blob, KmsError) and "Plaintext" in str(blob)
            blobs[number] = b"no blob"
        else:
            assert isinstance(blob, bytes)
            if number % 7 == 5:
                blobs[number] = blob[:-1] + bytes([blob[-1] ^ 0x80])
            if number % 7 == 6:
                blobs[number] = blob + bytes(8192)
    answers = key.decrypt_batch(19, AAD, blobs)  # type: ignore[arg-type]
    for number, answer in enumerate(answers):
        if number % 7 in (3, 5, 6):
            assert isinstance(answer, KmsError) and str(answer) == OPAQUE
        else:
            assert answer == texts[number]


# --- epochs and the list of derived keys (suite 1) ---------------------------------------------------------------------------------


def test_an_epoch_ends_after_its_messages(rig: Rig) -> None:
    key = rig.token.xaes_key(rig.key(), 3)
    blobs = [key.encrypt(HEADER, AAD, b"single") for _ in range(7)] + key.encrypt_batch(HEADER, AAD, [b"single"] * 8)
    prefixes = [blob[19:31] for blob in blobs]  # type: ignore[index]
    assert [prefixes.count(prefix) for prefix in dict.fromkeys(prefixes)] == [3, 3, 3, 3, 3]
    assert len({blob[31:43] for blob in blobs}) == 15  # type: ignore[index]
    assert key.live == 5
    assert key.decrypt_batch(19, AAD, blobs) == [b"single"] * 15  # type: ignore[arg-type]
    assert key.live == 5
    assert key.retire()


def test_a_second_key_on_one_master_has_its_own_epoch_and_opens_the_first_ones_blobs(rig: Rig) -> None:
    master = rig.key()
    first, second = rig.token.xaes_key(master), rig.token.xaes_key(master)
    blobs = [first.encrypt(HEADER, AAD, b"1"), second.encrypt(HEADER, AAD, b"2")]
    assert blobs[0][19:31] != blobs[1][19:31]
    assert second.decrypt_batch(19, AAD, blobs * 40) == [b"1", b"2"] * 40
    assert (first.live, second.live) == (1, 2)
    first.retire()
    assert second.decrypt_batch(19, AAD, blobs) == [b"1", b"2"]


def test_derived_keys_are_kept_in_order_of_use_up_to_the_limit(rig: Rig) -> None:
    master = rig.key()
    writers = [rig.token.xaes_key(master) for _ in range(6)]
    blobs = [writer.encrypt(HEADER, AAD, b"%d" % number) for number, writer in enumerate(writers)]
    del writers
    rig.token.derived_limit = 3
    reader, other = rig.token.xaes_key(master), rig.token.xaes_key(rig.key())
    assert [reader.decrypt(19, AAD, blob) for blob in blobs] == [b"0", b"1", b"2", b"3", b"4", b"5"]
    assert (reader.live, rig.token.live_derived) == (3, 3)
    start = rig.token.derivations
    reader.decrypt(19, AAD, blobs[3])  # kept, and now the last one used
    assert rig.token.derivations == start
    other.encrypt(HEADER, AAD, b"")  # the limit is over all keys: blob 4's goes
    assert (reader.live, other.live, rig.token.derivations) == (2, 1, start + 1)
    reader.decrypt(19, AAD, blobs[3])
    assert rig.token.derivations == start + 1
    reader.decrypt(19, AAD, blobs[4])
    assert rig.token.derivations == start + 2
    # The key of an epoch may go too; the next message begins another epoch.
    rig.token.derived_limit = 1
    assert rig.token.live_derived == 1
    assert other.decrypt(19, AAD, other.encrypt(HEADER, AAD, b"x")) == b"x"
    assert rig.token.live_derived == 1
    with pytest.raises(ValueError, match="derived_limit"):
        rig.token.derived_limit = 0
    # A batch may not hold more at once either, whatever order its nonces come in.
    assert reader.decrypt_batch(19, AAD, blobs * 5) == [b"0", b"1", b"2", b"3", b"4", b"5"] * 5
    assert rig.token.live_derived == 1


def test_junk_pushes_no_useful_key_out(rig: Rig) -> None:
    key = rig.token.xaes_key(rig.key())
    blob = key.encrypt(HEADER, AAD, b"x")
    rig.token.derived_limit = 2
    for answer in key.decrypt_batch(19, AAD, [HEADER + os.urandom(60) for _ in range(20)]):
        assert isinstance(answer, KmsError)
    refused(lambda: key.decrypt(19, AAD, HEADER + os.urandom(60)))
    assert key.live == 1
    start = rig.token.derivations
    assert key.decrypt(19, AAD, blob) == b"x"
    assert rig.token.derivations == start


# --- retirement --------------------------------------------------------------------------------------------------------------------


def test_retire(rig: Rig, key: AeadKey) -> None:
    blob = key.encrypt(HEADER, AAD, b"x")
    assert key.live == (1 if key.suite == 1 else 0)
    assert key.retire() is True
    assert key.retire() is True
    assert key.live == 0
    calls: list[Callable[[], object]] = [
        lambda: key.encrypt(HEADER, AAD, b"x"),
        lambda: key.encrypt_batch(HEADER, AAD, [b"x"]),
        lambda: key.decrypt(19, AAD, blob),
        lambda: key.decrypt_secret(19, AAD, blob),
        lambda: key.decrypt_batch(19, AAD, [blob]),
    ]
    for call in calls:
        with pytest.raises(KmsError) as caught:
            call()
        assert caught.value.code == "Rejected.Unavailable"


def test_a_fresh_key_after_retirement(rig: Rig) -> None:
    master = rig.key()
    first = rig.token.xaes_key(master)
    blob = first.encrypt(HEADER, AAD, b"x")
    first.retire()
    again = rig.token.xaes_key(master)
    assert again.decrypt(19, AAD, blob) == b"x"


def test_a_destroyed_master(rig: Rig) -> None:
    for suite in (1, 2):
        handle = rig.key(derives=suite == 1)
        key = rig.token.xaes_key(handle) if suite == 1 else rig.token.gcm_key(handle)
        blob = key.encrypt(HEADER, AAD, b"x")
        rig.token.destroy(handle)
        if suite == 1:
            # HSM.md section 6: what was derived lives on; that is why retire comes before destroy.
            assert key.decrypt(19, AAD, blob) == b"x"
            assert key.retire()
            with pytest.raises(TokenError) as caught:
                rig.token.xaes_key(handle)
        else:
            with pytest.raises(TokenError) as caught:
                key.decrypt(19, AAD, blob)
        assert caught.value.code == "Rejected.Unavailable"


def test_dropping_a_key_destroys_what_it_derived(rig: Rig) -> None:
    before = rig.token.live_derived
    key = rig.token.xaes_key(rig.key(), 1)
    for _ in range(20):
        key.encrypt(HEADER, AAD, b"")
    handle = key.derive_subkey_for_test(bytes(24))
    assert rig.token.live_derived == before + 21
    session = rig.raw.open()
    assert rig.raw.attribute(session, handle, 0x1)[0] == 0
    del key
    assert rig.token.live_derived == before
    assert rig.raw.attribute(session, handle, 0x1)[0] == 0x82
    rig.raw.close(session)


# --- threads -----------------------------------------------------------------------------------------------------------------------


def test_threads(rig: Rig) -> None:
    """Several threads, few derived keys, short epochs: every message comes back, nothing is left behind."""
    rig.token.derived_limit = 3
    master = rig.key()
    keys = [rig.token.xaes_key(master, 10), rig.token.xaes_key(master, 7), rig.token.gcm_key(rig.key(derives=False))]
    failures: list[BaseException] = []
    done: list[int] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(60):
                key = rng.choice(keys)
                texts = [rng.randbytes(rng.choice((0, 1, 32, 1024))) for _ in range(rng.choice((1, 1, 5, 20)))]
                blobs: list[Any] = key.encrypt_batch(HEADER, AAD, texts) if len(texts) > 1 else [key.encrypt(HEADER, AAD, texts[0])]
                reader = rng.choice(keys[:2]) if key.suite == 1 else key
                bad = blobs[0][:-1] + bytes([blobs[0][-1] ^ 1])
                answers = reader.decrypt_batch(19, AAD, [*blobs, bad])
                assert answers[:-1] == texts
                assert str(answers[-1]) == OPAQUE
                assert reader.decrypt(19, AAD, blobs[0]) == texts[0]
                refused(lambda reader=reader, bad=bad: reader.decrypt(19, AAD, bad))
            done.append(seed)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(done) == 6
    assert rig.token.live_derived <= 3
    # One per thread for calls, one per thread that derived at the same time, the login's.
    assert rig.token.live_sessions <= 2 * 6 + 2
    assert all(key.retire() for key in keys)
    assert rig.token.live_derived == 0
