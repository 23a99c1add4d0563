"""The import of key material as a caller sees it, at both levels: wrapped by `cryptography` and by `openssl`, and proved to be the very
material by opening our ciphertext with an independent decoder; what is wrong in any way changes nothing and leaves nothing behind."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import peers
import pytest
from cryptography.hazmat.primitives.serialization import load_der_public_key
from custody_helpers import fast_directory
from independent import canonical, decode
from test_kms import START, code

import kmscore
from kmscore import FixedClock, KmsError
from kmscore.bootstrap import open_kms
from kmscore.custody.fake import FakeKeeper, FakeToken
from kmscore.engine.kms import Kms
from kmscore.results import ImportParameters

LEVELS = ["HSM", "SOFTWARE"]
PLAIN = ["RSAES_PKCS1_V1_5", "RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"]
TWO_STEP = ["RSA_AES_KEY_WRAP_SHA_1", "RSA_AES_KEY_WRAP_SHA_256"]
NOT_IN_THE_TOKEN = {"RSAES_OAEP_SHA_256", "RSA_AES_KEY_WRAP_SHA_256"}  # SoftHSM 2.6.1 (HSM.md section 7)
CONTEXT = {"table": "orders"}


class World:
    """An engine whose clock each test moves on; the token and the keys of other tests are not touched by it."""

    def __init__(self, kms: Kms, clock: FixedClock) -> None:
        self.kms, self.clock = kms, clock

    def key(self, level: str, spec: str = "Aliyun_AES_256", usage: str | None = None) -> str:
        return self.kms.create_key(protection_level=level, key_spec=spec, key_usage=usage, origin="EXTERNAL").key_id

    def offer(self, key: str, algorithm: str = "RSAES_OAEP_SHA_1", spec: str = "RSA_2048") -> ImportParameters:
        return self.kms.get_parameters_for_import(key, wrapping_algorithm=algorithm, wrapping_key_spec=spec)

    def bring(
        self, key: str, material: bytes, algorithm: str = "RSAES_OAEP_SHA_1", offer: ImportParameters | None = None, **more: Any
    ) -> None:
        offer = offer or self.offer(key, algorithm)
        wrapped = peers.wrap(offer.public_key, algorithm, material)
        self.kms.import_key_material(key, encrypted_key_material=wrapped, import_token=offer.import_token, **more)

    def unix(self, **after: float) -> int:
        return int((self.clock.now() + timedelta(**after)).timestamp())

    def custody(self) -> tuple[Any, ...]:
        """Everything durable that a bad attempt might have touched, but for the events and the attempts they count."""
        report = self.kms.reconcile()
        assert report == type(report)(), report
        found = [keeper.inventory() for keeper in self.kms._s.importing._keepers.values()]
        return (*found, self.kms._s.queries.open_intents())

    def opens(self, material: bytes, key: str) -> None:
        """What we encrypt, an independent implementation opens with the material that was imported."""
        text = os.urandom(20)
        blob = self.kms.encrypt(key, text, CONTEXT).ciphertext_blob
        assert decode(blob, material, canonical(CONTEXT)) == text
        assert self.kms.decrypt(blob, CONTEXT).plaintext == text


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    clock = FixedClock(START)
    with fast_directory() as directory, kmscore.open_kms(directory / "home", clock=clock, import_failure_seconds=0.001) as kms:
        yield World(kms, clock)


@pytest.fixture(scope="module")
def files() -> Iterator[peers.Files]:
    files = peers.Files()
    yield files
    files.close()


# --- good imports --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_a_new_external_key(world: World, level: str) -> None:
    made = world.kms.create_key(protection_level=level, origin="EXTERNAL")
    assert (made.key_state, made.origin, made.primary_key_version, made.material_expire_time) == ("PendingImport", "EXTERNAL", None, None)
    assert code(world.kms.encrypt, made.key_id, b"x") == "Rejected.PendingImport"
    assert code(world.kms.disable_key, made.key_id) == "Rejected.StateModifiedFailed"
    assert code(world.kms.rotate_key, made.key_id) == "Rejected.PendingImport"
    assert world.kms.list_key_versions(made.key_id).total_count == 0
    assert made.key_id in [item.key_id for item in world.kms.list_keys(filters={"KeyState": ["PendingImport"]}, page_size=100).items]
    assert world.kms.get_parameters_for_import(made.key_id, wrapping_algorithm="RSAES_OAEP_SHA_1", wrapping_key_spec="RSA_2048")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("by", ["cryptography", "openssl"])
@pytest.mark.parametrize("algorithm", PLAIN + TWO_STEP)
def test_the_key_is_the_one_that_was_imported(world: World, files: peers.Files, level: str, by: str, algorithm: str) -> None:
    key, material = world.key(level), os.urandom(32)
    if level == "HSM" and algorithm in NOT_IN_THE_TOKEN:
        with pytest.raises(KmsError, match="RSAES_OAEP_SHA_1") as refused:  # it names what it can
            world.offer(key, algorithm)
        assert refused.value.code == "InvalidParameter"
        return
    offer = world.offer(key, algorithm)
    assert offer.key_id == key
    assert offer.token_expire_time == world.clock.now() + timedelta(hours=24)
    public = load_der_public_key(offer.public_key)
    assert public.key_size == 2048  # type: ignore[union-attr]
    wrapped = (
        peers.wrap(offer.public_key, algorithm, material)
        if by == "cryptography"
        else peers.openssl_wrap(files, offer.public_key, algorithm, material)
    )
    world.kms.import_key_material(key, encrypted_key_material=wrapped, import_token=offer.import_token)
    told = world.kms.describe_key(key)
    assert (told.key_state, told.material_expire_time) == ("Enabled", None)
    assert told.primary_key_version is not None
    world.opens(material, key)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("spec", ["RSA_3072", "RSA_4096"])
def test_larger_wrapping_keys(world: World, level: str, spec: str) -> None:
    key, material = world.key(level), os.urandom(32)
    world.bring(key, material, offer=world.offer(key, "RSAES_OAEP_SHA_1", spec))
    world.opens(material, key)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("by", ["cryptography", "openssl"])
@pytest.mark.parametrize("spec", ["RSA_2048", "RSA_3072", "RSA_4096", "EC_P256", "EC_P256K", "EC_P384", "EC_P521"])
def test_private_keys(world: World, files: peers.Files, level: str, by: str, spec: str) -> None:
    key, theirs = world.key(level, spec), peers.new_private_key(spec)
    assert code(world.offer, key, "RSAES_OAEP_SHA_1") == "InvalidParameter"  # a private key does not fit into RSA
    algorithm = "RSA_AES_KEY_WRAP_SHA_1"
    offer = world.offer(key, algorithm)
    wrapped = (
        peers.wrap(offer.public_key, algorithm, peers.pkcs8(theirs))
        if by == "cryptography"
        else peers.openssl_wrap(files, offer.public_key, algorithm, peers.pkcs8(theirs))
    )
    world.kms.import_key_material(key, encrypted_key_material=wrapped, import_token=offer.import_token)
    (version,) = world.kms.list_key_versions(key).items
    pem = world.kms.get_public_key(key, key_version_id=version.key_version_id).public_key
    assert load_der_public_key(peers.spki(theirs)) == peers.serialization.load_pem_public_key(pem.encode())
    names = {"EC_P384": "ECDSA_SHA_384", "EC_P521": "ECDSA_SHA_512"}
    signing = names.get(spec, "RSA_PSS_SHA_256" if spec.startswith("RSA") else "ECDSA_SHA_256")
    digest = peers.digest_of(signing, b"m")
    more = {"key_version_id": version.key_version_id, "algorithm": signing, "digest": digest}
    assert peers.verify(pem, signing, digest, world.kms.asymmetric_sign(key, **more).value)
    assert world.kms.asymmetric_verify(key, **more, value=peers.sign(theirs, signing, digest)).value


@pytest.mark.parametrize("level", LEVELS)
def test_an_imported_rsa_key_decrypts(world: World, level: str) -> None:
    key, theirs = world.key(level, "RSA_2048", "ENCRYPT/DECRYPT"), peers.new_private_key("RSA_2048")
    world.bring(key, peers.pkcs8(theirs), "RSA_AES_KEY_WRAP_SHA_1")
    (version,) = world.kms.list_key_versions(key).items
    for algorithm in ("RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"):
        blob = peers.encrypt(peers.spki(theirs), algorithm, b"secret")
        more = {"key_version_id": version.key_version_id, "algorithm": algorithm, "ciphertext_blob": blob}
        assert world.kms.asymmetric_decrypt(key, **more).plaintext == b"secret"


# --- tokens --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_a_token_can_be_used_again_and_each_offer_is_its_own(world: World, level: str) -> None:
    key, material = world.key(level), os.urandom(32)
    first, second = world.offer(key), world.offer(key)
    assert first.public_key != second.public_key
    assert first.import_token != second.import_token
    for offer in (first, second, first):
        world.bring(key, material, offer=offer)
    crossed = peers.wrap(first.public_key, "RSAES_OAEP_SHA_1", material)
    assert (
        code(world.kms.import_key_material, key, encrypted_key_material=crossed, import_token=second.import_token) == "InvalidKeyMaterial"
    )


@pytest.mark.parametrize("level", LEVELS)
def test_bad_tokens(world: World, level: str) -> None:
    key, other, material = world.key(level), world.key(level), os.urandom(32)
    offer, theirs = world.offer(key), world.offer(other)
    sealed = world.kms.encrypt(world.kms.create_key().key_id, b"x").ciphertext_blob
    before = world.custody()
    wrapped = peers.wrap(offer.public_key, "RSAES_OAEP_SHA_1", material)

    def attempt(token: bytes) -> str:
        return code(world.kms.import_key_material, key, encrypted_key_material=wrapped, import_token=token)

    good = offer.import_token
    for at in (0, 1, 2, 5, 19, 40, len(good) - 1):
        changed = bytearray(good)
        changed[at] ^= 1
        assert attempt(bytes(changed)) == "InvalidImportToken"
    for token in (theirs.import_token, good[:-1], good + b"x", b"x", bytes(200), sealed):
        assert attempt(token) == "InvalidImportToken"
    assert attempt(b"") == "MissingParameter"
    assert code(world.kms.decrypt, good) == "InvalidParameter"  # a token is no ciphertext
    assert world.kms.describe_key(key).key_state == "PendingImport"
    assert world.custody()[:2] == before[:2]


# --- hostile -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("algorithm", ["RSAES_PKCS1_V1_5", "RSAES_OAEP_SHA_1", "RSA_AES_KEY_WRAP_SHA_1"])
def test_material_of_another_length(world: World, level: str, algorithm: str) -> None:
    key = world.key(level)
    offer = world.offer(key, algorithm)
    before = world.custody()
    errors = set()
    for size in (1, 16, 24, 31, 33, 48, 64):
        with pytest.raises(KmsError) as refused:
            world.bring(key, os.urandom(size), algorithm, offer)
        errors.add((refused.value.code, refused.value.message))
    assert errors == {("InvalidKeyMaterial", "The key material is not valid.")}
    assert world.kms.describe_key(key).key_state == "PendingImport"
    assert world.custody() == before
    material = os.urandom(32)
    world.bring(key, material, algorithm, offer)
    world.opens(material, key)


@pytest.mark.parametrize("level", LEVELS)
def test_material_of_another_kind(world: World, level: str) -> None:
    algorithm = "RSA_AES_KEY_WRAP_SHA_1"
    rsa, curve = peers.pkcs8(peers.new_private_key("RSA_2048")), peers.pkcs8(peers.new_private_key("EC_P256"))
    wrong = {
        "RSA_2048": [curve, peers.pkcs8(peers.new_private_key("RSA_3072")), os.urandom(32), rsa[:-1], os.urandom(1200)],
        "EC_P256": [rsa, peers.pkcs8(peers.new_private_key("EC_P384")), peers.pkcs8(peers.new_private_key("EC_P256K")), os.urandom(32)],
        "Aliyun_AES_256": [rsa, curve],
    }
    if level == "SOFTWARE":  # SoftHSM takes a private key with a byte behind it, and what it holds is the key
        wrong["RSA_2048"].append(rsa + b"\0")
    for spec, materials in wrong.items():
        key = world.key(level, spec)
        offer = world.offer(key, algorithm)
        before = world.custody()
        for material in materials:
            assert code(world.bring, key, material, algorithm, offer) == "InvalidKeyMaterial"
        assert world.custody() == before
        assert world.kms.describe_key(key).key_state == "PendingImport"


@pytest.mark.parametrize("level", LEVELS)
def test_nine_bad_attempts(world: World, level: str) -> None:
    key, material = world.key(level), os.urandom(32)
    offer, other = world.offer(key), world.offer(key)
    empty = len(world.kms._s.queries.live_imports(key))
    for _ in range(8):
        assert code(world.kms.import_key_material, key, encrypted_key_material=os.urandom(256), import_token=offer.import_token) == (
            "InvalidKeyMaterial"
        )
    assert code(world.bring, key, material, offer=offer) == "InvalidImportToken"
    assert len(world.kms._s.queries.live_imports(key)) == empty - 1  # its pair is gone at once
    world.bring(key, material, offer=other)
    world.opens(material, key)


@pytest.mark.parametrize("level", LEVELS)
def test_other_material_is_not_taken_again(world: World, level: str) -> None:
    key, material = world.key(level), os.urandom(32)
    offer = world.offer(key)
    world.bring(key, material, offer=offer)
    blob = world.kms.encrypt(key, b"text").ciphertext_blob
    before = world.custody()
    assert code(world.bring, key, os.urandom(32), offer=offer) == "InvalidKeyMaterial"
    assert world.custody() == before
    world.kms.delete_key_material(key)
    assert code(world.bring, key, os.urandom(32), offer=offer) == "InvalidKeyMaterial"
    assert world.kms.describe_key(key).key_state == "PendingImport"
    assert code(world.kms.decrypt, blob) == "Rejected.PendingImport"
    world.bring(key, material, offer=offer)
    assert world.kms.decrypt(blob).plaintext == b"text"
    world.opens(material, key)


@pytest.mark.parametrize("level", LEVELS)
def test_states_and_origins(world: World, level: str) -> None:
    key, material = world.key(level), os.urandom(32)
    offer = world.offer(key)
    world.bring(key, material, offer=offer)
    world.kms.disable_key(key)
    world.bring(key, material, offer=offer)
    assert world.kms.describe_key(key).key_state == "Disabled"
    world.kms.schedule_key_deletion(key, pending_window_in_days=7)
    assert code(world.bring, key, material, offer=offer) == "Rejected.StateModifiedFailed"
    world.kms.delete_key_material(key)
    assert world.kms.describe_key(key).key_state == "PendingDeletion"
    world.kms.cancel_key_deletion(key)
    assert world.kms.describe_key(key).key_state == "PendingImport"
    world.bring(key, material, offer=offer)
    assert world.kms.describe_key(key).key_state == "Enabled"
    ours = world.kms.create_key(protection_level=level).key_id
    more = {"encrypted_key_material": b"x", "import_token": offer.import_token}
    assert code(world.offer, ours) == "Unsupported.Origin"
    assert code(world.kms.import_key_material, ours, **more) == "Unsupported.Origin"
    assert code(world.kms.delete_key_material, ours) == "Unsupported.Origin"
    world.kms.create_alias(key, alias_name=f"alias/{level}-import")
    assert code(world.offer, f"alias/{level}-import") == "Unsupported.Alias"
    assert code(world.offer, key, "SM2PKE") == "InvalidParameter"
    assert code(world.offer, key, "RSAES_OAEP_SHA_1", "EC_SM2") == "InvalidParameter"
    assert code(world.kms.rotate_key, key) == "Rejected.UnsupportedOperation"
    assert code(world.kms.create_key, origin="EXTERNAL", key_spec="HMAC_256") == "UnsupportedOperation"


# --- expiry --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_expiry_without_a_scheduler(world: World, level: str) -> None:
    key, material = world.key(level), os.urandom(32)
    offer = world.offer(key)
    assert code(world.bring, key, material, offer=offer, key_material_expire_unix=world.unix(seconds=-1)) == "InvalidParameter"
    end = world.unix(hours=2)
    world.bring(key, material, offer=offer, key_material_expire_unix=end)
    assert world.kms.describe_key(key).material_expire_time == datetime.fromtimestamp(end, START.tzinfo)
    blob = world.kms.encrypt(key, b"text").ciphertext_blob
    world.clock.advance(timedelta(hours=2) - timedelta(microseconds=1))
    assert world.kms.decrypt(blob).plaintext == b"text"
    world.clock.advance(timedelta(microseconds=1))
    for use in (lambda: world.kms.encrypt(key, b"x"), lambda: world.kms.decrypt(blob), lambda: world.kms.generate_data_key(key)):
        assert code(use) == "Rejected.PendingImport"
    told = world.kms.describe_key(key)
    assert (told.key_state, told.material_expire_time) == ("PendingImport", datetime.fromtimestamp(end, START.tzinfo))
    assert world.kms.list_keys(filters={"keyId": [key], "KeyState": ["PendingImport"]}).total_count == 1
    assert world.kms.run_due().expired == (key,)
    assert world.kms.run_due().expired == ()
    assert code(world.kms.decrypt, blob) == "Rejected.PendingImport"
    world.custody()
    world.bring(key, material, offer=offer, key_material_expire_unix=world.unix(hours=1))
    assert world.kms.decrypt(blob).plaintext == b"text"
    world.bring(key, material, offer=offer)  # the same again, and it does not expire any more
    world.clock.advance(timedelta(hours=2))
    assert world.kms.decrypt(blob).plaintext == b"text"
    assert world.kms.describe_key(key).material_expire_time is None


# --- the next material ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_the_next_material_takes_over_at_its_date(world: World, level: str) -> None:
    key, old, new = world.key(level), os.urandom(32), os.urandom(32)
    offer = world.offer(key)

    def bring_next(material: bytes, **more: int) -> None:
        wrapped = peers.wrap(offer.public_key, "RSAES_OAEP_SHA_1", material)
        world.kms.import_next_key_material(key, encrypted_key_material=wrapped, import_token=offer.import_token, **more)

    assert code(bring_next, new) == "Rejected.PendingImport"
    world.bring(key, old, offer=offer)
    first = world.kms.describe_key(key).primary_key_version
    assert code(bring_next, old) == "InvalidKeyMaterial"
    blob = world.kms.encrypt(key, b"old").ciphertext_blob
    bring_next(new, key_material_activate_unix=world.unix(hours=2))
    world.opens(old, key)
    assert world.kms.describe_key(key).primary_key_version == first
    world.clock.advance(timedelta(hours=2))
    world.opens(new, key)
    told = world.kms.describe_key(key)
    assert told.primary_key_version not in (None, first)
    assert told.last_rotation_date == world.clock.now()
    assert world.kms.decrypt(blob).plaintext == b"old"
    assert world.kms.list_key_versions(key).total_count == 2
    world.kms.run_due()
    world.opens(new, key)
    world.kms.delete_key_material(key)
    assert code(world.kms.decrypt, blob) == "Rejected.PendingImport"
    world.bring(key, old, offer=offer)  # whichever it was, its ciphertext is readable again
    assert world.kms.decrypt(blob).plaintext == b"old"
    assert world.kms.describe_key(key).key_state == "PendingImport"  # the primary one is not there yet
    world.bring(key, new, offer=offer)
    world.opens(new, key)
    third = os.urandom(32)
    bring_next(third)  # at once
    world.opens(third, key)


def test_what_the_history_says_of_an_import(world: World) -> None:
    key, material = world.key("HSM"), os.urandom(32)
    world.bring(key, material)
    (event,) = [event for event in world.kms.history(key) if event["event"] == "MaterialImported"]
    facts = event["facts"]["facts"]
    assert facts["unwrapped_in"] == "token"
    assert [facts[name] for name in ("sensitive", "extractable", "local", "always_sensitive", "never_extractable")] == [
        True,
        False,
        False,
        False,
        False,
    ]
    text = repr(world.kms.history(key))
    for secret in (material.hex(), hashlib.sha256(material).hexdigest()):
        assert secret not in text


@pytest.mark.parametrize("level", LEVELS)
def test_lists_and_views_follow_a_clock_in_both_directions(level: str) -> None:
    """What time alone decides is the same for DescribeKey, ListKeys and every use, with no tick, and when a clock is set back."""
    clock = FixedClock(START)
    with fast_directory() as directory, open_kms(directory / "home", clock=clock, hsm=FakeKeeper(FakeToken())) as kms:
        world = World(kms, clock)
        key, old, new = world.key(level), os.urandom(32), os.urandom(32)
        offer = world.offer(key)
        world.bring(key, old, offer=offer, key_material_expire_unix=world.unix(hours=3))
        kms.import_next_key_material(
            key,
            encrypted_key_material=peers.wrap(offer.public_key, "RSAES_OAEP_SHA_1", new),
            import_token=offer.import_token,
            key_material_activate_unix=world.unix(hours=5),
            key_material_expire_unix=world.unix(hours=7),
        )
        for hours, state, material in (
            (1, "Enabled", old),
            (4, "PendingImport", None),
            (6, "Enabled", new),
            (8, "PendingImport", None),
        ) * 2 + (
            (6, "Enabled", new),
            (4, "PendingImport", None),
            (1, "Enabled", old),
        ):
            clock.set(START + timedelta(hours=hours))
            assert kms.describe_key(key).key_state == state
            for wanted in ("Enabled", "PendingImport"):
                assert kms.list_keys(filters={"KeyState": [wanted]}).total_count == (wanted == state)
            if material is None:
                assert code(kms.encrypt, key, b"x") == "Rejected.PendingImport"
            else:
                assert decode(kms.encrypt(key, b"x").ciphertext_blob, material, bytes(4)) == b"x"


def test_next_materials_without_a_date_come_one_after_the_other(world: World) -> None:
    key = world.key("SOFTWARE")
    offer = world.offer(key)
    world.bring(key, os.urandom(32), offer=offer)
    failures: list[KmsError] = []

    def bring_next() -> None:
        wrapped = peers.wrap(offer.public_key, "RSAES_OAEP_SHA_1", os.urandom(32))
        try:
            world.kms.import_next_key_material(key, encrypted_key_material=wrapped, import_token=offer.import_token)
        except KmsError as error:
            failures.append(error)

    threads = [threading.Thread(target=bring_next) for _ in range(6)]
    for thread in threads:
        thread.start()
        world.clock.advance(timedelta(microseconds=1))
    for thread in threads:
        thread.join()
    assert not failures
    assert world.kms.list_key_versions(key).total_count == 7
