"""Data keys under a caller's public key, re-encryption of what AsymmetricEncrypt made, and the counted uses of suite 2 at their limits."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import peers
import pytest
from custody_helpers import fast_directory
from test_kms import START, code

import kmscore
from kmscore import FixedClock
from kmscore.domain.specs import ContentKind
from kmscore.engine.crypto import UseLimits
from kmscore.engine.kms import Kms

LEVELS = ["HSM", "SOFTWARE"]
ALGORITHMS = ["RSAES_OAEP_SHA_256", "RSAES_OAEP_SHA_1"]


@pytest.fixture(scope="module")
def kms() -> Iterator[Kms]:
    with fast_directory() as directory, kmscore.open_kms(directory / "home", clock=FixedClock(START)) as kms:
        yield kms


@pytest.fixture(scope="module")
def theirs() -> peers.rsa.RSAPrivateKey:
    key = peers.new_private_key("RSA_2048")
    assert isinstance(key, peers.rsa.RSAPrivateKey)
    return key


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_data_key_that_only_the_caller_opens(kms: Kms, theirs: peers.rsa.RSAPrivateKey, level: str, algorithm: str) -> None:
    key = kms.create_key(protection_level=level)
    to = {"public_key_blob": peers.spki(theirs), "wrapping_key_spec": "RSA_2048", "wrapping_algorithm": algorithm}
    for more, size in (({}, 32), ({"key_spec": "AES_128"}, 16), ({"number_of_bytes": 100}, 100)):
        made = kms.generate_and_export_data_key(key.key_id, **to, **more, encryption_context={"a": "b"})
        data_key = theirs.decrypt(made.exported_data_key, peers.oaep(algorithm))
        assert len(data_key) == size
        assert made.ciphertext_blob is not None
        assert (made.key_id, made.key_version_id) == (key.key_id, key.primary_key_version)
        assert kms.decrypt(made.ciphertext_blob, {"a": "b"}).plaintext == data_key
        again = kms.export_data_key(made.ciphertext_blob, **to, encryption_context={"a": "b"})
        assert (again.key_id, again.key_version_id, again.ciphertext_blob) == (key.key_id, key.primary_key_version, None)
        assert theirs.decrypt(again.exported_data_key, peers.oaep(algorithm)) == data_key
        assert data_key.hex() not in repr((made, again))
        assert code(kms.export_data_key, made.ciphertext_blob, **to) == "InvalidParameter"  # the context is missing


def test_what_cannot_be_exported(kms: Kms, theirs: peers.rsa.RSAPrivateKey) -> None:
    key = kms.create_key().key_id
    good = {"public_key_blob": peers.spki(theirs), "wrapping_key_spec": "RSA_2048", "wrapping_algorithm": "RSAES_OAEP_SHA_256"}

    def refused(**wrong: object) -> str:
        return code(kms.generate_and_export_data_key, key, **{**good, **wrong})

    before = kms._s.queries.position()
    small = peers.rsa.generate_private_key(65537, 1024)
    for blob in (
        b"x",
        peers.spki(small),
        peers.spki(peers.new_private_key("EC_P256")),
        peers.spki(theirs) + b"\0",
        peers.spki(theirs)[:-1],
    ):
        assert refused(public_key_blob=blob) == "InvalidParameter"
    traditional = theirs.public_key().public_bytes(peers.serialization.Encoding.DER, peers.serialization.PublicFormat.PKCS1)
    numbers = theirs.public_key().public_numbers()
    odd = [peers.rsa.RSAPublicNumbers(3, numbers.n), peers.rsa.RSAPublicNumbers(65537, numbers.n - 1)]
    hostile = [
        n.public_key().public_bytes(peers.serialization.Encoding.DER, peers.serialization.PublicFormat.SubjectPublicKeyInfo) for n in odd
    ]
    for blob in (traditional, *hostile, bytes(1 << 20)):
        assert refused(public_key_blob=blob) == "InvalidParameter"
    assert refused(public_key_blob=b"") == "MissingParameter"
    assert refused(wrapping_key_spec="RSA_3072") == "InvalidParameter"  # it is not
    assert refused(wrapping_key_spec="EC_SM2") == "InvalidParameter"
    assert refused(wrapping_algorithm="SM2PKE") == "InvalidParameter"
    assert refused(wrapping_algorithm="") == "MissingParameter"
    assert refused(number_of_bytes=191) == "InvalidParameter"  # 190 fit
    assert refused(number_of_bytes=1025) == "InvalidParameter"
    assert refused(key_spec="AES_64") == "InvalidParameter"
    assert kms._s.queries.position() == before
    assert len(kms.generate_and_export_data_key(key, **good, number_of_bytes=190).exported_data_key) == 256
    blob = kms.encrypt(key, bytes(191)).ciphertext_blob
    assert code(kms.export_data_key, blob, **good) == "InvalidParameter"
    kms.disable_key(key)
    assert refused() == "Rejected.Disabled"
    assert code(kms.export_data_key, blob, **good) == "Rejected.Disabled"


@pytest.mark.parametrize("level", LEVELS)
def test_re_encryption_from_an_asymmetric_key(kms: Kms, level: str) -> None:
    source = kms.create_key(protection_level=level, key_spec="RSA_2048", key_usage="ENCRYPT/DECRYPT").key_id
    version = kms.list_key_versions(source).items[0].key_version_id
    destination = kms.create_key(protection_level=level).key_id
    pem = kms.get_public_key(source, key_version_id=version).public_key.encode()
    blob = peers.encrypt(pem, "RSAES_OAEP_SHA_256", b"secret")
    more = {"destination_key_id": destination, "destination_encryption_context": {"a": "b"}}
    named = {"source_key_id": source, "source_key_version_id": version, "source_encryption_algorithm": "RSAES_OAEP_SHA_256"}
    moved = kms.re_encrypt(blob, **more, **named)
    assert (moved.key_id, moved.key_version_id) == (source, version)  # DECISIONS 29
    opened = kms.decrypt(moved.ciphertext_blob, {"a": "b"})
    assert (opened.plaintext, opened.key_id, opened.content) == (b"secret", destination, ContentKind.RAW)
    for name in named:
        left = {key: value for key, value in named.items() if key != name}
        assert code(kms.re_encrypt, blob, **more, **left) == "MissingParameter"
    assert code(kms.re_encrypt, blob, **more, **{**named, "source_encryption_algorithm": "RSAES_OAEP_SHA_1"}) == "InvalidParameter"
    assert code(kms.re_encrypt, blob, **more, **named, source_encryption_context={"a": "b"}) == "InvalidParameter"
    kms.disable_key(source)
    assert code(kms.re_encrypt, blob, **more, **named) == "Rejected.Disabled"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("spec", ["Aliyun_AES_128", "Aliyun_AES_192"])
def test_suite_2_counts_warns_rotates_and_refuses(
    kms: Kms, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, level: str, spec: str
) -> None:
    monkeypatch.setattr(kms._s.crypto, "_limits", UseLimits(block=4, warn_at=8, rotate_at=16, refuse_at=24))
    key = kms.create_key(protection_level=level, key_spec=spec)
    with caplog.at_level(logging.WARNING, "kmscore"):
        for _ in range(4):
            kms.encrypt(key.key_id, b"x")
        assert not caplog.records
        kms.encrypt(key.key_id, b"x")  # the block up to 8
        assert len(caplog.records) == 1
        assert key.key_id in caplog.text
    for _ in range(7):
        kms.encrypt(key.key_id, b"x")
    assert kms.list_key_versions(key.key_id).total_count == 1
    kms.encrypt(key.key_id, b"x")  # the block up to 16
    assert kms.list_key_versions(key.key_id).total_count == 2
    # A key that cannot rotate now is refused before the limit, and what it sealed still opens.
    monkeypatch.setattr(kms._s.crypto, "_rotate", lambda key_id: None)
    stuck = kms.create_key(protection_level=level, key_spec=spec).key_id
    blob = kms.encrypt(stuck, b"first").ciphertext_blob
    for _ in range(23):
        kms.encrypt(stuck, b"x")
    assert code(kms.encrypt, stuck, b"x") == "Rejected.LimitExceeded"
    assert code(kms.encrypt_batch, stuck, [b"x"] * 3) == "Rejected.LimitExceeded"
    assert kms.decrypt(blob).plaintext == b"first"


def test_uses_are_counted_over_a_restart_and_never_too_low() -> None:
    with fast_directory() as directory:
        for opened in range(3):
            with kmscore.open_kms(directory / "home", clock=FixedClock(START), pkcs11_module="none") as kms:
                kms._s.crypto._limits = UseLimits(block=10, refuse_at=30)
                if not opened:
                    key = kms.create_key(key_spec="Aliyun_AES_128").key_id
                kms.encrypt(key, b"x")  # the rest of the block goes with the process
        with kmscore.open_kms(directory / "home", clock=FixedClock(START), pkcs11_module="none") as kms:
            kms._s.crypto._limits = UseLimits(block=10, refuse_at=30)
            assert code(kms.encrypt, key, b"x") == "Rejected.LimitExceeded"
