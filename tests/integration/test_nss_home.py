"""A home on another token than SoftHSM: NSS softoken, from the settings to the ciphertext. The custody suite runs on it as well."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import peers
import pytest
from custody_helpers import fast_directory, new_nss
from independent import canonical, decode
from test_kms import START, code

import kmscore
from kmscore import FixedClock
from kmscore.engine.kms import Kms

CONTEXT = {"a": "b"}


@pytest.fixture(scope="module")
def settings() -> Iterator[dict[str, Any]]:
    with fast_directory() as directory:
        yield {"home": directory / "home", **new_nss(directory / "nss")}


@pytest.fixture(scope="module")
def kms(settings: dict[str, Any]) -> Iterator[Kms]:
    with kmscore.open_kms(**settings, clock=FixedClock(START)) as kms:
        yield kms


def test_the_doctor_knows_the_token(kms: Kms) -> None:
    findings = kms.doctor()
    text = "\n".join(finding.what for finding in findings)
    assert "NSS" in text
    warned = [finding.what for finding in findings if finding.level == "warn"]
    assert any("CKA_EXTRACTABLE" in what for what in warned)  # tests/integration/test_tookan.py shows that it is so
    assert any("CKA_DERIVE" in what for what in warned)
    assert not [finding for finding in findings if finding.level == "fail" and "token" in finding.what]


@pytest.mark.parametrize("spec", ["Aliyun_AES_256", "Aliyun_AES_192", "Aliyun_AES_128"])
def test_symmetric_keys(kms: Kms, spec: str) -> None:
    key = kms.create_key(protection_level="HSM", key_spec=spec).key_id
    texts = [os.urandom(size) for size in (1, 32, 6144)]
    for text in texts:
        blob = kms.encrypt(key, text, CONTEXT).ciphertext_blob
        assert blob[1] == (1 if spec == "Aliyun_AES_256" else 2)
        assert kms.decrypt(blob, CONTEXT).plaintext == text
        assert code(kms.decrypt, blob) == "InvalidParameter"
    assert kms.decrypt_batch(kms.encrypt_batch(key, texts * 30)) == texts * 30
    kms.rotate_key(key)
    assert kms.decrypt(blob, CONTEXT).plaintext == texts[-1]


@pytest.mark.parametrize(
    ("by", "algorithm"),
    [
        ("cryptography", "RSAES_OAEP_SHA_256"),
        ("openssl", "RSAES_OAEP_SHA_1"),
        ("openssl", "RSA_AES_KEY_WRAP_SHA_256"),
        pytest.param("cryptography", "RSAES_OAEP_SHA_1", marks=pytest.mark.slow),
        pytest.param("cryptography", "RSA_AES_KEY_WRAP_SHA_1", marks=pytest.mark.slow),
        pytest.param("cryptography", "RSA_AES_KEY_WRAP_SHA_256", marks=pytest.mark.slow),
        pytest.param("openssl", "RSAES_OAEP_SHA_256", marks=pytest.mark.slow),
        pytest.param("openssl", "RSA_AES_KEY_WRAP_SHA_1", marks=pytest.mark.slow),
    ],
)
def test_the_key_is_the_one_that_was_imported(kms: Kms, algorithm: str, by: str) -> None:
    key, material = kms.create_key(protection_level="HSM", origin="EXTERNAL").key_id, os.urandom(32)
    offer = kms.get_parameters_for_import(key, wrapping_algorithm=algorithm, wrapping_key_spec="RSA_2048")
    files = peers.Files()
    wrap = peers.wrap if by == "cryptography" else lambda *rest: peers.openssl_wrap(files, *rest)

    def bring(data: bytes) -> None:
        wrapped = wrap(offer.public_key, algorithm, data)
        kms.import_key_material(key, encrypted_key_material=wrapped, import_token=offer.import_token)

    for size in (16, 24, 31, 33, 64):
        assert code(bring, os.urandom(size)) == "InvalidKeyMaterial"
    bring(material)
    blob = kms.encrypt(key, b"text", CONTEXT).ciphertext_blob
    assert decode(blob, material, canonical(CONTEXT)) == b"text"
    assert code(bring, os.urandom(32)) == "InvalidKeyMaterial"
    kms.delete_key_material(key)
    assert code(kms.decrypt, blob, CONTEXT) == "Rejected.PendingImport"
    bring(material)
    assert kms.decrypt(blob, CONTEXT).plaintext == b"text"
    (event,) = [event for event in kms.history(key) if event["event"] == "MaterialImported"][:1]
    assert event["facts"]["facts"]["unwrapped_in"] == "token"
    files.close()


@pytest.mark.parametrize(
    ("spec", "usage", "algorithm"),
    [
        ("RSA_2048", "SIGN/VERIFY", "RSA_PSS_SHA_256"),
        ("RSA_2048", "SIGN/VERIFY", "RSA_PKCS1_SHA_256"),
        ("EC_P256", "SIGN/VERIFY", "ECDSA_SHA_256"),
        ("EC_P384", "SIGN/VERIFY", "ECDSA_SHA_384"),
        ("EC_P521", "SIGN/VERIFY", "ECDSA_SHA_512"),
        ("RSA_3072", "ENCRYPT/DECRYPT", "RSAES_OAEP_SHA_256"),
        ("RSA_2048", "ENCRYPT/DECRYPT", "RSAES_OAEP_SHA_1"),
    ],
)
def test_asymmetric_keys(kms: Kms, spec: str, usage: str, algorithm: str) -> None:
    key = kms.create_key(protection_level="HSM", key_spec=spec, key_usage=usage).key_id
    version = kms.list_key_versions(key).items[0].key_version_id
    pem = kms.get_public_key(key, key_version_id=version).public_key
    more = {"key_version_id": version, "algorithm": algorithm}
    if usage == "SIGN/VERIFY":
        digest = peers.digest_of(algorithm, b"m")
        assert peers.verify(pem, algorithm, digest, kms.asymmetric_sign(key, **more, digest=digest).value)
        return
    blob = peers.encrypt(pem.encode(), algorithm, b"secret")
    assert kms.asymmetric_decrypt(key, **more, ciphertext_blob=blob).plaintext == b"secret"
    for bad in (blob[:-1] + bytes([blob[-1] ^ 1]), bytes(len(blob)), b"\xff" * len(blob), b"x"):
        assert code(kms.asymmetric_decrypt, key, **more, ciphertext_blob=bad) == "InvalidParameter"
        assert kms.asymmetric_decrypt(key, **more, ciphertext_blob=blob).plaintext == b"secret"


def test_what_this_token_cannot_is_refused_by_name_and_changes_nothing(kms: Kms) -> None:
    before = kms._s.queries.position()
    assert code(kms.create_key, protection_level="HSM", key_spec="EC_P256K") == "InvalidParameter"
    key = kms.create_key(protection_level="HSM", key_spec="RSA_2048", origin="EXTERNAL").key_id
    aes = kms.create_key(protection_level="HSM", origin="EXTERNAL").key_id
    position = kms._s.queries.position()
    assert position == before + 2
    for external, algorithm in ((key, "RSA_AES_KEY_WRAP_SHA_256"), (aes, "RSAES_PKCS1_V1_5")):  # it makes bytes up for bad padding
        ask = {"wrapping_algorithm": algorithm, "wrapping_key_spec": "RSA_2048"}
        assert code(kms.get_parameters_for_import, external, **ask) == "InvalidParameter"
    assert kms._s.queries.position() == position


@pytest.mark.parametrize("bits", ["256", "384", "512"])
def test_macs(kms: Kms, bits: str) -> None:
    key = kms.create_key(protection_level="HSM", key_spec=f"HMAC_{bits}").key_id
    made = kms.generate_mac(key, algorithm=f"HMAC_SHA_{bits}", message=b"m")
    assert kms.verify_mac(key, algorithm=f"HMAC_SHA_{bits}", message=b"m", mac=made.mac).value
    assert not kms.verify_mac(key, algorithm=f"HMAC_SHA_{bits}", message=b"n", mac=made.mac).value


def test_nothing_is_left_behind_and_a_restart_finds_it_all(settings: dict[str, Any], kms: Kms) -> None:
    key = kms.create_key(protection_level="HSM").key_id
    blob = kms.encrypt(key, b"text").ciphertext_blob
    report = kms.reconcile()
    assert report == type(report)(), report
    with kmscore.open_kms(**settings, clock=FixedClock(START)) as again:
        assert again.decrypt(blob).plaintext == b"text"
        again.schedule_key_deletion(key, pending_window_in_days=7)
    assert code(kms.decrypt, blob) == "Rejected.PendingDeletion"
