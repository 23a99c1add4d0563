"""Asymmetric keys and MACs as a caller sees them, at both levels: made by us, checked by `cryptography` and `openssl`, and the other way round."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterator
from datetime import timedelta

import peers
import pytest
from custody_helpers import fast_directory
from test_kms import START, code

import kmscore
from kmscore import FixedClock, KmsError
from kmscore.bootstrap import open_kms
from kmscore.custody.fake import FakeKeeper, FakeToken
from kmscore.domain.algorithms import ENCRYPTION, SIGNING, max_oaep_bytes
from kmscore.engine.kms import Kms

LEVELS = ["HSM", "SOFTWARE"]
SIGNERS = [(spec.value, algorithm.value) for algorithm, facts in SIGNING.items() for spec in sorted(facts.specs)]
CRYPTERS = [(spec, algorithm.value) for algorithm in ENCRYPTION for spec in ("RSA_2048", "RSA_3072", "RSA_4096")]
MESSAGE = b"the message"


@pytest.fixture(scope="module")
def kms() -> Iterator[Kms]:
    with fast_directory() as directory, kmscore.open_kms(directory / "home", clock=FixedClock(START)) as kms:
        yield kms


@pytest.fixture(scope="module")
def files() -> Iterator[peers.Files]:
    files = peers.Files()
    yield files
    files.close()


@pytest.fixture(scope="module")
def made() -> dict[tuple[str, str, str], tuple[str, str]]:
    """(spec, usage, level) -> (key id, version id), made once."""
    return {}


def key_of(kms: Kms, made: dict[tuple[str, str, str], tuple[str, str]], spec: str, usage: str, level: str) -> tuple[str, str]:
    if (spec, usage, level) not in made:
        key = kms.create_key(key_spec=spec, key_usage=usage, protection_level=level).key_id
        made[spec, usage, level] = key, kms.list_key_versions(key).items[0].key_version_id
    return made[spec, usage, level]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("spec", "algorithm"), SIGNERS)
def test_signatures(kms: Kms, files: peers.Files, made: dict, level: str, spec: str, algorithm: str) -> None:
    key, version = key_of(kms, made, spec, "SIGN/VERIFY", level)
    digest = peers.digest_of(algorithm, MESSAGE)
    signed = kms.asymmetric_sign(key, key_version_id=version, algorithm=algorithm, digest=digest)
    assert (signed.key_id, signed.key_version_id) == (key, version)
    pem = kms.get_public_key(key, key_version_id=version).public_key
    assert pem.startswith("-----BEGIN PUBLIC KEY-----\n")
    other = peers.digest_of(algorithm, MESSAGE + b"!")
    for text, truth in ((digest, True), (other, False)):
        assert peers.verify(pem, algorithm, text, signed.value) is truth
        assert peers.openssl_verifies(files, pem, algorithm, text, signed.value) is truth
        assert kms.asymmetric_verify(key, key_version_id=version, algorithm=algorithm, digest=text, value=signed.value).value is truth


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("spec", "algorithm"), SIGNERS)
def test_whatever_is_no_signature_is_false(kms: Kms, made: dict, level: str, spec: str, algorithm: str) -> None:
    key, version = key_of(kms, made, spec, "SIGN/VERIFY", level)
    digest = peers.digest_of(algorithm, MESSAGE)
    good = kms.asymmetric_sign(key, key_version_id=version, algorithm=algorithm, digest=digest).value
    changed = good[:-1] + bytes([good[-1] ^ 1])
    for bad in (changed, good[:-1], good + b"\0", b"\0" + good, b"x", os.urandom(len(good)), bytes(len(good)), b"\xff" * 600):
        assert kms.asymmetric_verify(key, key_version_id=version, algorithm=algorithm, digest=digest, value=bad).value is False
    assert kms.asymmetric_verify(key, key_version_id=version, algorithm=algorithm, digest=digest, value=good).value is True


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("spec", "algorithm"), CRYPTERS)
def test_decryption_of_what_others_encrypted(kms: Kms, files: peers.Files, made: dict, level: str, spec: str, algorithm: str) -> None:
    key, version = key_of(kms, made, spec, "ENCRYPT/DECRYPT", level)
    pem = kms.get_public_key(key, key_version_id=version).public_key.encode()
    facts = next(facts for name, facts in ENCRYPTION.items() if name.value == algorithm)
    most = max_oaep_bytes(int(spec[4:]) // 8, facts.hash)
    for plaintext in (b"x", os.urandom(32), os.urandom(most)):
        ours = kms.asymmetric_encrypt(key, key_version_id=version, algorithm=algorithm, plaintext=plaintext)
        for ciphertext in (
            ours.ciphertext_blob,
            peers.encrypt(pem, algorithm, plaintext),
            peers.openssl_encrypt(files, pem, algorithm, plaintext),
        ):
            opened = kms.asymmetric_decrypt(key, key_version_id=version, algorithm=algorithm, ciphertext_blob=ciphertext)
            assert (opened.plaintext, opened.key_id, opened.key_version_id) == (plaintext, key, version)
    too_long = {"key_version_id": version, "algorithm": algorithm, "plaintext": bytes(most + 1)}
    assert code(kms.asymmetric_encrypt, key, **too_long) == "InvalidParameter"


@pytest.mark.parametrize("level", LEVELS)
def test_every_ciphertext_that_does_not_decrypt_is_the_one_error(kms: Kms, made: dict, level: str) -> None:
    key, version = key_of(kms, made, "RSA_2048", "ENCRYPT/DECRYPT", level)
    good = kms.asymmetric_encrypt(key, key_version_id=version, algorithm="RSAES_OAEP_SHA_256", plaintext=b"secret").ciphertext_blob
    errors = set()
    changed = good[:-1] + bytes([good[-1] ^ 1])
    bad = [changed, good[:-1], good + b"\0", bytes(256), b"\xff" * 256, (1).to_bytes(256), b"x", os.urandom(256)]
    for algorithm, blobs in (("RSAES_OAEP_SHA_256", bad), ("RSAES_OAEP_SHA_1", [good, *bad])):
        for blob in blobs:
            with pytest.raises(KmsError) as refused:
                kms.asymmetric_decrypt(key, key_version_id=version, algorithm=algorithm, ciphertext_blob=blob)
            errors.add((refused.value.code, refused.value.message))
    assert errors == {("InvalidParameter", 'The specified parameter "CiphertextBlob" is not valid.')}
    opened = kms.asymmetric_decrypt(key, key_version_id=version, algorithm="RSAES_OAEP_SHA_256", ciphertext_blob=good)
    assert opened.plaintext == b"secret"


@pytest.mark.parametrize("level", LEVELS)
def test_an_operation_that_is_not_the_keys(kms: Kms, made: dict, level: str) -> None:
    signer, version = key_of(kms, made, "RSA_2048", "SIGN/VERIFY", level)
    crypter, crypter_version = key_of(kms, made, "RSA_2048", "ENCRYPT/DECRYPT", level)
    curve, curve_version = key_of(kms, made, "EC_P256", "SIGN/VERIFY", level)
    aes = kms.create_key(protection_level=level)
    assert aes.primary_key_version is not None
    digest = bytes(32)

    def sign(key: str, version: str, algorithm: str = "RSA_PSS_SHA_256", digest: bytes = digest) -> str:
        return code(kms.asymmetric_sign, key, key_version_id=version, algorithm=algorithm, digest=digest)

    assert sign(crypter, crypter_version) == "Rejected.UnsupportedOperation"
    assert sign(aes.key_id, aes.primary_key_version) == "Rejected.UnsupportedOperation"
    assert sign(signer, version, "ECDSA_SHA_256") == "InvalidParameter"
    assert sign(curve, curve_version, "RSA_PKCS1_SHA_256") == "InvalidParameter"
    assert sign(curve, curve_version, "ECDSA_SHA_384", bytes(48)) == "InvalidParameter"
    assert sign(signer, version, "RSAES_OAEP_SHA_256") == "InvalidParameter"
    assert sign(signer, version, "SM2DSA") == "InvalidParameter"
    for wrong in (b"", bytes(31), bytes(33), bytes(20), bytes(64)):
        assert sign(signer, version, digest=wrong) in ("InvalidParameter", "MissingParameter")
    assert sign(signer, "") == "MissingParameter"
    assert sign(signer, curve_version) == "Forbidden.KeyVersionNotFound"
    assert sign("key-none", version) == "Forbidden.KeyNotFound"
    assert code(kms.asymmetric_decrypt, signer, key_version_id=version, algorithm="RSAES_OAEP_SHA_1", ciphertext_blob=bytes(256)) == (
        "Rejected.UnsupportedOperation"
    )
    assert code(kms.encrypt, signer, b"x") == "Rejected.UnsupportedOperation"
    assert code(kms.generate_data_key, crypter) == "Rejected.UnsupportedOperation"
    assert code(kms.get_public_key, aes.key_id, key_version_id=aes.primary_key_version) == "Rejected.UnsupportedOperation"
    assert code(kms.generate_mac, curve, algorithm="HMAC_SHA_256", message=b"x") == "Rejected.UnsupportedOperation"
    blob = kms.encrypt(aes.key_id, b"x").ciphertext_blob
    assert code(kms.re_encrypt, blob, destination_key_id=signer) == "Rejected.UnsupportedOperation"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("spec", "usage"), [("EC_P256", "SIGN/VERIFY"), ("RSA_2048", "ENCRYPT/DECRYPT"), ("HMAC_256", None)])
def test_the_states_of_a_key(kms: Kms, level: str, spec: str, usage: str | None) -> None:
    key = kms.create_key(key_spec=spec, key_usage=usage, protection_level=level).key_id
    version = kms.list_key_versions(key).items[0].key_version_id

    def uses() -> list[object]:
        if spec == "HMAC_256":
            return [
                lambda: kms.generate_mac(key, algorithm="HMAC_SHA_256", message=b"m"),
                lambda: kms.verify_mac(key, algorithm="HMAC_SHA_256", message=b"m", mac=bytes(32)),
            ]
        public = lambda: kms.get_public_key(key, key_version_id=version)  # noqa: E731
        if spec == "EC_P256":
            more = {"key_version_id": version, "algorithm": "ECDSA_SHA_256", "digest": bytes(32)}
            return [public, lambda: kms.asymmetric_sign(key, **more), lambda: kms.asymmetric_verify(key, **more, value=b"x")]
        more = {"key_version_id": version, "algorithm": "RSAES_OAEP_SHA_1"}
        blob = peers.encrypt(pem.encode(), "RSAES_OAEP_SHA_1", b"x")
        return [
            public,
            lambda: kms.asymmetric_encrypt(key, **more, plaintext=b"x"),
            lambda: kms.asymmetric_decrypt(key, **more, ciphertext_blob=blob),
        ]

    pem = "" if spec == "HMAC_256" else kms.get_public_key(key, key_version_id=version).public_key
    for use in uses():
        use()  # type: ignore[operator]
    kms.disable_key(key)
    assert {code(use) for use in uses()} == {"Rejected.Disabled"}
    kms.enable_key(key)
    for use in uses():
        use()  # type: ignore[operator]
    kms.schedule_key_deletion(key, pending_window_in_days=7)
    assert {code(use) for use in uses()} == {"Rejected.PendingDeletion"}
    kms.cancel_key_deletion(key)
    for use in uses():
        use()  # type: ignore[operator]


@pytest.mark.parametrize("level", LEVELS)
def test_versions_of_an_asymmetric_key(kms: Kms, level: str) -> None:
    key = kms.create_key(key_spec="EC_P256", protection_level=level)
    assert (key.key_usage, key.primary_key_version) == ("SIGN/VERIFY", None)
    (first,) = kms.list_key_versions(key.key_id).items
    second = kms.rotate_key(key.key_id)
    assert second.key_version_id != first.key_version_id
    pems = {kms.get_public_key(key.key_id, key_version_id=v.key_version_id).public_key for v in (first, second)}
    assert len(pems) == 2
    more = {"algorithm": "ECDSA_SHA_256", "digest": bytes(32)}
    signature = kms.asymmetric_sign(key.key_id, key_version_id=first.key_version_id, **more).value
    assert kms.asymmetric_verify(key.key_id, key_version_id=first.key_version_id, **more, value=signature).value
    assert not kms.asymmetric_verify(key.key_id, key_version_id=second.key_version_id, **more, value=signature).value
    assert kms.describe_key_version(key.key_id, key_version_id=second.key_version_id) == second


def test_aliases_name_asymmetric_keys(kms: Kms, made: dict) -> None:
    key, version = key_of(kms, made, "EC_P256", "SIGN/VERIFY", "SOFTWARE")
    kms.create_alias(key, alias_name="alias/signer")
    more = {"key_version_id": version, "algorithm": "ECDSA_SHA_256", "digest": bytes(32)}
    value = kms.asymmetric_sign("alias/signer", **more).value
    assert kms.asymmetric_verify("alias/signer", **more, value=value).key_id == key


def test_rotation_policies(kms: Kms, made: dict) -> None:
    key, _ = key_of(kms, made, "EC_P256", "SIGN/VERIFY", "SOFTWARE")
    policy = {"enable_automatic_rotation": True, "rotation_interval": "30d"}
    assert code(kms.update_rotation_policy, key, **policy) == "Rejected.UnsupportedOperation"
    kms.update_extended_rotation_policy(key, **policy)
    assert kms.describe_key(key).automatic_rotation == "Enabled"
    kms.update_extended_rotation_policy(key, enable_automatic_rotation=False)
    mac = kms.create_key(key_spec="HMAC_256").key_id
    assert code(kms.update_extended_rotation_policy, mac, **policy) == "Rejected.UnsupportedOperation"
    assert code(kms.rotate_key, mac) == "Rejected.UnsupportedOperation"
    assert code(kms.create_key, key_spec="RSA_2048", **policy) == "UnsupportedOperation"


@pytest.mark.parametrize("level", LEVELS)
def test_an_asymmetric_key_rotates_by_itself_when_asked_to(level: str) -> None:
    clock = FixedClock(START)
    with fast_directory() as directory, open_kms(directory / "home", clock=clock, hsm=FakeKeeper(FakeToken())) as kms:
        key = kms.create_key(key_spec="EC_P384", protection_level=level).key_id
        kms.update_extended_rotation_policy(key, enable_automatic_rotation=True, rotation_interval="30d")
        clock.advance(timedelta(days=30))
        assert kms.run_due().rotated == (key,)
        assert kms.list_key_versions(key).total_count == 2


# --- MACs ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("bits", ["256", "384", "512"])
def test_macs(kms: Kms, level: str, bits: str) -> None:
    key = kms.create_key(key_spec=f"HMAC_{bits}", protection_level=level)
    assert key.key_usage == "GENERATE_VERIFY_MAC"
    algorithm = f"HMAC_SHA_{bits}"
    for message in (b"", b"x", os.urandom(6144)):
        made = kms.generate_mac(key.key_id, algorithm=algorithm, message=message)
        assert (made.key_id, made.algorithm, len(made.mac)) == (key.key_id, algorithm, int(bits) // 8)
        assert kms.generate_mac(key.key_id, algorithm=algorithm, message=message) == made
        for mac, truth in ((made.mac, True), (made.mac[:-1], False), (made.mac + b"\0", False), (bytes(len(made.mac)), False)):
            assert kms.verify_mac(key.key_id, algorithm=algorithm, message=message, mac=mac).value is truth
    assert code(kms.generate_mac, key.key_id, algorithm=algorithm, message=bytes(6145)) == "InvalidParameter"
    others = {"HMAC_SHA_256", "HMAC_SHA_384", "HMAC_SHA_512", "HMAC_SHA_224", "HMAC_SM3"} - {algorithm}
    assert {code(kms.generate_mac, key.key_id, algorithm=other, message=b"x") for other in others} == {"InvalidParameter"}
    assert code(kms.encrypt, key.key_id, b"x") == "Rejected.UnsupportedOperation"


def test_the_mac_of_a_software_key_is_hmac(kms: Kms) -> None:
    """Its bytes are looked up where the store keeps them, and opened by an independent reader of docs/FORMAT.md."""
    key = kms.create_key(key_spec="HMAC_256").key_id
    stored = kms._s.store.key(key)
    assert stored is not None
    keeper = kms._s.importing._keepers[stored.level]
    material_id = bytes.fromhex(stored.versions[0].material_id)
    wrapped = keeper._table.get(material_id)  # type: ignore[attr-defined]
    header = wrapped[:19]
    material = keeper._root.decrypt(19, header + b"kmscore software material" + material_id, wrapped)  # type: ignore[attr-defined]
    expected = hmac.new(material, b"message", hashlib.sha256).digest()
    assert kms.generate_mac(key, algorithm="HMAC_SHA_256", message=b"message").mac == expected


def test_the_state_is_looked_at_before_the_kind() -> None:
    clock = FixedClock(START)
    with fast_directory() as directory, open_kms(directory / "home", clock=clock, hsm=FakeKeeper(FakeToken())) as other:
        key = other.create_key()
        assert key.primary_key_version is not None
        other.encrypt(key.key_id, b"x")
        other.disable_key(key.key_id)
        assert code(other.get_public_key, key.key_id, key_version_id=key.primary_key_version) == "Rejected.Disabled"
        other.schedule_key_deletion(key.key_id, pending_window_in_days=7)
        clock.advance(timedelta(days=7))
        assert code(other.get_public_key, key.key_id, key_version_id=key.primary_key_version) == "Forbidden.KeyNotFound"
        assert other.run_due().destroyed == (key.key_id,)
        for use in (lambda: other.get_public_key(key.key_id, key_version_id="v"), lambda: other.encrypt(key.key_id, b"x")):
            assert code(use) == "Forbidden.KeyNotFound"
        assert other._s.ring._views == {}  # nothing is kept of a key that is gone
