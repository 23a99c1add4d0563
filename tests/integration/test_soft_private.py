"""Private keys in this process: making, reading and ending them, and their signatures, against `cryptography`."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import hmac
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asym_helpers import CURVES, EC_KINDS, RSA_KINDS, leaves_no_secret, pair, private_key, soft, spki, verify
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_der_public_key,
)
from p11_helpers import in_child

from kmscore.custody import _p11
from kmscore.custody._p11 import Secret, SoftMacKey, SoftPrivateKey, kwp_unwrap, oaep_encrypt, soft_mac_key, soft_private_key
from kmscore.errors import KmsError

SCHEMES = [*((kind, scheme) for kind in RSA_KINDS for scheme in ("PKCS1", "PSS")), *((kind, "ECDSA") for kind in EC_KINDS)]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield from leaves_no_secret()


def pkcs8(key: Any) -> bytes:
    return bytes(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))


# --- pairs -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RSA_KINDS + EC_KINDS)
def test_pairs(kind: str) -> None:
    encoded, public = pair(kind)
    key: Any = load_der_private_key(encoded, None)
    assert spki(key.public_key()) == public
    if kind in RSA_KINDS:
        assert key.key_size == int(kind[-4:])
        assert key.public_key().public_numbers().e == 65537
    else:
        assert key.curve.name == CURVES[kind][0].name
    secret = Secret.copy_of(encoded)
    again = soft_private_key(secret)
    assert (again.kind, again.public_key) == (kind, public)
    with pytest.raises(ValueError, match="closed"):
        secret.reveal()


def test_two_pairs_are_two() -> None:
    (first, _), (second, _) = _p11.soft_generate_pair("EC_P256"), _p11.soft_generate_pair("EC_P256")
    assert first.reveal() != second.reveal()
    for kind in ("", "RSA_1024", "EC_P224", "rsa_2048"):
        with pytest.raises(ValueError, match="the kind is one of"):
            _p11.soft_generate_pair(kind)


def test_generation_gives_up_the_gil() -> None:
    """Another thread counts on while RSA is made."""
    counted = 0
    done = threading.Event()

    def count() -> None:
        nonlocal counted
        while not done.wait(0.001):
            counted += 1

    thread = threading.Thread(target=count)
    thread.start()
    _p11.soft_generate_pair("RSA_4096")
    seen = counted
    done.set()
    thread.join()
    assert seen > 5


# --- what is no private key --------------------------------------------------------------------------------------------------------


def rsa_pkcs8(bits: int, exponent: int = 65537) -> bytes:
    key = rsa.generate_private_key(exponent, bits)
    return pkcs8(key)


def der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def integer(value: int) -> bytes:
    return der(2, value.to_bytes(value.bit_length() // 8 + 1))


RSA_ALGORITHM = bytes.fromhex("300d06092a864886f70d0101010500")


def rsa_info(*numbers: int, version: int = 0, more: bytes = b"", inner_more: bytes = b"", rest: bytes = b"") -> bytes:
    inner = der(0x30, b"".join(integer(number) for number in numbers) + inner_more)
    return der(0x30, integer(version) + RSA_ALGORITHM + der(4, inner + more) + rest)


def numbers_of(kind: str = "RSA_2048") -> list[int]:
    n = private_key(kind).private_numbers()
    return [0, n.public_numbers.n, n.public_numbers.e, n.d, n.p, n.q, n.dmp1, n.dmq1, n.iqmp]


def not_keys() -> dict[str, bytes]:
    good, ec_good = pair("RSA_2048")[0], pair("EC_P256")[0]
    numbers = numbers_of()
    assert rsa_info(*numbers) == good
    big = private_key("RSA_2048").private_numbers()

    def with_exponent(e: int) -> bytes:
        d = pow(e, -1, (big.p - 1) * (big.q - 1))
        return rsa_info(0, numbers[1], e, d, big.p, big.q, d % (big.p - 1), d % (big.q - 1), big.iqmp)

    def changed(at: int, by: int = 2) -> bytes:
        return rsa_info(*[number + by * (place == at) for place, number in enumerate(numbers)])

    ec_key = private_key("EC_P256")
    wrong_public = ec_good[:-64] + spki(ec.generate_private_key(ec.SECP256R1()).public_key())[-64:]
    long_form = b"\x30\x84" + (len(good) - 4).to_bytes(4) + good[4:]
    return {
        "empty": b"\0",
        "text": b"-----BEGIN PRIVATE KEY-----",
        "cut": good[:-1],
        "longer": good + b"\0",
        "long form of a length": long_form,
        "indefinite length": b"\x30\x80" + good[4:] + b"\0\0",
        "something behind the key": rsa_info(*numbers, more=b"\5\0"),
        "something in the key": rsa_info(*numbers, inner_more=b"\5\0"),
        "version 1": rsa_info(*numbers, version=1),
        "a public key in it": rsa_info(*numbers, version=1, rest=der(0x81, b"\0" + bytes(64))),
        "PKCS#1": bytes(private_key("RSA_2048").private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())),
        "SEC 1": bytes(ec_key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())),
        "a public key": pair("RSA_2048")[1],
        "2056 bits": rsa_pkcs8(2056),
        "1024 bits": rsa_pkcs8(1024),
        "e = 3": rsa_pkcs8(2048, 3),
        "e of 257 bits": with_exponent(2**256 + 297),
        "another n": changed(1),
        "another e": changed(2),
        "another d": changed(3),
        "another p": changed(4),
        "another q": changed(5),
        "another dp": changed(6),
        "another dq": changed(7),
        "another qinv": changed(8),
        "negative": rsa_info(*numbers).replace(b"\x02\x03\x01\x00\x01", b"\x02\x03\x81\x00\x01"),
        "Ed25519": pkcs8(ed25519.Ed25519PrivateKey.generate()),
        "P-224": pkcs8(ec.generate_private_key(ec.SECP224R1())),
        "brainpool": pkcs8(ec.generate_private_key(ec.BrainpoolP256R1())),
        "another point": wrong_public,
        "EC longer": ec_good + b"\0",
        "EC scalar 0": ec_good[:36] + bytes(32) + ec_good[68:],
        "EC scalar beyond the order": ec_good[:36] + b"\xff" * 32 + ec_good[68:],
        "random": os.urandom(1200),
    }


def test_what_is_no_private_key() -> None:
    messages = set()
    for name, data in not_keys().items():
        for known_good in (False, True):
            if known_good and name.removeprefix("another ") in ("d", "p", "q", "dp", "dq", "qinv"):
                continue  # OpenSSL mends what CRT got wrong by d, and uses d for nothing else
            secret = Secret.copy_of(data)
            with pytest.raises(ValueError, match="private key") as caught:
                soft_private_key(secret, known_good=known_good)
                pytest.fail(name)
            messages.add(str(caught.value))
            assert secret.size == len(data)  # still the caller's
            secret.close()
    assert len(messages) == 1


def test_other_ways_to_write_a_key() -> None:
    # A great exponent, and an EC key without its public half or with a compressed one, are keys all the same.
    n = private_key("RSA_2048").private_numbers()
    e = 2**255 + 95
    while True:
        e += 2
        try:
            d = pow(e, -1, (n.p - 1) * (n.q - 1))
            break
        except ValueError:
            continue
    great = soft_private_key(Secret.copy_of(rsa_info(0, n.p * n.q, e, d, n.p, n.q, d % (n.p - 1), d % (n.q - 1), n.iqmp)))
    public: Any = load_der_public_key(great.public_key)
    assert public.public_numbers().e == e
    digest = hashlib.sha256(b"x").digest()
    assert verify(public, "PSS", "SHA-256", great.sign("PSS", digest), digest)
    ec_key = private_key("EC_P256")
    algorithm = bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107")
    scalar = integer(1) + der(4, ec_key.private_numbers().private_value.to_bytes(32))
    point = ec_key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    for inner in (scalar, scalar + der(0xA1, der(3, b"\0" + point))):
        short = soft_private_key(Secret.copy_of(der(0x30, integer(0) + algorithm + der(4, der(0x30, inner)))))
        assert short.public_key == pair("EC_P256")[1]
        assert verify(ec_key.public_key(), "ECDSA", "SHA-256", short.sign("ECDSA", digest), digest)


# --- signatures --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "scheme"), SCHEMES)
def test_signatures(kind: str, scheme: str) -> None:
    key = soft(kind)
    public = load_der_public_key(key.public_key)
    for hash_name in ("SHA-256", "SHA-384", "SHA-512", "SHA-256"):
        for message in (b"", b"message", os.urandom(1000)):
            digest = hashlib.new(hash_name.replace("-", ""), message).digest()
            signature = key.sign(scheme, digest)
            assert verify(public, scheme, hash_name, signature, digest)
            assert not verify(public, scheme, hash_name, signature, digest[::-1])
            if kind in RSA_KINDS:
                assert len(signature) == int(kind[-4:]) // 8


def test_what_cannot_be_signed() -> None:
    for kind, wrong in (("RSA_2048", ("ECDSA", "OAEP", "pss", "")), ("EC_P256", ("PSS", "PKCS1", "ecdsa", ""))):
        key = soft(kind)
        for scheme in wrong:
            with pytest.raises(ValueError, match="scheme"):
                key.sign(scheme, bytes(32))
        for size in (0, 20, 28, 31, 33, 65):
            with pytest.raises(ValueError, match="32, 48 or 64"):
                key.sign("PSS" if kind in RSA_KINDS else "ECDSA", bytes(size))
        for digest in ("x" * 32, None, bytearray(32)):
            with pytest.raises(TypeError):
                key.sign("PSS", digest)  # type: ignore[arg-type]


# --- the end of a key --------------------------------------------------------------------------------------------------------------


def keys() -> list[tuple[SoftPrivateKey | SoftMacKey, Callable[[], object]]]:
    rsa_key, ec_key, mac_key = soft("RSA_2048"), soft("EC_P256"), soft_mac_key(Secret.random(32), "SHA-256")
    return [
        (rsa_key, lambda: rsa_key.decrypt("SHA-1", bytes(256))),
        (rsa_key, lambda: rsa_key.decrypt_pkcs1(bytes(256), 1)),
        (rsa_key, lambda: rsa_key.sign("PSS", bytes(32))),
        (ec_key, lambda: ec_key.sign("ECDSA", bytes(32))),
        (mac_key, lambda: mac_key.mac(b"x")),
    ]


def test_retire() -> None:
    for key, call in keys():
        if key.retire():  # the same key may come again
            assert key.retire() is True
        with pytest.raises(KmsError) as caught:
            call()
        assert caught.value.code == "Rejected.Unavailable"


def test_retire_with_a_call_in_flight() -> None:
    seen = False
    for _ in range(50):
        key = soft("RSA_4096")
        public = load_der_public_key(key.public_key)
        inside = threading.Event()
        signatures: list[bytes] = []

        def work(key: SoftPrivateKey = key, inside: threading.Event = inside, signatures: list[bytes] = signatures) -> None:
            inside.set()
            try:
                while True:
                    signatures.append(key.sign("PSS", bytes(32)))
            except KmsError as error:
                assert error.code == "Rejected.Unavailable"

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        inside.wait()
        while not signatures:
            pass
        idle = key.retire()
        seen = seen or not idle
        for thread in threads:
            thread.join()
        assert key.retire() is True
        assert all(verify(public, "PSS", "SHA-256", signature, bytes(32)) for signature in signatures)
        if seen:
            return
    pytest.fail("no call was in flight in 50 attempts")


def test_retire_a_mac_key_with_a_call_in_flight() -> None:
    message = bytes(1 << 27)  # half a second or so
    value = os.urandom(32)
    key = soft_mac_key(Secret.copy_of(value), "SHA-256")
    inside = threading.Event()
    tags: list[bytes] = []

    def work() -> None:
        inside.set()
        with contextlib.suppress(KmsError):
            tags.append(key.mac(message))

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    idle = key.retire()
    thread.join()
    assert idle is (not tags)  # it was in flight, or came too late
    assert key.retire() is True
    with pytest.raises(KmsError):
        key.mac(b"x")
    assert tags == [] or tags == [hmac.digest(value, message, "sha256")]


def test_threads_on_one_key() -> None:
    key, mac_key = soft("EC_P256"), soft_mac_key(Secret.copy_of(bytes(32)), "SHA-512")
    public = load_der_public_key(key.public_key)
    failures: list[object] = []

    def work() -> None:
        try:
            for number in range(300):
                digest = os.urandom((32, 48, 64)[number % 3])
                name = {32: "SHA-256", 48: "SHA-384", 64: "SHA-512"}[len(digest)]
                assert verify(public, "ECDSA", name, key.sign("ECDSA", digest), digest)
                message = bytes((10, 20000)[number % 2])
                assert mac_key.mac(message) == hmac.digest(bytes(32), message, "sha512")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_everything_refuses_in_a_forked_child() -> None:
    for key, call in keys():
        for refused_call in (call, key.retire):
            answer = in_child(refused_call)
            assert answer.startswith("SetupError") and "was opened before fork" in answer
    secret = Secret.copy_of(pair("EC_P256")[0])
    for call in (
        lambda: soft_private_key(secret),
        lambda: soft_mac_key(secret, "SHA-256"),
        lambda: kwp_unwrap(secret, bytes(24)),
        lambda: oaep_encrypt(pair("RSA_2048")[1], "SHA-1", secret),
    ):
        answer = in_child(call)
        assert answer.startswith("SetupError") and "was opened before fork" in answer
    secret.close()
    child = in_child(lambda: soft("EC_P256").sign("ECDSA", bytes(32)).hex())
    assert len(child) > 100


def test_no_pickle_no_copy_no_direct_making() -> None:
    for thing in (soft("EC_P256"), soft_mac_key(Secret.random(32), "SHA-256")):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError):
                pickle.dumps(thing, protocol)
        with pytest.raises(TypeError):
            copy.copy(thing)
        with pytest.raises(TypeError):
            type(thing)()
        hollow: Any = type(thing).__new__(type(thing))  # not what anyone should do, but it must not crash
        with pytest.raises(TypeError):
            hollow.retire()
        with pytest.raises(TypeError):
            hollow.sign("ECDSA", bytes(32)) if isinstance(hollow, SoftPrivateKey) else hollow.mac(b"")
