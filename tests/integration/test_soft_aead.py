"""Software keys: the same interface and the same blobs as keys in a token, checked against `cryptography`."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from p11_helpers import AAD, HEADER, xaes_subkey

from kmscore.custody import _p11
from kmscore.custody._p11 import AeadKey, Secret, soft_key
from kmscore.errors import KmsError

OPAQUE = 'InvalidParameter: The specified parameter "CiphertextBlob" is not valid.'
NONCE = {1: 24, 2: 12}


@pytest.fixture(params=[(1, 32), (2, 16), (2, 24), (2, 32)], ids=lambda p: f"suite{p[0]}-{8 * p[1]}")
def made(request: pytest.FixtureRequest) -> tuple[AeadKey, bytes]:
    suite, size = request.param
    material = os.urandom(size)
    return soft_key(Secret.copy_of(material), suite), material


@pytest.fixture
def key(made: tuple[AeadKey, bytes]) -> AeadKey:
    return made[0]


def refused(call: Callable[[], object]) -> None:
    with pytest.raises(KmsError) as caught:
        call()
    assert type(caught.value) is KmsError
    assert str(caught.value) == OPAQUE


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 32, 1024, 6144, 8192])
@pytest.mark.parametrize("aad", [b"", AAD, bytes(40000)])
def test_blobs_are_what_the_format_says(made: tuple[AeadKey, bytes], size: int, aad: bytes) -> None:
    key, material = made
    plaintext = os.urandom(size)
    blob = key.encrypt(HEADER, aad, plaintext)
    n = 19 + NONCE[key.suite]
    assert blob[:19] == HEADER
    assert len(blob) == n + size + 16
    nonce, sealed = blob[19:n], blob[n:]
    gcm_key = xaes_subkey(material, nonce) if key.suite == 1 else material
    assert AESGCM(gcm_key).decrypt(nonce[-12:], sealed, aad) == plaintext
    assert key.decrypt(19, aad, blob) == plaintext
    assert key.decrypt_secret(19, aad, blob).size == size


def test_kinds_of_input(key: AeadKey) -> None:
    for data in (b"text", bytearray(b"text"), memoryview(b"text"), Secret.copy_of(b"text")):
        blob = key.encrypt(HEADER, AAD, data)
        assert key.decrypt(19, AAD, bytearray(blob)) == key.decrypt(19, AAD, memoryview(blob)) == b"text"
    with pytest.raises(TypeError):
        key.encrypt(HEADER, AAD, "text")  # type: ignore[arg-type]
    with pytest.raises(KmsError) as caught:
        key.encrypt(HEADER, AAD, bytes(8193))
    assert caught.value.code == "InvalidParameter"


def test_every_damage_gives_the_one_opaque_error(key: AeadKey) -> None:
    blob = key.encrypt(HEADER, AAD, b"the plaintext")
    for position in range(19, len(blob)):
        damaged = bytearray(blob)
        damaged[position] ^= 0x40
        refused(lambda damaged=damaged: key.decrypt(19, AAD, damaged))
        assert key.decrypt(19, AAD, blob) == b"the plaintext"
    for size in range(len(blob)):
        refused(lambda size=size: key.decrypt(19, AAD, blob[:size]))
    refused(lambda: key.decrypt(19, AAD, blob + bytes(9000)))
    refused(lambda: key.decrypt(19, b"", blob))
    refused(lambda: key.decrypt_secret(19, b"", blob))
    refused(lambda: soft_key(Secret.random(32), key.suite).decrypt(19, AAD, blob))


@pytest.mark.parametrize("count", [0, 1, 64, 257, 1000])
def test_batch(key: AeadKey, count: int) -> None:
    texts = [os.urandom(number % 300) for number in range(count)]
    blobs: list[Any] = key.encrypt_batch(HEADER, AAD, texts)
    assert key.decrypt_batch(19, AAD, blobs) == texts
    assert len({blob[19 : 19 + NONCE[key.suite]] for blob in blobs}) == count
    # Blobs of several epochs, mixed, with bad ones between them.
    others: list[Any] = key.encrypt_batch(HEADER, AAD, texts)
    mixed = [blob for pair in zip(blobs, others, strict=True) for blob in (*pair, pair[0][:-1], b"")]
    answers = key.decrypt_batch(19, AAD, mixed)
    assert [answer for number, answer in enumerate(answers) if number % 4 < 2] == [text for text in texts for _ in range(2)]
    assert all(str(answer) == OPAQUE for number, answer in enumerate(answers) if number % 4 > 1)


def test_large_batches_run_without_the_gil(key: AeadKey) -> None:
    texts = [bytes([number]) * 8192 for number in range(100)]
    assert key.decrypt_batch(19, AAD, key.encrypt_batch(HEADER, AAD, texts)) == texts  # type: ignore[arg-type]


def test_soft_key_takes_the_secret_over() -> None:
    before = _p11.live_secrets()
    secret = Secret.random(32)
    key = soft_key(secret, 1)
    assert _p11.live_secrets() == before + 1
    with pytest.raises(ValueError, match="closed"):
        secret.reveal()
    secret.close()  # harmless
    assert key.decrypt(19, AAD, key.encrypt(HEADER, AAD, b"x")) == b"x"
    assert key.live == 0
    assert key.retire() is True
    assert _p11.live_secrets() == before
    assert key.retire() is True
    for call in (
        lambda: key.encrypt(HEADER, AAD, b"x"),
        lambda: key.decrypt(19, AAD, bytes(80)),
        lambda: key.decrypt_batch(19, AAD, [b""]),
    ):
        with pytest.raises(KmsError) as caught:
            call()
        assert caught.value.code == "Rejected.Unavailable"
    with pytest.raises(ValueError, match="suite 1"):
        soft_key(Secret.random(32), 2).derive_subkey_for_test(bytes(24))


@pytest.mark.parametrize(("size", "suite"), [(16, 1), (24, 1), (31, 1), (31, 2), (33, 2), (64, 2), (32, 0), (32, 3)])
def test_wrong_sizes(size: int, suite: int) -> None:
    secret = Secret.random(size)
    with pytest.raises(ValueError, match="suite"):
        soft_key(secret, suite)
    assert secret.size == size  # still the caller's


def test_a_dropped_key_is_wiped() -> None:
    before = _p11.live_secrets()
    for _ in range(100):
        soft_key(Secret.random(32), 1).encrypt(HEADER, AAD, b"x")
    assert _p11.live_secrets() == before


def test_threads_and_retirement(key: AeadKey) -> None:
    """Threads with small calls (under the GIL) and large ones (without) on one key, which is retired in the middle."""
    failures: list[BaseException] = []
    started = threading.Barrier(5)

    def work(seed: int) -> None:
        rng = random.Random(seed)
        started.wait()
        try:
            for _ in range(400):
                texts = [rng.randbytes(rng.choice((0, 32, 4096))) for _ in range(rng.choice((1, 2, 30)))]
                blobs: list[Any] = key.encrypt_batch(HEADER, AAD, texts)
                answers = key.decrypt_batch(19, AAD, blobs)
                for text, blob, answer in zip(texts, blobs, answers, strict=True):
                    if isinstance(blob, KmsError):
                        assert blob.code == "Rejected.Unavailable"
                    elif isinstance(answer, KmsError):
                        assert answer.code == "Rejected.Unavailable"
                    else:
                        assert answer == text
        except KmsError as error:
            if error.code != "Rejected.Unavailable":
                failures.append(error)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    for _ in range(200):
        assert key.decrypt(19, AAD, key.encrypt(HEADER, AAD, b"main")) == b"main"
    key.retire()
    for thread in threads:
        thread.join()
    assert not failures
