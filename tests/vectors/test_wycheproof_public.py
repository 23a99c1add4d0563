"""Wycheproof through the engine's public operations, at both levels: RSAES-OAEP under an imported private key, and verification.

A valid case follows each invalid one, so that an error which spoils what comes after it shows. Cases that do not apply are listed here by
their number, with the reason. The same files through the core alone: tests/integration/test_soft_private.py and its like.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
from custody_helpers import fast_directory

import kmscore
from kmscore import KmsError
from kmscore.domain.specs import ProtectionLevel
from kmscore.engine.kms import Kms

LEVELS = ["HSM", "SOFTWARE"]

# The API has no label (RFC 8017 section 7.1): these are encrypted with one.
WITH_LABEL = {
    "rsa_oaep_2048_sha1_mgf1sha1_test.json": [8, 9, 10, 33, 34, 35, 36],
    "rsa_oaep_2048_sha256_mgf1sha256_test.json": [8, 9, 10, 33, 34, 35, 36, 37],
}


@pytest.fixture(scope="module")
def wycheproof(vectors: Path) -> Path:
    return vectors / "wycheproof"


@pytest.fixture(scope="module")
def kms() -> Iterator[Kms]:
    with fast_directory() as directory, kmscore.open_kms(directory / "home", ticker=False) as kms:
        yield kms


def groups(folder: Path, name: str) -> list[dict[str, Any]]:
    read: list[dict[str, Any]] = json.loads((folder / name).read_text())["testGroups"]
    return read


def version_of(kms: Kms, key: str) -> str:
    return kms.list_key_versions(key).items[0].key_version_id


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("name", "algorithm"), list(zip(WITH_LABEL, ("RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"), strict=True)))
def test_oaep(kms: Kms, wycheproof: Path, level: str, name: str, algorithm: str) -> None:
    (group,) = groups(wycheproof, name)
    key = kms.create_key(protection_level=level, key_spec="RSA_2048", key_usage="ENCRYPT/DECRYPT", origin="EXTERNAL").key_id
    wrapping = "RSA_AES_KEY_WRAP_SHA_1"
    offer = kms.get_parameters_for_import(key, wrapping_algorithm=wrapping, wrapping_key_spec="RSA_2048")
    material = peers.wrap(offer.public_key, wrapping, bytes.fromhex(group["privateKeyPkcs8"]))
    kms.import_key_material(key, encrypted_key_material=material, import_token=offer.import_token)
    more = {"key_version_id": version_of(kms, key), "algorithm": algorithm}
    cases = [case for case in group["tests"] if case["tcId"] not in WITH_LABEL[name]]
    assert [case["tcId"] for case in group["tests"] if case["label"] and case["result"] == "valid"] == WITH_LABEL[name]
    good = next(case for case in cases if case["result"] == "valid")
    ran = 0
    for case in cases:
        try:
            plaintext = kms.asymmetric_decrypt(key, **more, ciphertext_blob=bytes.fromhex(case["ct"])).plaintext
        except KmsError as error:
            assert case["result"] == "invalid", case
            assert error.code == ("InvalidParameter" if case["ct"] else "MissingParameter"), case
            again = kms.asymmetric_decrypt(key, **more, ciphertext_blob=bytes.fromhex(good["ct"])).plaintext
            assert again == bytes.fromhex(good["msg"])
        else:
            assert case["result"] == "valid", case
            assert plaintext == bytes.fromhex(case["msg"]), case
        ran += 1
    assert ran == len(group["tests"]) - len(WITH_LABEL[name])


VERIFY = [
    ("rsa_pss_2048_sha256_mgf1_32_test.json", "RSA_2048", "RSA_PSS_SHA_256", "publicKeyDer"),
    ("rsa_signature_2048_sha256_test.json", "RSA_2048", "RSA_PKCS1_SHA_256", "publicKeyDer"),
    ("ecdsa_secp256r1_sha256_test.json", "EC_P256", "ECDSA_SHA_256", "publicKeyDer"),
    ("ecdsa_secp256k1_sha256_test.json", "EC_P256K", "ECDSA_SHA_256", "publicKeyDer"),
]
# PKCS #1 v1.5 with the NULL parameter of the hash left out: "acceptable", and refused here as by RFC 8017 section 8.2.2.
ACCEPTABLE = {"rsa_signature_2048_sha256_test.json": {8}}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("name", "spec", "algorithm", "field"), VERIFY, ids=[row[0].removesuffix("_test.json") for row in VERIFY])
def test_verify(
    kms: Kms, wycheproof: Path, monkeypatch: pytest.MonkeyPatch, level: str, name: str, spec: str, algorithm: str, field: str
) -> None:
    """The public key of a group takes the place of the one that the custody states of a new key; all the rest is as ever."""
    keeper = kms._s.importing._keepers[ProtectionLevel(level)]
    all_groups = groups(wycheproof, name)
    cases = [(group, case) for group in all_groups for case in group["tests"]]
    results: dict[str, int] = {}
    for group in all_groups:
        with monkeypatch.context() as patch:
            patch.setattr(keeper, "generate", lambda ref, der=group[field]: {"public_key": der})
            key = kms.create_key(protection_level=level, key_spec=spec, key_usage="SIGN/VERIFY").key_id
        more = {"key_version_id": version_of(kms, key), "algorithm": algorithm}

        def check(case: dict[str, Any], key: str = key, more: dict[str, str] = more) -> bool:
            digest = hashlib.sha256(bytes.fromhex(case["msg"])).digest()
            value = bytes.fromhex(case["sig"])
            if not value:
                with pytest.raises(KmsError, match="MissingParameter"):
                    kms.asymmetric_verify(key, **more, digest=digest, value=value)
                return False
            return kms.asymmetric_verify(key, **more, digest=digest, value=value).value

        good = next((case for case in group["tests"] if case["result"] == "valid"), None)
        for case in group["tests"]:
            truth = check(case)
            if case["result"] == "acceptable":
                assert case["tcId"] in ACCEPTABLE[name], case
                assert not truth
            else:
                assert truth is (case["result"] == "valid"), case
            if not truth and good is not None:
                assert check(good)
            results[case["result"]] = results.get(case["result"], 0) + 1
    assert sum(results.values()) == len(cases)
