"""RSA decryption and AES-KWP in this process, and the decoder of OAEP, against `cryptography` and Wycheproof."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import pytest
from asym_helpers import HASHES, RSA_KINDS, leaves_no_secret, oaep, pair, private_key, refused, soft, spki
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key
from p11_helpers import vectors

from kmscore.custody._p11 import Secret, kwp_unwrap, oaep_decode, oaep_encrypt, soft_private_key


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield from leaves_no_secret()


# --- RSAES-OAEP --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RSA_KINDS)
@pytest.mark.parametrize("hash_name", list(HASHES))
def test_oaep(kind: str, hash_name: str) -> None:
    key, theirs = soft(kind), private_key(kind)
    room = theirs.key_size // 8 - 2 * HASHES[hash_name].digest_size - 2
    for size in (0, 1, 32, room):
        message = os.urandom(size)
        for ciphertext in (theirs.public_key().encrypt(message, oaep(hash_name)), oaep_encrypt(key.public_key, hash_name, message)):
            secret = key.decrypt(hash_name, ciphertext)
            assert (secret.size, secret.reveal()) == (size, message)
            assert theirs.decrypt(ciphertext, oaep(hash_name)) == message
    with pytest.raises(ValueError, match="too long"):
        oaep_encrypt(key.public_key, hash_name, bytes(room + 1))
    assert key.decrypt(hash_name, bytearray(oaep_encrypt(key.public_key, hash_name, Secret.copy_of(b"text")))).reveal() == b"text"


def test_what_is_no_rsa_public_key() -> None:
    good = pair("RSA_2048")[1]
    e3 = rsa.generate_private_key(3, 2048).public_key()
    assert len(oaep_encrypt(spki(e3), "SHA-1", b"x")) == 256
    bad = (
        b"",
        good[:-1],
        good + b"\0",
        pair("EC_P256")[1],
        pair("RSA_2048")[0],
        spki(rsa.generate_private_key(65537, 1024).public_key()),
        spki(rsa.generate_private_key(65537, 2040).public_key()),
        bytes(private_key("RSA_2048").public_key().public_bytes(Encoding.DER, PublicFormat.PKCS1)),
        b"\x30\x84" + (len(good) - 4).to_bytes(4) + good[4:],
    )
    for data in bad:
        with pytest.raises(ValueError, match="no RSA public key"):
            oaep_encrypt(data, "SHA-1", b"x")
    for name in ("", "SHA1", "MD5"):
        with pytest.raises(ValueError, match="hash"):
            oaep_encrypt(good, name, b"x")


@pytest.mark.parametrize("hash_name", ["SHA-1", "SHA-256"])
def test_oaep_wycheproof(hash_name: str) -> None:
    small = hash_name.lower().replace("-", "")
    (group,) = vectors(f"wycheproof/rsa_oaep_2048_{small}_mgf1{small}_test.json")["testGroups"]
    encoded = bytes.fromhex(group["privateKeyPkcs8"])
    key = soft_private_key(Secret.copy_of(encoded))
    theirs: Any = load_der_private_key(encoded, None)
    numbers = theirs.private_numbers()
    n = numbers.public_numbers.n
    for case in group["tests"]:
        ciphertext = bytes.fromhex(case["ct"])
        # What RSA makes of it, by arithmetic: it goes through the decoder alone.
        em = None
        if len(ciphertext) == 256 and int.from_bytes(ciphertext) < n:
            em = pow(int.from_bytes(ciphertext), numbers.d, n).to_bytes(256)
        if case["result"] == "valid" and not case["label"]:
            assert key.decrypt(hash_name, ciphertext).reveal().hex() == case["msg"], case["tcId"]
            assert em is not None and oaep_decode(em, hash_name) == bytes.fromhex(case["msg"]), case["tcId"]
        else:
            refused(lambda ciphertext=ciphertext: key.decrypt(hash_name, ciphertext))
            assert em is None or oaep_decode(em, hash_name) is None, case["tcId"]


def mgf1(seed: bytes, size: int, name: str) -> bytes:
    return b"".join(hashlib.new(name, seed + counter.to_bytes(4)).digest() for counter in range(size // 16 + 1))[:size]


def encode(k: int, hash_name: str, db: bytes, first: int = 0, seed: bytes | None = None) -> bytes:
    """EME-OAEP by RFC 8017 7.1.1, of any data block."""
    name = hash_name.replace("-", "")
    size = HASHES[hash_name].digest_size
    assert len(db) == k - size - 1
    seed = os.urandom(size) if seed is None else seed
    masked = bytes(a ^ b for a, b in zip(db, mgf1(seed, len(db), name), strict=True))
    return bytes([first]) + bytes(a ^ b for a, b in zip(seed, mgf1(masked, size, name), strict=True)) + masked


@pytest.mark.parametrize("hash_name", list(HASHES))
@pytest.mark.parametrize("k", [256, 384, 512])
def test_every_damage_to_the_encoding_is_seen(k: int, hash_name: str) -> None:
    label = hashlib.new(hash_name.replace("-", ""), b"").digest()
    room = k - 2 * len(label) - 2
    for size in {0, 1, 16, 31, 32, 33, room // 2, room - 1, room}:
        message = os.urandom(size)
        db = label + bytes(room - size) + b"\1" + message
        assert oaep_decode(encode(k, hash_name, db), hash_name) == message
        for first in (1, 2, 0x80, 0xFF):
            assert oaep_decode(encode(k, hash_name, db, first), hash_name) is None
        for place in range(len(label)):
            broken = bytearray(db)
            broken[place] ^= 1 << (place % 8)
            assert oaep_decode(encode(k, hash_name, bytes(broken)), hash_name) is None
        for place in range(len(label), len(label) + room - size + 1):
            broken = bytearray(db)
            broken[place] ^= 0x80
            assert oaep_decode(encode(k, hash_name, bytes(broken)), hash_name) is None
    # No 01 at all; then every place it can have, and the message that it gives.
    assert oaep_decode(encode(k, hash_name, label + bytes(room + 1)), hash_name) is None
    content = bytes(1 + place % 250 for place in range(room))
    for size in range(room + 1):
        db = label + bytes(room - size) + b"\1" + content[:size]
        assert oaep_decode(encode(k, hash_name, db), hash_name) == content[:size]


def test_sizes_of_encodings() -> None:
    for size in (0, 41, 1025):
        with pytest.raises(ValueError, match="room for two digests"):
            oaep_decode(bytes(size), "SHA-1")
    label = hashlib.sha1(b"").digest()
    assert oaep_decode(encode(42, "SHA-1", label + b"\1"), "SHA-1") == b""


def test_every_bad_ciphertext_gives_one_error() -> None:
    key = soft("RSA_2048")
    numbers = private_key("RSA_2048").public_key().public_numbers()
    good = oaep_encrypt(key.public_key, "SHA-256", b"message")
    label = hashlib.sha256(b"").digest()
    db = label + bytes(183) + b"\1message"

    def sealed(em: bytes) -> bytes:
        return pow(int.from_bytes(em), numbers.e, numbers.n).to_bytes(256)

    assert key.decrypt("SHA-256", sealed(encode(256, "SHA-256", db))).reveal() == b"message"
    bad = [
        b"",
        good[:-1],
        good + b"\0",
        b"\0" + good,
        bytes(256),
        b"\xff" * 256,
        numbers.n.to_bytes(256),
        (numbers.n - 1).to_bytes(256),
        bytes(384),
        sealed(encode(256, "SHA-256", db, first=1)),
        sealed(encode(256, "SHA-256", label + bytes(191))),
        sealed(encode(256, "SHA-256", bytes(32) + db[32:])),
        sealed(encode(256, "SHA-256", label + b"\2" + db[33:])),
    ]
    for ciphertext in bad:
        refused(lambda ciphertext=ciphertext: key.decrypt("SHA-256", ciphertext))
        refused(lambda ciphertext=ciphertext: key.decrypt_pkcs1(ciphertext, 7))
    refused(lambda: key.decrypt("SHA-1", good))
    for name in ("", "MD5", "sha-1"):
        with pytest.raises(ValueError, match="hash"):
            key.decrypt(name, good)
    for wrong in ("text", None, Secret.copy_of(bytes(256))):
        with pytest.raises(TypeError):
            key.decrypt("SHA-1", wrong)  # type: ignore[arg-type]
    ec_key = soft("EC_P256")
    for call in (lambda: ec_key.decrypt("SHA-1", good), lambda: ec_key.decrypt_pkcs1(good, 7)):
        with pytest.raises(ValueError, match="no RSA key"):
            call()


# --- RSAES-PKCS1-v1_5 --------------------------------------------------------------------------------------------------------------


def test_pkcs1_wycheproof() -> None:
    count = 0
    for group in vectors("wycheproof/rsa_pkcs1_2048_test.json")["testGroups"]:
        key = soft_private_key(Secret.copy_of(bytes.fromhex(group["privateKeyPkcs8"])))
        for case in group["tests"]:
            ciphertext, message = bytes.fromhex(case["ct"]), bytes.fromhex(case["msg"])
            if case["result"] == "invalid":
                for size in (0, 16, 32, len(message), 245):
                    refused(lambda size=size, ciphertext=ciphertext, key=key: key.decrypt_pkcs1(ciphertext, size))
            elif case["result"] == "valid":
                count += 1
                assert key.decrypt_pkcs1(ciphertext, len(message)).reveal() == message
                refused(lambda message=message, ciphertext=ciphertext, key=key: key.decrypt_pkcs1(ciphertext, len(message) + 1))
    assert count > 30


@pytest.mark.parametrize("kind", RSA_KINDS)
def test_pkcs1(kind: str) -> None:
    key, theirs = soft(kind), private_key(kind)
    k = theirs.key_size // 8
    for size in (0, 1, 32, k - 11):
        message = os.urandom(size)
        ciphertext = theirs.public_key().encrypt(message, padding.PKCS1v15())
        assert key.decrypt_pkcs1(ciphertext, size).reveal() == message
        for wrong in {0, 1, size + 1, size + 2, k - 11, k - 10, k, 1 << 40} - {size}:
            refused(lambda wrong=wrong, ciphertext=ciphertext: key.decrypt_pkcs1(ciphertext, wrong))
    with pytest.raises(ValueError, match="negative"):
        key.decrypt_pkcs1(bytes(k), -1)


def test_every_damage_to_pkcs1_is_seen() -> None:
    key = soft("RSA_2048")
    numbers = private_key("RSA_2048").public_key().public_numbers()

    def opened(em: bytes) -> bytes:
        return key.decrypt_pkcs1(pow(int.from_bytes(em), numbers.e, numbers.n).to_bytes(256), 32).reveal()

    message = bytes(16) + os.urandom(16)
    good = b"\0\2" + b"\x5a" * (256 - 35) + b"\0" + message
    assert opened(good) == message
    for place in range(256 - 32):
        broken = bytearray(good)
        broken[place] = 1 if place == 0 else 0 if 2 <= place < 223 else 9
        refused(lambda broken=broken: opened(bytes(broken)))


# --- AES-KWP -----------------------------------------------------------------------------------------------------------------------


def test_kwp_wycheproof() -> None:
    counts = {"valid": 0, "invalid": 0, "acceptable": 0}
    for group in vectors("wycheproof/aes_kwp_test.json")["testGroups"]:
        for case in group["tests"]:
            kek = Secret.copy_of(bytes.fromhex(case["key"]))
            wrapped = bytes.fromhex(case["ct"])
            counts[case["result"]] += 1
            if case["result"] == "invalid":
                refused(lambda kek=kek, wrapped=wrapped: kwp_unwrap(kek, wrapped))
            else:
                assert kwp_unwrap(kek, wrapped).reveal().hex() == case["msg"], case["tcId"]
    assert counts["valid"] > 20 and counts["invalid"] > 50


def test_kwp() -> None:
    for size in (16, 24, 32):
        kek = os.urandom(size)
        secret = Secret.copy_of(kek)
        for length in (*range(1, 40), 1217, 2376, 8191, 8192):
            material = os.urandom(length)
            wrapped = aes_key_wrap_with_padding(kek, material)
            assert kwp_unwrap(secret, bytearray(wrapped)).reveal() == material
            broken = bytearray(wrapped)
            broken[length % len(wrapped)] ^= 1
            refused(lambda broken=broken, secret=secret: kwp_unwrap(secret, broken))
        refused(lambda secret=secret, kek=kek: kwp_unwrap(secret, aes_key_wrap_with_padding(kek, bytes(8193))))
        for wrong in (b"", bytes(8), bytes(15), bytes(17), bytes(24), bytes(9000)):
            refused(lambda wrong=wrong, secret=secret: kwp_unwrap(secret, wrong))
        assert secret.size == size
    with pytest.raises(ValueError, match="16, 24 or 32"):
        kwp_unwrap(Secret.random(31), bytes(24))
