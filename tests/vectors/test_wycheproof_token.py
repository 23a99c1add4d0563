"""Wycheproof inside the token, through the code that imports and MACs there: HMAC, RSAES-PKCS1-v1_5, AES-KWP. Keys come in by
C_CreateObject, which the product never calls. A valid case follows each invalid one. What does not apply is named with its reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import peers
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_private_key
from p11_helpers import Rig, open_rig, vectors
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.util.rsa import decode_rsa_private_key

from kmscore.custody.softhsm import MECHANISMS
from kmscore.custody.templates import Mapper
from kmscore.custody.unwrap import Unwrapper, Wrapped
from kmscore.domain.algorithms import WrappingAlgorithm
from kmscore.errors import TokenError

READABLE = {
    Attribute.CLASS: int(ObjectClass.SECRET_KEY),
    Attribute.KEY_TYPE: int(KeyType.GENERIC_SECRET),
    Attribute.TOKEN: False,
    Attribute.SENSITIVE: False,
    Attribute.EXTRACTABLE: True,
}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with open_rig(tmp_path_factory.mktemp("token"), mechanisms=",".join(MECHANISMS)) as rig:
        (slot,) = (slot for slot in rig.lib.get_slots(token_present=True) if slot.slot_id == rig.slot)
        rig.control.close()
        rig.control = slot.get_token().open(rw=True, attribute_mapper=Mapper())  # as the product packs attributes
        yield rig


def secret(rig: Rig, value: bytes, **usage: bool) -> Any:
    return rig.control.create_object(
        {
            Attribute.CLASS: ObjectClass.SECRET_KEY,
            Attribute.KEY_TYPE: KeyType.GENERIC_SECRET,
            Attribute.VALUE: value,
            Attribute.TOKEN: False,
            **{Attribute[name.upper()]: flag for name, flag in usage.items()},
        }
    )


def private(rig: Rig, pkcs8: bytes) -> Any:
    key = load_der_private_key(pkcs8, None)
    assert isinstance(key, rsa.RSAPrivateKey)
    traditional = key.private_bytes(
        peers.serialization.Encoding.DER, peers.serialization.PrivateFormat.TraditionalOpenSSL, peers.serialization.NoEncryption()
    )
    attributes = {**decode_rsa_private_key(traditional), Attribute.TOKEN: False, Attribute.UNWRAP: True, Attribute.DECRYPT: False}
    return rig.control.create_object(attributes)


class Unwraps:
    def __init__(self, rig: Rig, key: Any, algorithm: WrappingAlgorithm) -> None:
        self._unwrapper = Unwrapper(rig.token, [Mechanism[name.removeprefix("CKM_")] for name in MECHANISMS], nullcontext())
        self._come = (rig.control, key, 256, algorithm)

    def __call__(self, data: bytes) -> bytes | None:
        """What came out; None where the token refused."""
        try:
            thing = self._unwrapper.unwrap(Wrapped(*self._come, data), READABLE)  # type: ignore[arg-type]
        except TokenError:
            return None
        value = bytes(thing[Attribute.VALUE])
        thing.destroy()
        return value


def test_hmac(rig: Rig) -> None:
    """HMAC_256 keys have 32 bytes, and a MAC that is cut short is none: the groups of other sizes do not apply."""
    ran = 0
    for group in vectors("wycheproof/hmac_sha256_test.json")["testGroups"]:
        if (group["keySize"], group["tagSize"]) != (256, 256):
            continue
        for case in group["tests"]:
            handle = int(secret(rig, bytes.fromhex(case["key"]), sign=True).handle)
            tag = rig.token.sign(handle, Mechanism.SHA256_HMAC, bytes.fromhex(case["msg"]), 32)
            assert (tag == bytes.fromhex(case["tag"])) is (case["result"] == "valid"), case
            ran += 1
    assert ran == 81


def test_pkcs1(rig: Rig) -> None:
    """Messages of every length; an empty one is no key that a token can hold (SoftHSM refuses it)."""
    ran = 0
    for group in vectors("wycheproof/rsa_pkcs1_2048_test.json")["testGroups"]:
        unwrap = Unwraps(rig, private(rig, bytes.fromhex(group["privateKeyPkcs8"])), WrappingAlgorithm.RSAES_PKCS1_V1_5)
        good = next((case for case in group["tests"] if case["result"] == "valid" and case["msg"]), None)
        for case in group["tests"]:
            message = unwrap(bytes.fromhex(case["ct"])) if case["ct"] else None
            if case["result"] == "valid" and case["msg"]:
                assert message == bytes.fromhex(case["msg"]), case
            elif case["result"] == "valid":
                assert message in (None, b""), case
            else:
                assert message is None, case
                if good is not None:
                    assert unwrap(bytes.fromhex(good["ct"])) == bytes.fromhex(good["msg"])
            ran += 1
    assert ran == 67


def test_kwp(rig: Rig) -> None:
    """As the second step of an import: the key of each case comes in front, under RSAES-OAEP."""
    theirs = peers.new_private_key("RSA_2048")
    unwrap = Unwraps(rig, private(rig, peers.pkcs8(theirs)), WrappingAlgorithm.RSA_AES_KEY_WRAP_SHA_1)

    def run(case: dict[str, Any]) -> bytes | None:
        front = peers.encrypt(peers.spki(theirs), "RSAES_OAEP_SHA_1", bytes.fromhex(case["key"]))
        return unwrap(front + bytes.fromhex(case["ct"]))

    ran = 0
    for group in vectors("wycheproof/aes_kwp_test.json")["testGroups"]:
        good = next(case for case in group["tests"] if case["result"] == "valid")
        for case in group["tests"]:
            key = run(case)
            if case["result"] == "valid":
                assert key == bytes.fromhex(case["msg"]), case
            else:
                assert key is None, case
                assert run(good) == bytes.fromhex(good["msg"])
            ran += 1
    assert ran == 254


def test_what_is_wrapped_with_kw_is_no_kwp(rig: Rig) -> None:
    """AES-KW (RFC 3394) is not offered: no case of its file unwraps, the valid ones neither."""
    theirs = peers.new_private_key("RSA_2048")
    unwrap = Unwraps(rig, private(rig, peers.pkcs8(theirs)), WrappingAlgorithm.RSA_AES_KEY_WRAP_SHA_1)
    for group in vectors("wycheproof/aes_wrap_test.json")["testGroups"]:
        for case in group["tests"]:
            front = peers.encrypt(peers.spki(theirs), "RSAES_OAEP_SHA_1", bytes.fromhex(case["key"]))
            assert unwrap(front + bytes.fromhex(case["ct"])) is None, case
    assert unwrap(os.urandom(296)) is None
