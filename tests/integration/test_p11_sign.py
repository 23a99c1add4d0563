"""Signatures and MACs made in a token, on SoftHSM and on NSS, checked by `cryptography`; and what becomes of them when the token fails."""

from __future__ import annotations

import gc
import hashlib
import hmac
import os
from typing import Any

import pytest
from asym_helpers import CURVES, EC_KINDS, HASHES, RSA_KINDS, Bench, ecdsa_der, private_key, verify
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from p11_helpers import Shim, in_child
from test_p11_faults import Background

from kmscore.custody._p11 import Secret
from kmscore.errors import KmsError, TokenError

RSA_PKCS, RSA_PSS, ECDSA = 0x1, 0xD, 0x1041
HMAC = {"SHA-256": 0x251, "SHA-384": 0x261, "SHA-512": 0x271}
DIGEST_INFO = {
    "SHA-256": "3031300d060960864801650304020105000420",
    "SHA-384": "3041300d060960864801650304020205000430",
    "SHA-512": "3051300d060960864801650304020305000440",
}
SHA2 = ("SHA-256", "SHA-384", "SHA-512")


def digest_of(hash_name: str, message: bytes) -> bytes:
    return hashlib.new(hash_name.replace("-", ""), message).digest()


@pytest.mark.parametrize("kind", RSA_KINDS)
def test_rsa(bench: Bench, kind: str) -> None:
    key = private_key(kind)
    handle = bench.private(key, sign=True)
    size = int(kind[-4:]) // 8
    for hash_name in SHA2:
        digest = digest_of(hash_name, b"message")
        signature = bench.token.sign(handle, RSA_PKCS, bytes.fromhex(DIGEST_INFO[hash_name]) + digest, size)
        assert verify(key.public_key(), "PKCS1", hash_name, signature, digest)
        signature = bench.token.sign(handle, RSA_PSS, digest, size, hash_name)
        assert verify(key.public_key(), "PSS", hash_name, signature, digest)
        assert not verify(key.public_key(), "PSS", hash_name, signature, digest[::-1])


@pytest.mark.parametrize("kind", EC_KINDS)
def test_ecdsa(bench: Bench, kind: str) -> None:
    if bench.name == "NSS" and kind == "EC_P256K":
        pytest.skip("NSS has no secp256k1")
    key = private_key(kind)
    handle = bench.private(key, sign=True)
    size = 2 * ((CURVES[kind][0].key_size + 7) // 8)
    for hash_name in SHA2:
        digest = digest_of(hash_name, b"message")
        if bench.name == "NSS" and len(digest) > size // 2:
            continue  # it refuses a digest longer than the order; the caller cuts it
        for data in (digest, bytearray(digest), memoryview(digest)):
            signature = bench.token.sign(handle, ECDSA, data, size)
            assert len(signature) == size
            assert verify(key.public_key(), "ECDSA", hash_name, ecdsa_der(signature), digest)


@pytest.mark.parametrize("hash_name", SHA2)
def test_hmac(bench: Bench, hash_name: str) -> None:
    value = os.urandom(64)
    handle = bench.secret(value, sign=True)
    size = HASHES[hash_name].digest_size
    for message in (b"", b"x", os.urandom(4096), bytearray(100)):
        tag = bench.token.sign(handle, HMAC[hash_name], message, size)
        assert tag == hmac.digest(value, message, hash_name.replace("-", ""))


def test_check_value(bench: Bench) -> None:
    value = os.urandom(32)
    handle = bench.secret(value, key_type=0x1F, derive=True)
    zero = Cipher(algorithms.AES(value), modes.ECB()).encryptor().update(bytes(16))
    assert bench.token.check_value(handle) == zero
    with pytest.raises(TokenError) as caught:
        bench.token.check_value(999_999)
    assert caught.value.code == "Rejected.Unavailable"
    if bench.name == "SoftHSM":  # NSS derives from a key whatever CKA_DERIVE says
        with pytest.raises(TokenError, match="C_DeriveKey"):
            bench.token.check_value(bench.secret(value, key_type=0x1F))


def test_arguments(bench: Bench) -> None:
    handle = bench.private(private_key("EC_P256"), sign=True)
    for size in (0, -1, 1025):
        with pytest.raises(ValueError, match="1 to 1024"):
            bench.token.sign(handle, ECDSA, bytes(32), size)
    for name in ("", "SHA-1", "sha-256", "SHA-257"):
        with pytest.raises(ValueError, match="SHA-256, SHA-384, SHA-512"):
            bench.token.sign(handle, RSA_PSS, bytes(32), 256, name)
    with pytest.raises(ValueError, match="pss_hash"):
        bench.token.sign(handle, ECDSA, bytes(32), 64, "SHA-256")
    for wrong in ("text", None, 5, Secret.copy_of(bytes(32))):
        with pytest.raises(TypeError):
            bench.token.sign(handle, ECDSA, wrong, 64)  # type: ignore[arg-type]
    assert len(bench.token.sign(handle, ECDSA, bytes(32), 64)) == 64


def test_an_output_of_another_length(bench: Bench) -> None:
    handle = bench.private(private_key("EC_P256"), sign=True)
    bench.token.sign(handle, ECDSA, bytes(32), 64)
    sessions = bench.token.live_sessions
    for size in (1, 63, 65, 1024):
        with pytest.raises(TokenError, match="wrong length") as caught:
            bench.token.sign(handle, ECDSA, bytes(32), size)
        assert (caught.value.function, caught.value.code) == ("C_Sign", "InternalFailure")
        assert bench.token.live_sessions == sessions - 1
        assert len(bench.token.sign(handle, ECDSA, bytes(32), 64)) == 64
        assert bench.token.live_sessions == sessions


def test_a_handle_that_is_gone_and_a_key_that_may_not(bench: Bench) -> None:
    handle = bench.private(private_key("EC_P256"), decrypt=True)
    with pytest.raises(TokenError) as caught:
        bench.token.sign(handle, ECDSA, bytes(32), 64)
    assert caught.value.code == "InternalFailure"
    for wrong in (0, 999_999):
        with pytest.raises(TokenError) as caught:
            bench.token.sign(wrong, ECDSA, bytes(32), 64)
        assert (caught.value.function, caught.value.code) == ("C_SignInit", "Rejected.Unavailable")


# --- failures ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["C_SignInit", "C_Sign", "C_OpenSession"])
@pytest.mark.parametrize("rv", [0x02, 0x05, 0x06, 0x21, 0x30, 0x32, 0xE0, 0x101, 0x190])
def test_a_token_that_fails(shimmed: Bench, built: Shim, function: str, rv: int) -> None:
    handle = shimmed.private(private_key("EC_P256"), sign=True)
    shimmed.token.sign(handle, ECDSA, bytes(32), 64)
    sessions = shimmed.token.live_sessions
    if function == "C_OpenSession":
        built.fail("C_Sign", rv)  # costs the pooled session
        with pytest.raises(TokenError):
            shimmed.token.sign(handle, ECDSA, bytes(32), 64)
    built.fail(function, rv)
    with pytest.raises(TokenError) as caught:
        shimmed.token.sign(handle, ECDSA, bytes(32), 64)
    assert (caught.value.function, caught.value.rv) == (function, rv)
    assert caught.value.code == ("InternalFailure" if rv == 0x21 else "ServiceUnavailableTemporary")
    assert shimmed.token.live_sessions == sessions - 1
    assert len(shimmed.token.sign(handle, ECDSA, bytes(32), 64)) == 64
    assert shimmed.token.live_sessions == sessions


@pytest.mark.parametrize("function", ["C_SignInit", "C_Sign"])
@pytest.mark.parametrize("rv", [0xB0, 0xB3])
def test_a_session_that_died_is_replaced_once(shimmed: Bench, built: Shim, function: str, rv: int) -> None:
    handle = shimmed.private(private_key("EC_P256"), sign=True)
    built.fail(function, rv)
    assert len(shimmed.token.sign(handle, ECDSA, bytes(32), 64)) == 64
    built.fail(function, rv, times=2)
    with pytest.raises(TokenError) as caught:
        shimmed.token.sign(handle, ECDSA, bytes(32), 64)
    assert (caught.value.rv, caught.value.retryable) == (rv, True)


def test_the_gil_is_free_and_close_waits(shimmed: Bench, built: Shim) -> None:
    handle = shimmed.private(private_key("EC_P256"), sign=True)
    with built.held("C_Sign"):
        call = Background(lambda: shimmed.token.sign(handle, ECDSA, bytearray(32), 64))
        built.wait_for("C_Sign")
        closing = Background(shimmed.token.close)
        while True:  # until `close` has begun
            try:
                shimmed.token.random(1)
            except KmsError:
                break
        assert call.is_alive() and closing.is_alive()
    assert len(call.finish()) == 64
    assert closing.finish() is None
    calls: list[Any] = [
        lambda: shimmed.token.sign(handle, ECDSA, bytes(32), 64),
        lambda: shimmed.token.rsa_decrypt(handle, bytes(256), "SHA-1", False),
        lambda: shimmed.token.check_value(handle),
    ]
    for call_closed in calls:
        with pytest.raises(KmsError) as caught:
            call_closed()
        assert caught.value.code == "ServiceUnavailableTemporary"
        answer = in_child(call_closed)
        assert answer.startswith("SetupError") and "was opened before fork" in answer
    gc.collect()
