"""RSAES-OAEP in a token, the padding taken off there or by us: SoftHSM and NSS, against `cryptography` and Wycheproof."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from asym_helpers import RSA_KINDS, Bench, leaves_no_secret, oaep, pair, private_key, refused
from cryptography.hazmat.primitives.serialization import load_der_private_key
from p11_helpers import Shim, vectors

from kmscore.custody._p11 import Secret, oaep_encrypt
from kmscore.errors import TokenError


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield from leaves_no_secret()


def ways(bench: Bench) -> list[tuple[str, bool]]:
    """(hash, raw) that the token can do: SoftHSM knows OAEP with SHA-1 only (HSM.md section 7)."""
    every = [("SHA-1", False), ("SHA-1", True), ("SHA-256", False), ("SHA-256", True)]
    return [way for way in every if bench.name == "NSS" or way != ("SHA-256", False)]


@pytest.mark.parametrize("kind", RSA_KINDS)
def test_what_others_encrypted(bench: Bench, kind: str) -> None:
    key = private_key(kind)
    handle = bench.private(key, decrypt=True)
    for hash_name, raw in ways(bench):
        room = key.key_size // 8 - 2 * oaep(hash_name)._algorithm.digest_size - 2
        for size in (0, 1, 32, room - 1, room):
            message = os.urandom(size)
            ciphertext = key.public_key().encrypt(message, oaep(hash_name))
            for data in (ciphertext, bytearray(ciphertext)):
                secret = bench.token.rsa_decrypt(handle, data, hash_name, raw)
                assert secret.size == size
                assert secret.reveal() == message
                secret.close()


def test_encoded_messages_with_leading_zeros(bench: Bench) -> None:
    """Whatever a token cuts off in front, raw answers come filled up again."""
    key = private_key("RSA_2048")
    handle = bench.private(key, decrypt=True)
    numbers = key.public_key().public_numbers()
    for value in (0, 1, 255, 1 << 2000, numbers.n - 1):
        refused(lambda value=value: bench.token.rsa_decrypt(handle, pow(value, numbers.e, numbers.n).to_bytes(256), "SHA-1", True))


@pytest.mark.parametrize("way", [("SHA-1", False), ("SHA-1", True), ("SHA-256", False), ("SHA-256", True)], ids=str)
def test_wycheproof(bench: Bench, way: tuple[str, bool]) -> None:
    hash_name, raw = way
    if way not in ways(bench):
        pytest.skip("SoftHSM has no OAEP with SHA-256")
    small = hash_name.lower().replace("-", "")
    (group,) = vectors(f"wycheproof/rsa_oaep_2048_{small}_mgf1{small}_test.json")["testGroups"]
    handle = bench.private(load_der_private_key(bytes.fromhex(group["privateKeyPkcs8"]), None), decrypt=True)
    for case in group["tests"]:
        ciphertext = bytes.fromhex(case["ct"])
        if case["result"] == "valid" and not case["label"]:
            assert bench.token.rsa_decrypt(handle, ciphertext, hash_name, raw).reveal().hex() == case["msg"], case["tcId"]
        else:
            refused(lambda ciphertext=ciphertext: bench.token.rsa_decrypt(handle, ciphertext, hash_name, raw))


def test_every_bad_ciphertext_gives_one_error(bench: Bench) -> None:
    key = private_key("RSA_2048")
    handle = bench.private(key, decrypt=True)
    modulus = key.public_key().public_numbers().n
    good = oaep_encrypt(pair("RSA_2048")[1], "SHA-1", b"message")
    bad = [
        b"",
        bytes(256),
        bytes(255) + b"\1",
        b"\xff" * 256,
        modulus.to_bytes(256),
        (modulus - 1).to_bytes(256),
        (modulus + 1).to_bytes(256),
        good[:-1],
        good[1:],
        good + b"\0",
        b"\0" + good,
        bytes(384),
        bytes(512),
        bytes(513),
        bytes(1025),
        good[:-1] + bytes([good[-1] ^ 1]),
    ]
    sessions = bench.token.live_sessions
    for hash_name, raw in ways(bench):
        for ciphertext in bad:
            refused(lambda c=ciphertext, h=hash_name, r=raw: bench.token.rsa_decrypt(handle, c, h, r))
        for _ in range(20):
            refused(lambda h=hash_name, r=raw: bench.token.rsa_decrypt(handle, b"\1" + os.urandom(255), h, r))
    assert bench.token.rsa_decrypt(handle, good, "SHA-1", True).reveal() == b"message"
    assert bench.token.live_sessions <= sessions + 1


def test_arguments(bench: Bench) -> None:
    handle = bench.private(private_key("RSA_2048"), sign=True)
    for name in ("", "SHA-384", "SHA-512", "sha-1"):
        with pytest.raises(ValueError, match="SHA-1, SHA-256"):
            bench.token.rsa_decrypt(handle, bytes(256), name, True)
    for wrong in ("text", None, Secret.copy_of(bytes(256))):
        with pytest.raises(TypeError):
            bench.token.rsa_decrypt(handle, wrong, "SHA-1", True)  # type: ignore[arg-type]
    for raw in (False, True):
        with pytest.raises(TokenError) as caught:
            bench.token.rsa_decrypt(handle, bytes(256), "SHA-1", raw)  # the key may not decrypt
        assert caught.value.function == "C_DecryptInit"
        with pytest.raises(TokenError) as caught:
            bench.token.rsa_decrypt(999_999, bytes(256), "SHA-1", raw)
        assert caught.value.code == "Rejected.Unavailable"


# --- failures ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [False, True])
def test_which_codes_speak_of_the_ciphertext(shimmed: Bench, built: Shim, raw: bool) -> None:
    key = private_key("RSA_2048")
    handle = shimmed.private(key, decrypt=True)
    ciphertext = key.public_key().encrypt(b"message", oaep("SHA-1"))
    for rv in (0x05, 0x06, 0x07, 0x20, 0x21, 0x40, 0x41, 0x42):
        built.fail("C_Decrypt", rv)
        refused(lambda: shimmed.token.rsa_decrypt(handle, ciphertext, "SHA-1", raw))
        built.fail("C_DecryptInit", rv)
        with pytest.raises(TokenError) as caught:
            shimmed.token.rsa_decrypt(handle, ciphertext, "SHA-1", raw)
        assert (caught.value.function, caught.value.rv) == ("C_DecryptInit", rv)
    for rv in (0x02, 0x30, 0x32, 0x60, 0x82, 0xE0, 0x101, 0x190):
        for function in ("C_DecryptInit", "C_Decrypt"):
            built.fail(function, rv)
            with pytest.raises(TokenError) as caught:
                shimmed.token.rsa_decrypt(handle, ciphertext, "SHA-1", raw)
            assert (caught.value.function, caught.value.rv) == (function, rv)
    for function in ("C_DecryptInit", "C_Decrypt"):
        built.fail(function, 0xB3)
        assert shimmed.token.rsa_decrypt(handle, ciphertext, "SHA-1", raw).reveal() == b"message"
