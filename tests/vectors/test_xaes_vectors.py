"""Outside vectors through the C core: C2SP XAES-256-GCM and Wycheproof AES-GCM, in a token and in software.

The core draws its own nonces, so a given one goes the other way: `decrypt` opens the published ciphertext. Under one key and nonce only one
ciphertext opens to a given plaintext, so that settles encryption too; in the token the same derived key also encrypts, called by hand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from p11_helpers import Rig, open_rig, vectors, xaes_subkey

from kmscore.custody._p11 import AeadKey, Secret, soft_key
from kmscore.errors import KmsError

# C2SP XAES-256-GCM (commit 5ba5ee83), appendix: figures of the specification, so that this test runs without any file.
NONCE = b"ABCDEFGHIJKLMNOPQRSTUVWX"
STEPS = [
    (b"\1" * 32, b"", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
    (b"\3" * 32, b"c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"),
]
ACCUMULATED = "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939"
ITERATIONS = 10_000

Maker = Callable[[bytes, int], AeadKey]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with open_rig(tmp_path_factory.mktemp("token")) as rig:
        yield rig


@pytest.fixture(params=["token", "soft"])
def make(request: pytest.FixtureRequest) -> Maker:
    if request.param == "soft":
        return lambda value, suite: soft_key(Secret.copy_of(value), suite)
    rig: Rig = request.getfixturevalue("rig")

    def in_token(value: bytes, suite: int) -> AeadKey:
        handle = rig.key(value, derives=suite == 1)
        return rig.token.xaes_key(handle) if suite == 1 else rig.token.gcm_key(handle)

    return in_token


@pytest.mark.parametrize(("key", "aad", "sealed"), STEPS, ids=["msb0", "msb1"])
def test_xaes_steps(make: Maker, key: bytes, aad: bytes, sealed: str) -> None:
    assert make(key, 1).decrypt(0, aad, NONCE + bytes.fromhex(sealed)) == b"XAES-256-GCM"
    # And so is the tests' own way to Kx.
    assert AESGCM(xaes_subkey(key, NONCE)).encrypt(NONCE[12:], b"XAES-256-GCM", aad).hex() == sealed


@pytest.mark.parametrize(("key", "aad", "sealed"), STEPS, ids=["msb0", "msb1"])
def test_xaes_steps_encrypted_in_the_token(rig: Rig, key: bytes, aad: bytes, sealed: str) -> None:
    aead = rig.token.xaes_key(rig.key(key))
    session = rig.raw.open()
    assert rig.raw.encrypt(session, aead.derive_subkey_for_test(NONCE), NONCE[12:], aad, b"XAES-256-GCM").hex() == sealed
    rig.raw.close(session)


def test_the_figures_here_are_those_of_the_file() -> None:
    published = vectors("xaes-256-gcm.json")
    assert [(bytes.fromhex(v["key"]), v["aad_ascii"].encode(), v["ciphertext"]) for v in published["vectors"]] == STEPS
    assert published["accumulated"]["iterations_10000"] == ACCUMULATED


def accumulated(seal: Callable[[bytes, bytes, bytes, bytes], bytes]) -> str:
    """The hash of the specification over ITERATIONS random messages; `seal` maps (key, nonce, plaintext, aad) to ciphertext and tag."""
    stream = hashlib.shake_128(b"").digest(ITERATIONS * 568)
    at = 0

    def read(size: int) -> bytes:
        nonlocal at
        at += size
        return stream[at - size : at]

    hashed = hashlib.shake_128()
    for _ in range(ITERATIONS):
        key, nonce = read(32), read(24)
        plaintext = read(read(1)[0])
        aad = read(read(1)[0])
        hashed.update(seal(key, nonce, plaintext, aad))
    return hashed.hexdigest(32)


def test_xaes_accumulated_in_the_token(rig: Rig) -> None:
    session = rig.raw.open()

    def seal(key: bytes, nonce: bytes, plaintext: bytes, aad: bytes) -> bytes:
        # Session objects as masters: a token object costs SoftHSM some milliseconds of files.
        aead = rig.token.xaes_key(rig.key(key, resident=False))
        sealed = rig.raw.encrypt(session, aead.derive_subkey_for_test(nonce), nonce[12:], aad, plaintext)
        assert aead.decrypt(0, aad, nonce + sealed) == plaintext
        rig.objects.pop().destroy()
        return sealed

    assert accumulated(seal) == ACCUMULATED
    rig.raw.close(session)
    assert rig.token.live_derived == 0


def test_xaes_accumulated_in_software() -> None:
    def seal(key: bytes, nonce: bytes, plaintext: bytes, aad: bytes) -> bytes:
        sealed = AESGCM(xaes_subkey(key, nonce)).encrypt(nonce[12:], plaintext, aad)
        assert soft_key(Secret.copy_of(key), 1).decrypt(0, aad, nonce + sealed) == plaintext
        return sealed

    assert accumulated(seal) == ACCUMULATED


# --- Wycheproof --------------------------------------------------------------------------------------------------------------------


def test_wycheproof_aes_gcm(make: Maker) -> None:
    """Every case with a 96-bit IV and a 128-bit tag, a valid one after each that must fail, and the one error that may be raised."""
    published = vectors("wycheproof/aes_gcm_test.json")
    assert published["algorithm"] == "AES-GCM"
    control = make(bytes(32), 2)
    good = control.encrypt(b"", b"", b"control")
    opened = failed = 0
    for group in published["testGroups"]:
        if group["ivSize"] != 96 or group["tagSize"] != 128:
            continue
        for case in group["tests"]:
            value: dict[str, Any] = {name: bytes.fromhex(case[name]) for name in ("key", "iv", "aad", "msg", "ct", "tag")}
            key = make(value["key"], 2)
            blob = value["iv"] + value["ct"] + value["tag"]
            if case["result"] == "valid":
                assert key.decrypt(0, value["aad"], blob) == value["msg"], case["tcId"]
                assert key.decrypt_batch(0, value["aad"], [b"", blob])[1] == value["msg"], case["tcId"]
                opened += 1
            else:
                with pytest.raises(KmsError) as caught:
                    key.decrypt(0, value["aad"], blob)
                assert type(caught.value) is KmsError and caught.value.code == "InvalidParameter", case["tcId"]
                assert control.decrypt(0, b"", good) == b"control"
                failed += 1
    assert opened > 100
    assert failed > 30


def test_other_sizes_of_iv_and_tag_are_refused_before_the_key_is_touched(make: Maker) -> None:
    key = make(bytes(32), 2)
    for size in range(12 + 16):
        with pytest.raises(KmsError):
            key.decrypt(0, b"", bytes(size))
