"""Live objects equal the table of roles, and an object that does not is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from custody_helpers import fast_directory, new_ref, open_keeper
from pkcs11 import Attribute, KeyType, Mechanism
from pkcs11.exceptions import PKCS11Error

from kmscore.custody import templates
from kmscore.custody.fake import FakeKeeper, FakeKey, FakeToken
from kmscore.custody.hsm import HsmKeeper
from kmscore.custody.port import Buffer, Secret
from kmscore.custody.templates import ROLES, Role, differences, expected_of, template_for
from kmscore.domain.specs import KeySpec, Suite
from kmscore.errors import KmsError

KEYS = [
    (Suite.XAES_256_GCM, KeySpec.AES_256),
    (Suite.AES_GCM, KeySpec.AES_256),
    (Suite.AES_GCM, KeySpec.AES_192),
    (Suite.AES_GCM, KeySpec.AES_128),
]
BOOLEANS = {
    *(Attribute.TOKEN, Attribute.PRIVATE, Attribute.SENSITIVE, Attribute.EXTRACTABLE, Attribute.MODIFIABLE, Attribute.COPYABLE),
    *(Attribute.DESTROYABLE, Attribute.WRAP_WITH_TRUSTED, Attribute.ENCRYPT, Attribute.DECRYPT, Attribute.SIGN, Attribute.VERIFY),
    *(Attribute.WRAP, Attribute.UNWRAP, Attribute.DERIVE),
}


@pytest.fixture(scope="module")
def keeper() -> Iterator[HsmKeeper]:
    with fast_directory() as path:
        keeper = open_keeper(path)
        yield keeper
        keeper.close()


@pytest.mark.parametrize(("suite", "spec"), KEYS)
def test_a_live_object_equals_the_table(keeper: HsmKeeper, suite: Suite, spec: KeySpec) -> None:
    ref = new_ref(suite, spec)
    facts = keeper.generate(ref)
    found = keeper.attributes(ref)
    expected = expected_of(ref, "test")
    assert {attribute: found[attribute] for attribute in expected} == expected
    assert facts["role"] == {Suite.XAES_256_GCM: "derive", Suite.AES_GCM: "crypt"}[suite]
    assert facts["usage"] == {Suite.XAES_256_GCM: "DERIVE", Suite.AES_GCM: "ENCRYPT,DECRYPT"}[suite]
    assert facts["token_serial"] == keeper.token_serial
    assert facts["label"] == f"kmscore/test/{ref.material_id.hex()}"
    assert len(str(facts["check_value"])) == 6


# The table once more, written out by hand: a change of it must be made in both places, on purpose.
SAME = {
    **dict.fromkeys((Attribute.TOKEN, Attribute.PRIVATE, Attribute.SENSITIVE, Attribute.DESTROYABLE), True),
    **dict.fromkeys((Attribute.EXTRACTABLE, Attribute.WRAP_WITH_TRUSTED, Attribute.MODIFIABLE, Attribute.COPYABLE), False),
    **dict.fromkeys((Attribute.SIGN, Attribute.VERIFY, Attribute.WRAP, Attribute.UNWRAP), False),
    Attribute.CLASS: 4,
    Attribute.KEY_TYPE: 0x1F,
}
BY_HAND = {
    Suite.XAES_256_GCM: {
        **SAME,
        Attribute.DERIVE: True,
        Attribute.ENCRYPT: False,
        Attribute.DECRYPT: False,
        Attribute.ALLOWED_MECHANISMS: (0x1104,),
    },
    Suite.AES_GCM: {
        **SAME,
        Attribute.DERIVE: False,
        Attribute.ENCRYPT: True,
        Attribute.DECRYPT: True,
        Attribute.ALLOWED_MECHANISMS: (0x1087,),
    },
}


@pytest.mark.parametrize(("suite", "spec"), KEYS)
def test_the_table_is_what_was_decided(suite: Suite, spec: KeySpec) -> None:
    ref = new_ref(suite, spec)
    own = {
        Attribute.ID: ref.material_id,
        Attribute.LABEL: f"kmscore/test/{ref.material_id.hex()}",
        Attribute.VALUE_LEN: {KeySpec.AES_256: 32, KeySpec.AES_192: 24, KeySpec.AES_128: 16}[spec],
    }
    assert template_for(ref, "test") == {**BY_HAND[suite], **own}
    from_token = {Attribute.LOCAL: True, Attribute.ALWAYS_SENSITIVE: True, Attribute.NEVER_EXTRACTABLE: True, Attribute.TRUSTED: False}
    assert expected_of(ref, "test") == {**BY_HAND[suite], **own, **from_token, Attribute.KEY_GEN_MECHANISM: 0x1080}


def test_a_key_that_fails_its_self_test_is_not_handed_out(keeper: HsmKeeper, monkeypatch: pytest.MonkeyPatch) -> None:
    class Careless(FakeKey):
        """Opens anything."""

        def decrypt(self, header_size: int, aad: bytes, blob: Buffer) -> bytes:
            return self.last

        def encrypt(self, header: bytes, aad: bytes, plaintext: Buffer | Secret) -> bytes:
            assert isinstance(plaintext, bytes)
            self.last = plaintext
            return super().encrypt(header, aad, plaintext)

    fake = FakeKeeper(FakeToken())
    monkeypatch.setattr(keeper, "_key", lambda ref, handle: Careless(fake, ref, bytes(32)))
    ref = new_ref()
    with pytest.raises(KmsError, match="self-test"):
        keeper.generate(ref)
    monkeypatch.undo()
    keeper.destroy(ref.material_id)


def test_every_boolean_is_said(keeper: HsmKeeper) -> None:
    for suite, spec in KEYS:
        template = template_for(new_ref(suite, spec), "test")
        assert {attribute for attribute, value in template.items() if isinstance(value, bool)} == BOOLEANS
        assert template[Attribute.ALLOWED_MECHANISMS]


def test_roles_never_mix() -> None:
    groups = [
        {Attribute.ENCRYPT, Attribute.DECRYPT},
        {Attribute.SIGN, Attribute.VERIFY},
        {Attribute.WRAP, Attribute.UNWRAP},
        {Attribute.DERIVE},
    ]
    assert set(ROLES) == set(Role)
    for facts in ROLES.values():
        assert sum(bool(facts.allowed & group) for group in groups) == 1


@pytest.mark.parametrize(
    "change",
    [
        {Attribute.SENSITIVE: False},
        {Attribute.EXTRACTABLE: True},
        {Attribute.ENCRYPT: True},
        {Attribute.WRAP: True},
        {Attribute.MODIFIABLE: True},
        {Attribute.COPYABLE: True},
        {Attribute.ALLOWED_MECHANISMS: (int(Mechanism.AES_ECB_ENCRYPT_DATA), int(Mechanism.AES_GCM))},
        {Attribute.LABEL: "kmscore/other/x"},
        {Attribute.VALUE_LEN: 16},
    ],
    ids=lambda change: next(iter(change)).name,
)
def test_an_object_that_is_not_as_asked_for_is_refused(
    keeper: HsmKeeper, monkeypatch: pytest.MonkeyPatch, change: dict[Attribute, templates.Value]
) -> None:
    ref = new_ref()
    monkeypatch.setattr(templates, "template_for", lambda ref, instance: {**template_for(ref, instance), **change})
    monkeypatch.setattr(templates, "expected_of", lambda ref, instance: _expected(ref, instance))
    with pytest.raises(KmsError, match=next(iter(change)).name) as caught:
        keeper.generate(ref)
    assert caught.value.code == "InternalFailure"
    keeper.destroy(ref.material_id)


def _expected(ref: object, instance: str) -> dict[Attribute, templates.Value]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(templates, "template_for", template_for)
        return expected_of(ref, instance)  # type: ignore[arg-type]


def test_the_token_enforces_the_role(keeper: HsmKeeper) -> None:
    master, crypt = new_ref(), new_ref(Suite.AES_GCM)
    keeper.generate(master)
    keeper.generate(crypt)
    with keeper._session() as session:
        for ref, mechanism in ((master, Mechanism.AES_GCM), (crypt, Mechanism.AES_ECB)):
            thing = keeper._only(session, ref.material_id)
            assert hasattr(thing, "encrypt") is (ref is crypt)
            for attribute, value in ((Attribute.EXTRACTABLE, True), (Attribute.LABEL, "x"), (Attribute.WRAP, True)):
                with pytest.raises(PKCS11Error):
                    thing[attribute] = value
            with pytest.raises(PKCS11Error):
                thing.copy({Attribute.TOKEN: False})
            with pytest.raises(PKCS11Error):
                thing[Attribute.VALUE]
            if ref is crypt:
                with pytest.raises(PKCS11Error):
                    thing.encrypt(bytes(16), mechanism=mechanism)  # type: ignore[attr-defined]
            else:
                with pytest.raises(PKCS11Error):
                    thing.derive_key(KeyType.AES, 256, mechanism=Mechanism.AES_CBC_ENCRYPT_DATA, mechanism_param=bytes(48))  # type: ignore[attr-defined]


def test_two_objects_with_one_id_are_used_by_nobody(keeper: HsmKeeper) -> None:
    ref = new_ref()
    keeper.generate(ref)
    with keeper._session() as session:
        session.generate_key(KeyType.AES, 256, mechanism=Mechanism.AES_KEY_GEN, template=template_for(ref, "test"))
    assert differences(expected_of(ref, "test"), expected_of(ref, "test")) == []
    keeper._handles = None  # as another process would begin
    with pytest.raises(KmsError) as caught:
        keeper.load(ref)
    assert caught.value.code == "Rejected.Unavailable"
    keeper.destroy(ref.material_id)
    assert ref.material_id not in keeper.inventory().materials


def test_inventory_tells_ours_from_others(keeper: HsmKeeper) -> None:
    before = keeper.inventory()
    with keeper._session() as session:
        for material_id, label in ((b"", "somebody's"), (b"12", ""), (bytes(16), "kmscore/other/x"), (b"", "kmscore/test/y")):
            ref = new_ref()
            template = {**template_for(ref, "test"), Attribute.ID: material_id, Attribute.LABEL: label}
            session.generate_key(KeyType.AES, 256, mechanism=Mechanism.AES_KEY_GEN, template=template)
        template = {**template_for(new_ref(), "test"), Attribute.ID: b"", Attribute.LABEL: "", Attribute.PRIVATE: False}
        session.generate_key(KeyType.AES, 256, mechanism=Mechanism.AES_KEY_GEN, template=template)
    after = keeper.inventory()
    assert after.materials == before.materials
    assert len(after.foreign) == len(before.foreign) + 5
    assert keeper.sweep() == 0  # none of them is a fragment, the nameless one neither
    assert keeper.inventory() == after


def test_a_stale_handle_is_looked_up_again(keeper: HsmKeeper) -> None:
    for suite in Suite:
        ref = new_ref(suite)
        keeper.generate(ref)
        keeper._index_now()[ref.material_id] += 1_000_000
        assert keeper.load(ref)
        keeper.destroy(ref.material_id)
        keeper._index_now()[ref.material_id] = 1_000_000
        with pytest.raises(KmsError) as caught:
            keeper.load(ref)
        assert caught.value.code == "Rejected.Unavailable"
