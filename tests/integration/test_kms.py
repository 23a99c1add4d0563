"""The operations of the embedded engine on a real SoftHSM token and real SQLite, as a caller sees them."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import kmscore
from kmscore import FixedClock, KmsError
from kmscore.domain.specs import ContentKind
from kmscore.engine.crypto import UseLimits
from kmscore.engine.kms import Kms

START = datetime(2030, 1, 1, tzinfo=UTC)
LEVELS = ["HSM", "SOFTWARE"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kms") / "home"


@pytest.fixture(scope="module")
def opened(home: Path) -> Iterator[tuple[Kms, FixedClock]]:
    clock = FixedClock(START)
    with kmscore.open_kms(home, clock=clock) as kms:
        yield kms, clock


@pytest.fixture
def kms(opened: tuple[Kms, FixedClock]) -> Kms:
    return opened[0]


@pytest.fixture
def clock(opened: tuple[Kms, FixedClock]) -> FixedClock:
    return opened[1]


def code(call: object, *args: object, **kwargs: object) -> str:
    with pytest.raises(KmsError) as refused:
        call(*args, **kwargs)  # type: ignore[operator]
    return refused.value.code


# --- create and describe -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_a_new_key_as_described(kms: Kms, clock: FixedClock, level: str) -> None:
    made = kms.create_key(protection_level=level, description="Key1 in Managed HSM", tags={"team": "pay"})
    assert made.key_id.startswith("key-")
    assert set(made.key_id[4:]) <= set("abcdefghijklmnopqrstuvwxyz0123456789")
    assert made.arn == f"acs:kms:cn-local:1000000000000001:key/{made.key_id}"
    assert made.key_state == "Enabled"
    assert made.protection_level == level
    assert made.key_spec == "Aliyun_AES_256"
    assert made.key_usage == "ENCRYPT/DECRYPT"
    assert made.origin == "Aliyun_KMS"
    assert made.creation_date == made.last_rotation_date == clock.now()
    assert made.automatic_rotation == "Disabled"
    assert made.deletion_protection is None
    assert made.primary_key_version is not None and len(made.primary_key_version) == 36
    told = kms.describe_key(made.key_id)
    assert told.deletion_protection == "Disabled"
    assert [(tag.tag_key, tag.tag_value) for tag in kms.list_resource_tags(made.key_id)] == [("team", "pay")]


def test_the_default_level_is_software(kms: Kms) -> None:
    assert kms.create_key().protection_level == "SOFTWARE"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"key_spec": "AES_512"}, "InvalidParameter"),
        ({"key_usage": "SIGN/VERIFY"}, "InvalidParameter"),
        ({"key_usage": "both"}, "InvalidParameter"),
        ({"protection_level": "hsm"}, "InvalidParameter"),
        ({"origin": "aliyun_kms"}, "InvalidParameter"),
        ({"description": "x" * 8193}, "InvalidParameter"),
        ({"enable_automatic_rotation": True}, "MissingParameter"),
        ({"enable_automatic_rotation": True, "rotation_interval": "6d"}, "InvalidParameter"),
        ({"enable_automatic_rotation": "yes"}, "InvalidParameter"),
        ({"tags": {"acs:x": "y"}}, "InvalidParameter.TagKey"),
        ({"tags": {"x": "y" * 129}}, "InvalidParameter.TagValue"),
        ({"dkms_instance_id": "kst-none"}, "Forbidden.DKMSInstanceNotFound"),
    ],
)
def test_a_bad_create_changes_nothing(kms: Kms, arguments: dict[str, object], expected: str) -> None:
    before = kms._s.queries.position()
    assert code(kms.create_key, **arguments) == expected
    assert kms._s.queries.position() == before


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("spec", ["Aliyun_AES_128", "Aliyun_AES_192", "Aliyun_AES_256"])
def test_every_spec_at_every_level(kms: Kms, level: str, spec: str) -> None:
    key = kms.create_key(protection_level=level, key_spec=spec).key_id
    blob = kms.encrypt(key, b"x", {"a": "b"}).ciphertext_blob
    assert blob[1] == (1 if spec == "Aliyun_AES_256" else 2)
    assert kms.decrypt(blob, {"a": "b"}).plaintext == b"x"
    assert kms.decrypt_batch(kms.encrypt_batch(key, [b"1", b"2"])) == [b"1", b"2"]


# --- encrypt and decrypt -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=LEVELS)
def key(request: pytest.FixtureRequest, opened: tuple[Kms, FixedClock]) -> str:
    return opened[0].create_key(protection_level=request.param).key_id


def test_contexts(kms: Kms, key: str) -> None:
    sealed = kms.encrypt(key, b"text", {"ab": "c", "d": "e"})
    assert kms.decrypt(sealed.ciphertext_blob, {"d": "e", "ab": "c"}).plaintext == b"text"
    for wrong in (None, {}, {"a": "bc", "d": "e"}, {"ab": "c"}, {"ab": "c", "d": "E"}):
        assert code(kms.decrypt, sealed.ciphertext_blob, wrong) == "InvalidParameter"
    for absent in (None, {}):
        blob = kms.encrypt(key, b"text", absent).ciphertext_blob
        assert kms.decrypt(blob, None).plaintext == kms.decrypt(blob, {}).plaintext == b"text"
        assert code(kms.decrypt, blob, {"a": "b"}) == "InvalidParameter"
    assert code(kms.encrypt, key, b"text", {"a": 1}) == "InvalidParameter"


@pytest.mark.parametrize("size", [1, 15, 16, 17, 4096, 6143, 6144])
def test_sizes(kms: Kms, key: str, size: int) -> None:
    text = os.urandom(size)
    for given in (text, bytearray(text), memoryview(text)):
        sealed = kms.encrypt(key, given)
        assert len(sealed.ciphertext_blob) == size + 19 + 24 + 16
        assert kms.decrypt(memoryview(sealed.ciphertext_blob)).plaintext == text


def test_plaintexts_that_are_refused(kms: Kms, key: str) -> None:
    assert code(kms.encrypt, key, b"") == "MissingParameter"
    assert code(kms.encrypt, key, bytes(6145)) == "InvalidParameter"
    assert code(kms.encrypt, key, "text") == "InvalidParameter"
    assert code(kms.encrypt, key, None) == "InvalidParameter"
    assert code(kms.encrypt, "", b"x") == "MissingParameter"
    assert kms.decrypt(kms.encrypt(key, bytes(8192), content=ContentKind.TEXT).ciphertext_blob).content is ContentKind.TEXT
    assert code(kms.encrypt, key, bytes(8193), content=ContentKind.TEXT) == "InvalidParameter"


def test_every_damaged_blob_is_the_one_opaque_error(kms: Kms, key: str) -> None:
    blob = kms.encrypt(key, b"some text", {"a": "b"}).ciphertext_blob
    message = 'InvalidParameter: The specified parameter "CiphertextBlob" is not valid.'
    damaged = [blob[:i] + bytes([blob[i] ^ 1]) + blob[i + 1 :] for i in range(len(blob)) if not 3 <= i < 19]
    damaged += [blob[:-1], blob + b"x", blob[:30], b"x", blob[:19] + blob[20:]]
    for bad in damaged:
        with pytest.raises(KmsError) as refused:
            kms.decrypt(bad, {"a": "b"})
        assert str(refused.value) == message
    for i in range(3, 19):  # the version id: a well-formed blob that names an unknown version
        bad = blob[:i] + bytes([blob[i] ^ 1]) + blob[i + 1 :]
        assert code(kms.decrypt, bad, {"a": "b"}) == "Forbidden.KeyNotFound"
    assert kms.decrypt(blob, {"a": "b"}).plaintext == b"some text"
    assert code(kms.decrypt, b"") == "MissingParameter"
    assert code(kms.decrypt, "text") == "InvalidParameter"


def test_a_blob_moved_to_another_version_is_refused(kms: Kms, key: str) -> None:
    blob = kms.encrypt(key, b"text").ciphertext_blob
    kms.rotate_key(key)
    other = kms.encrypt(key, b"text").ciphertext_blob
    assert code(kms.decrypt, other[:19] + blob[19:]) == "InvalidParameter"
    assert kms.decrypt(blob).key_version_id != kms.decrypt(other).key_version_id


def test_names(kms: Kms, key: str) -> None:
    alias = f"alias/names-{key[-6:]}"
    kms.create_alias(key, alias_name=alias)
    for name in (key, alias, f"acs:kms:cn-local:1000000000000001:key/{key}", f"acs:kms:cn-local:1000000000000001:{alias}"):
        assert kms.encrypt(name, b"x").key_id == key
        assert kms.describe_key(name).key_id == key
    assert code(kms.encrypt, "acs:kms:elsewhere:1000000000000001:key/x", b"x") == "Forbidden.KeyNotFound"
    assert code(kms.encrypt, "acs:kms:cn-local:2:key/" + key, b"x") == "Forbidden.KeyNotFound"
    assert code(kms.encrypt, "acs:nonsense", b"x") == "InvalidParameter"
    assert code(kms.encrypt, "alias/none", b"x") == "Forbidden.AliasNotFound"
    assert code(kms.encrypt, "key-none", b"x") == "Forbidden.KeyNotFound"
    assert code(kms.encrypt, "system/root", b"x") == "Forbidden.KeyNotFound"
    for call in (kms.enable_key, kms.disable_key, kms.cancel_key_deletion, kms.list_resource_tags):
        assert code(call, alias) == "Unsupported.Alias"
    assert code(kms.disable_key, "system/root") == "Forbidden.KeyNotFound"


def test_batches(kms: Kms, key: str) -> None:
    texts = [os.urandom(n + 1) for n in range(130)]
    blobs = kms.encrypt_batch(key, texts, {"a": "b"})
    assert kms.decrypt_batch(blobs, {"a": "b"}) == texts
    assert kms.decrypt(blobs[7], {"a": "b"}).plaintext == texts[7]
    other = kms.create_key(protection_level="HSM").key_id
    mixed = [*blobs[:3], kms.encrypt(other, b"other", {"a": "b"}).ciphertext_blob, *blobs[3:5]]
    assert kms.decrypt_batch(mixed, {"a": "b"}) == [*texts[:3], b"other", *texts[3:5]]
    assert kms.encrypt_batch(key, []) == kms.decrypt_batch([]) == []


def test_a_bad_item_is_named_and_spoils_no_other(kms: Kms, key: str) -> None:
    blobs = kms.encrypt_batch(key, [b"0", b"1", b"2", b"3"])
    bad = [blobs[0], blobs[1][:-1] + bytes([blobs[1][-1] ^ 1]), b"short", blobs[3]]
    items = kms.try_decrypt_batch(bad)
    assert [items[0], items[3]] == [b"0", b"3"]
    assert [item.code for item in items[1:3] if isinstance(item, KmsError)] == ["InvalidParameter"] * 2
    with pytest.raises(KmsError, match="item 1"):
        kms.decrypt_batch(bad)
    made = kms.try_encrypt_batch(key, [b"a", b"", b"b", bytes(6145), "text"])  # type: ignore[list-item]
    assert [isinstance(item, bytes) for item in made] == [True, False, True, False, False]
    with pytest.raises(KmsError, match="item 1"):
        kms.encrypt_batch(key, [b"a", b""])


def test_re_encrypt(kms: Kms, key: str) -> None:
    target = kms.create_key(protection_level="HSM").key_id
    blob = kms.encrypt(key, b"text", {"a": "b"}, content=ContentKind.TEXT)
    moved = kms.re_encrypt(
        blob.ciphertext_blob,
        destination_key_id=target,
        source_encryption_context={"a": "b"},
        destination_encryption_context={"c": "d"},
    )
    assert (moved.key_id, moved.key_version_id) == (blob.key_id, blob.key_version_id)  # the source's: DECISIONS 29
    opened = kms.decrypt(moved.ciphertext_blob, {"c": "d"})
    assert (opened.plaintext, opened.key_id, opened.content) == (b"text", target, ContentKind.TEXT)
    assert code(kms.re_encrypt, blob.ciphertext_blob, destination_key_id=target) == "InvalidParameter"
    assert code(kms.re_encrypt, blob.ciphertext_blob, destination_key_id="key-none", source_encryption_context={"a": "b"}) == (
        "Forbidden.KeyNotFound"
    )


def test_data_keys(kms: Kms, key: str) -> None:
    assert len(kms.generate_data_key(key).plaintext or b"") == 32
    assert len(kms.generate_data_key(key, key_spec="AES_128").plaintext or b"") == 16
    assert len(kms.generate_data_key(key, key_spec="AES_128", number_of_bytes=1024).plaintext or b"") == 1024
    assert len(kms.generate_data_key(key, number_of_bytes=0).plaintext or b"") == 32
    made = kms.generate_data_key(key, encryption_context={"a": "b"})
    assert kms.decrypt(made.ciphertext_blob, {"a": "b"}).plaintext == made.plaintext
    hidden = kms.generate_data_key_without_plaintext(key, number_of_bytes=48)
    assert hidden.plaintext is None
    assert len(kms.decrypt(hidden.ciphertext_blob).plaintext) == 48
    assert made.plaintext is not None and base64.b16encode(made.plaintext).decode() not in repr(made).upper()
    for bad in ({"key_spec": "AES_512"}, {"number_of_bytes": 1025}, {"number_of_bytes": -1}):
        assert code(kms.generate_data_key, key, **bad) == "InvalidParameter"


# --- lifecycle -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_deletion_to_the_end(kms: Kms, clock: FixedClock, level: str) -> None:
    key = kms.create_key(protection_level=level).key_id
    kms.create_alias(key, alias_name=f"alias/end-{level}")
    blob = kms.encrypt(key, b"x").ciphertext_blob
    kms.rotate_key(key)
    materials = {m for m, (owner, _, _) in kms._s.queries.material_states().items() if owner == key}
    assert len(materials) == 2
    kms.schedule_key_deletion(key, pending_window_in_days=7)
    assert kms.describe_key(key).delete_date == clock.now() + timedelta(days=7)
    assert code(kms.encrypt, key, b"x") == code(kms.decrypt, blob) == "Rejected.PendingDeletion"
    kms.cancel_key_deletion(key)
    assert kms.decrypt(blob).plaintext == b"x"
    kms.schedule_key_deletion(key, pending_window_in_days=7)
    clock.advance(timedelta(days=7))
    # Gone for every caller from that instant, though nobody has run the due work yet.
    assert key not in [item.key_id for item in kms.list_keys(page_size=100).items]
    assert code(kms.describe_key, key) == code(kms.decrypt, blob) == code(kms.encrypt, key, b"x") == "Forbidden.KeyNotFound"
    assert kms.run_due().destroyed == (key,)
    keeper = kms._s.reconciler._keepers[kmscore.ProtectionLevel(level)]
    assert not materials & keeper.inventory().materials
    assert code(kms.encrypt, f"alias/end-{level}", b"x") == "Forbidden.AliasNotFound"
    assert code(kms.decrypt, blob) == "Forbidden.KeyNotFound"
    assert [event["event"] for event in kms.history(key)][-4:] == [
        "DestructionStarted",
        "MaterialDestroyed",
        "MaterialDestroyed",
        "KeyDestroyed",
    ]
    assert kms.run_due().destroyed == ()


@pytest.mark.parametrize("level", LEVELS)
def test_automatic_rotation(kms: Kms, clock: FixedClock, level: str) -> None:
    key = kms.create_key(protection_level=level, enable_automatic_rotation=True, rotation_interval="30d").key_id
    made = clock.now()
    blob = kms.encrypt(key, b"x").ciphertext_blob
    told = kms.describe_key(key)
    assert (told.automatic_rotation, told.rotation_interval) == ("Enabled", "2592000s")
    assert told.next_rotation_date == made + timedelta(days=30)
    clock.advance(timedelta(days=29))
    assert key not in kms.run_due().rotated
    clock.advance(timedelta(days=1))
    assert key in kms.run_due().rotated
    assert key not in kms.run_due().rotated
    clock.advance(timedelta(days=300))
    assert kms.run_due().rotated.count(key) == 1  # once, not ten times
    assert kms.list_key_versions(key).total_count == 3
    assert kms.describe_key(key).last_rotation_date == clock.now()
    assert kms.decrypt(blob).plaintext == b"x"
    kms.disable_key(key)
    assert kms.describe_key(key).automatic_rotation == "Suspended"
    clock.advance(timedelta(days=60))
    assert key not in kms.run_due().rotated
    kms.enable_key(key)
    assert key in kms.run_due().rotated
    kms.update_rotation_policy(key, enable_automatic_rotation=False)
    assert kms.describe_key(key).next_rotation_date is None


def test_a_policy_whose_interval_is_over_rotates_at_once(kms: Kms, clock: FixedClock) -> None:
    key = kms.create_key(protection_level="HSM").key_id
    clock.advance(timedelta(days=8))
    kms.update_rotation_policy(key, enable_automatic_rotation=True, rotation_interval="7d")
    assert kms.list_key_versions(key).total_count == 2


def test_versions(kms: Kms, clock: FixedClock) -> None:
    key = kms.create_key(protection_level="HSM").key_id
    first = kms.describe_key(key).primary_key_version
    assert code(kms.create_key_version, key) == "Rejected.UnsupportedOperation"  # within seven days
    second = kms.rotate_key(key)
    assert second.creation_date == clock.now()
    clock.advance(timedelta(days=7))
    third = kms.create_key_version(key)
    page = kms.list_key_versions(key, page_size=2)
    assert [v.key_version_id for v in page.items] == [first, second.key_version_id]
    assert [v.key_version_id for v in kms.list_key_versions(key, page_number=2, page_size=2).items] == [third.key_version_id]
    assert kms.describe_key_version(key, key_version_id=second.key_version_id) == second
    assert code(kms.describe_key_version, key, key_version_id="none") == "Forbidden.KeyVersionNotFound"
    assert kms.describe_key(key).primary_key_version == third.key_version_id


def test_deletion_protection(kms: Kms) -> None:
    made = kms.create_key()
    kms.set_deletion_protection(protected_resource_arn=made.arn, enable_deletion_protection=True, deletion_protection_description="x")
    told = kms.describe_key(made.key_id)
    assert (told.deletion_protection, told.deletion_protection_description) == ("Enabled", "x")
    assert code(kms.schedule_key_deletion, made.key_id, pending_window_in_days=7) == "Rejected.UnsupportedOperation"
    kms.set_deletion_protection(made.key_id, enable_deletion_protection=False)
    kms.schedule_key_deletion(made.key_id, pending_window_in_days=7)
    assert code(kms.set_deletion_protection, enable_deletion_protection=True) == "MissingParameter"
    assert code(kms.schedule_key_deletion, made.key_id, pending_window_in_days="7") == "InvalidParameter"


def test_aliases(kms: Kms) -> None:
    one, two = kms.create_key().key_id, kms.create_key().key_id
    kms.create_alias(one, alias_name="alias/app/one")
    assert code(kms.create_alias, two, alias_name="alias/app/one") == "AliasAlreadyExists"
    assert code(kms.create_alias, "key-none", alias_name="alias/app/none") == "Forbidden.KeyNotFound"
    assert code(kms.create_alias, one, alias_name="alias/acs/x") == "InvalidParameter"
    assert code(kms.update_alias, two, alias_name="alias/none") == "Forbidden.AliasNotFound"
    kms.update_alias(two, alias_name="alias/app/one")
    assert kms.list_aliases_by_key_id(one).items == ()
    assert [alias.alias_name for alias in kms.list_aliases_by_key_id(two).items] == ["alias/app/one"]
    kms.delete_alias(alias_name="alias/app/one")
    assert code(kms.delete_alias, alias_name="alias/app/one") == "Forbidden.AliasNotFound"
    kms.create_alias(one, alias_name="alias/app/one")
    assert kms.encrypt("alias/app/one", b"x").key_id == one
    kms.schedule_key_deletion(two, pending_window_in_days=7)
    assert code(kms.create_alias, two, alias_name="alias/app/two") == "Rejected.StateModifiedFailed"
    assert code(kms.update_alias, two, alias_name="alias/app/one") == "Rejected.PendingDeletion"


def test_tags_on_several_keys(kms: Kms) -> None:
    one, two = kms.create_key().key_id, kms.create_key().key_id
    kms.tag_resources(resource_id=[one, two], tag={"env": "prod", "n": "1"})
    assert code(kms.tag_resources, resource_id=[one, "key-none"], tag={"env": "lost"}) == "InvalidResourceId.NotFound"
    page = kms.list_tag_resources(resource_id=[one, two], tag={"env": "prod"})
    assert sorted((tag.key_id, tag.tag_key, tag.tag_value) for tag in page.items) == sorted(
        (key, name, value) for key in (one, two) for name, value in (("env", "prod"), ("n", "1"))
    )
    kms.untag_resources(resource_id=[one], tag_key=["n", "never"])
    kms.untag_resources(resource_id=[two], all=True)
    assert [(tag.tag_key, tag.tag_value) for tag in kms.list_resource_tags(one)] == [("env", "prod")]
    assert kms.list_resource_tags(two) == ()
    assert code(kms.tag_resources, resource_id=[one], tag={"a": "b"}, resource_type="secret") == "InvalidParameter"
    assert code(kms.tag_resources, resource_id=[one] * 51, tag={"a": "b"}) == "InvalidParameter"
    assert code(kms.untag_resources, resource_id=[one]) == "InvalidParameter"


def test_tag_pages_of_two_hundred_rows(kms: Kms) -> None:
    keys = [kms.create_key(tags={f"page-{n}": "x" for n in range(20)}).key_id for _ in range(11)]
    rows, token, pages = [], "", 0
    while True:
        page = kms.list_tag_resources(resource_id=keys, next_token=token)
        rows += page.items
        pages += 1
        token = page.next_token
        if not token:
            break
    assert pages == 2
    assert len(set(rows)) == len(rows) == 220
    assert code(kms.list_tag_resources, next_token="nonsense!") == "InvalidParameter"


def test_pages(kms: Kms) -> None:
    total = kms.list_keys().total_count
    assert kms.list_keys(page_number=10_000).items == ()
    assert kms.list_keys(page_number=10_000).total_count == total
    assert len(kms.list_keys(page_size=1).items) == 1
    for bad in ({"page_size": 0}, {"page_size": 101}, {"page_number": 0}, {"page_number": "1"}, {"page_size": True}):
        assert code(kms.list_keys, **bad) == "InvalidParameter"
    assert kms.list_keys(filters={"ProtectionLevel": ["HSM"], "KeyState": ["Enabled", "Disabled"]}).total_count < total


def test_the_uses_of_a_suite_2_version_are_counted_then_rotated_then_refused(kms: Kms) -> None:
    key = kms.create_key(key_spec="Aliyun_AES_128").key_id
    crypto = kms._crypto
    usual, crypto._limits = crypto._limits, UseLimits(block=4, rotate_at=12, refuse_at=20)
    try:
        for _ in range(8):
            kms.encrypt(key, b"x")
        assert kms.list_key_versions(key).total_count == 1
        kms.encrypt(key, b"x")  # the block that reaches 12
        assert kms.list_key_versions(key).total_count == 2
        crypto._rotate = lambda key_id: None  # a custody that cannot rotate now
        with pytest.raises(KmsError) as refused:
            kms.encrypt_batch(key, [b"x"] * 21)
        assert refused.value.code == "Rejected.LimitExceeded"
    finally:
        crypto._limits = usual


def test_hostile_arguments_get_a_clear_refusal(kms: Kms) -> None:
    key = kms.create_key().key_id
    strange = ["\ud800", "a\0b", "a\nb", 7, b"key", ["key"], {}, 1.5]
    for value in strange:
        for call in (kms.describe_key, kms.disable_key, kms.rotate_key, kms.list_resource_tags, kms.list_aliases_by_key_id):
            assert code(call, value) in ("InvalidParameter", "MissingParameter"), (call, value)
        assert code(kms.encrypt, value, b"x") in ("InvalidParameter", "MissingParameter")
        assert code(kms.create_alias, key, alias_name=value) in ("InvalidParameter", "MissingParameter")
        assert code(kms.update_key_description, key, description=value) in ("InvalidParameter",) if value not in ("a\0b", "a\nb") else True
        assert code(kms.update_rotation_policy, key, enable_automatic_rotation=True, rotation_interval=value).startswith(
            ("InvalidParameter", "MissingParameter")
        )
        assert code(kms.list_keys, filters={"KeyState": [value]}) == "InvalidParameter"
        assert value == ["key"] or code(kms.list_keys, filters={"KeyState": value}) in ("InvalidParameter", "MissingParameter")
        assert code(kms.list_tag_resources, next_token=value) == "InvalidParameter" if value else True
        assert code(kms.generate_data_key, key, key_spec=value) == "InvalidParameter" if value else True
        assert code(kms.describe_key_version, key, key_version_id=value) in ("InvalidParameter", "MissingParameter")
    for bad in ({"KeyState": []}, {"KeyState": ["x"] * 11}, {str(n): ["x"] for n in range(11)}, {"Unknown": ["x"]}, "KeyState", 5):
        assert code(kms.list_keys, filters=bad) in ("InvalidParameter", "MissingParameter")
    for bad in (b"bytes", "text", 5, None):
        assert code(kms.encrypt_batch, key, bad) == code(kms.decrypt_batch, bad) == "InvalidParameter"
    assert code(kms.encrypt, key, b"x", content=2) == "InvalidParameter"  # material is for no caller
    assert code(kms.encrypt, key, memoryview(b"abcdef")[::2]) == "InvalidParameter"
    assert code(kms.decrypt, memoryview(b"abcdef")[::2]) == "InvalidParameter"
    assert code(kms.list_tag_resources, tag={"\ud800": None}) == "InvalidParameter.TagKey"
    assert code(kms.history, "system/root") == code(kms.history, "key-none") == "Forbidden.KeyNotFound"


def test_the_credentials_are_made_once_and_private(home: Path, kms: Kms) -> None:
    lines = (home / "credentials").read_text().splitlines()
    assert [line.split("=")[0] for line in lines] == ["access_key_id", "access_key_secret"]
    assert all(len(line.split("=", 1)[1]) >= 20 for line in lines)
    assert (home / "credentials").stat().st_mode & 0o777 == 0o600
