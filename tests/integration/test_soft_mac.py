"""HMAC in this process, against the standard library and Wycheproof. Its retirement and forking: test_soft_private.py."""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterator

import pytest
from asym_helpers import leaves_no_secret
from p11_helpers import vectors

from kmscore.custody._p11 import Secret, soft_mac_key


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield from leaves_no_secret()


@pytest.mark.parametrize(("hash_name", "name"), [("SHA-256", "sha256"), ("SHA-384", "sha384"), ("SHA-512", "sha512")])
def test_hmac(hash_name: str, name: str) -> None:
    for size in (1, 16, 32, 63, 64, 65, 127, 128, 129, 200, 8192):
        value = os.urandom(size)
        secret = Secret.copy_of(value)
        key = soft_mac_key(secret, hash_name)
        with pytest.raises(ValueError, match="closed"):
            secret.reveal()
        for message in (b"", b"x", os.urandom(16383), bytearray(16384), memoryview(bytes(100000))):
            assert key.mac(message) == hmac.digest(value, message, name)
    for wrong in ("text", None, Secret.copy_of(b"x")):
        with pytest.raises(TypeError):
            key.mac(wrong)  # type: ignore[arg-type]
    for bad in ("", "SHA-1", "sha-256"):
        secret = Secret.random(32)
        with pytest.raises(ValueError, match="SHA-256, SHA-384, SHA-512"):
            soft_mac_key(secret, bad)
        assert secret.size == 32


def test_hmac_wycheproof() -> None:
    count = 0
    for group in vectors("wycheproof/hmac_sha256_test.json")["testGroups"]:
        for case in group["tests"] if group["tagSize"] == 256 else ():
            tag = soft_mac_key(Secret.copy_of(bytes.fromhex(case["key"])), "SHA-256").mac(bytes.fromhex(case["msg"]))
            assert (tag.hex() == case["tag"]) is (case["result"] == "valid"), case["tcId"]
            count += 1
    assert count > 50
