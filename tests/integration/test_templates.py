"""Live objects equal the table of roles, on every token, and an object that does not is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import peers
import pytest
from custody_helpers import fast_directory, new_nss, new_ref, open_keeper
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.exceptions import PKCS11Error

from kmscore.custody import hsm, templates
from kmscore.custody.fake import FakeKeeper, FakeToken
from kmscore.custody.fake_keys import FakeKey
from kmscore.custody.hsm import HsmKeeper
from kmscore.custody.port import Buffer, MaterialRef, Secret
from kmscore.custody.templates import ROLES, Dialect, Role, differences, expected_of, template_for
from kmscore.domain.algorithms import WrappingAlgorithm
from kmscore.domain.specs import SPECS, KeySpec, KeyUsage, Suite
from kmscore.errors import KmsError

A = Attribute
TWO_STEP = WrappingAlgorithm.RSA_AES_KEY_WRAP_SHA_1
CRYPT, SIGN, UNWRAP = KeyUsage.ENCRYPT_DECRYPT, KeyUsage.SIGN_VERIFY, KeyUsage.UNWRAP


@dataclass(frozen=True)
class Kind:
    spec: KeySpec
    suite: Suite = Suite.NONE
    usage: KeyUsage = CRYPT
    imported: bool = False

    def ref(self) -> MaterialRef:
        return new_ref(self.suite, self.spec, self.usage, imported=self.imported)

    def __str__(self) -> str:
        made = "imported" if self.imported else "generated"
        return f"{self.spec.name}-{self.usage.name}-{self.suite.name}-{made}"


KINDS = [
    Kind(KeySpec.AES_256, Suite.XAES_256_GCM),
    *(Kind(spec, Suite.AES_GCM) for spec in (KeySpec.AES_256, KeySpec.AES_192, KeySpec.AES_128)),
    *(Kind(spec, usage=usage) for spec in (KeySpec.RSA_2048, KeySpec.RSA_3072) for usage in (SIGN, CRYPT, UNWRAP)),
    *(Kind(spec, usage=SIGN) for spec in (KeySpec.EC_P256, KeySpec.EC_P256K, KeySpec.EC_P384, KeySpec.EC_P521)),
    *(Kind(spec, usage=KeyUsage.GENERATE_VERIFY_MAC) for spec in (KeySpec.HMAC_256, KeySpec.HMAC_384, KeySpec.HMAC_512)),
    Kind(KeySpec.AES_256, Suite.XAES_256_GCM, imported=True),
    *(Kind(spec, usage=usage, imported=True) for spec in (KeySpec.RSA_2048, KeySpec.RSA_3072) for usage in (SIGN, CRYPT)),
    *(Kind(spec, usage=SIGN, imported=True) for spec in (KeySpec.EC_P256, KeySpec.EC_P256K, KeySpec.EC_P384, KeySpec.EC_P521)),
]

# The table once more, written out by hand: a change of it must be made in both places, on purpose.
EVERY = {
    **dict.fromkeys((A.TOKEN, A.PRIVATE, A.SENSITIVE, A.DESTROYABLE), True),
    **dict.fromkeys((A.EXTRACTABLE, A.WRAP_WITH_TRUSTED, A.MODIFIABLE, A.COPYABLE), False),
}
SECRET = {**EVERY, A.CLASS: 4, **dict.fromkeys((A.ENCRYPT, A.DECRYPT, A.SIGN, A.VERIFY, A.WRAP, A.UNWRAP, A.DERIVE), False)}
PRIVATE = {**EVERY, A.CLASS: 3, **dict.fromkeys((A.DECRYPT, A.SIGN, A.SIGN_RECOVER, A.UNWRAP, A.DERIVE, A.ALWAYS_AUTHENTICATE), False)}
BY_HAND: dict[Role, dict[Attribute, object]] = {
    Role.DERIVE: {**SECRET, A.KEY_TYPE: 0x1F, A.DERIVE: True, A.ALLOWED_MECHANISMS: (0x1104,)},
    Role.CRYPT: {**SECRET, A.KEY_TYPE: 0x1F, A.ENCRYPT: True, A.DECRYPT: True, A.ALLOWED_MECHANISMS: (0x1087,)},
    Role.RSA_SIGN: {**PRIVATE, A.KEY_TYPE: 0, A.SIGN: True, A.ALLOWED_MECHANISMS: (1, 0xD)},
    Role.RSA_DECRYPT: {**PRIVATE, A.KEY_TYPE: 0, A.DECRYPT: True, A.ALLOWED_MECHANISMS: (9,)},
    Role.RSA_DECRYPT_RAW: {**PRIVATE, A.KEY_TYPE: 0, A.DECRYPT: True, A.ALLOWED_MECHANISMS: (3,)},
    Role.EC_SIGN: {**PRIVATE, A.KEY_TYPE: 3, A.SIGN: True, A.ALLOWED_MECHANISMS: (0x1041,)},
    Role.UNWRAP: {**PRIVATE, A.KEY_TYPE: 0, A.UNWRAP: True, A.ALLOWED_MECHANISMS: (1, 9)},
}
HMAC = {KeySpec.HMAC_256: 0x251, KeySpec.HMAC_384: 0x261, KeySpec.HMAC_512: 0x271}
GENERATED_BY = {ObjectClass.SECRET_KEY: {0x1F: 0x1080, 0x10: 0x350}, ObjectClass.PRIVATE_KEY: {0: 0, 3: 0x1040}}
CURVE = {KeySpec.EC_P256: "06082a8648ce3d030107", KeySpec.EC_P256K: "06052b8104000a"}
CURVE |= {KeySpec.EC_P384: "06052b81040022", KeySpec.EC_P521: "06052b81040023"}
# What NSS softoken 3.87 does not know of it.
NSS_REFUSED = {A.ALLOWED_MECHANISMS, A.COPYABLE, A.DESTROYABLE}
NSS_UNTOLD = {*NSS_REFUSED, A.LOCAL, A.KEY_GEN_MECHANISM, A.TRUSTED}


def by_hand(ref: MaterialRef, role: Role) -> dict[Attribute, object]:
    if role is Role.MAC:
        template = {**SECRET, A.KEY_TYPE: 0x10, A.SIGN: True, A.ALLOWED_MECHANISMS: (HMAC[ref.spec],)}
    else:
        template = dict(BY_HAND[role])
    if template[A.CLASS] == 4 and not ref.imported:
        template[A.VALUE_LEN] = int(ref.spec.value.split("_")[-1]) // 8
    return {**template, A.ID: ref.material_id, A.LABEL: f"kmscore/test/{ref.material_id.hex()}"}


def all_by_hand(ref: MaterialRef, role: Role) -> dict[Attribute, object]:
    template = by_hand(ref, role)
    told: dict[Attribute, object] = dict.fromkeys((A.LOCAL, A.ALWAYS_SENSITIVE, A.NEVER_EXTRACTABLE), not ref.imported)
    object_class = ObjectClass(template[A.CLASS])
    told[A.KEY_GEN_MECHANISM] = 2**64 - 1 if ref.imported else GENERATED_BY[object_class][template[A.KEY_TYPE]]  # type: ignore[index]
    if object_class is ObjectClass.SECRET_KEY:
        told[A.TRUSTED] = False
    if ref.spec in CURVE:
        told[A.EC_PARAMS] = bytes.fromhex(CURVE[ref.spec])
    return {**template, **told}


@pytest.fixture(scope="module", params=["softhsm", "nss"])
def token(request: pytest.FixtureRequest) -> Iterator[HsmKeeper]:
    with fast_directory() as path:
        keeper = open_keeper(path / "home", **(new_nss(path / "nss") if request.param == "nss" else {}))
        yield keeper
        keeper.close()


@pytest.fixture(scope="module")
def keeper() -> Iterator[HsmKeeper]:
    with fast_directory() as path:
        keeper = open_keeper(path)
        yield keeper
        keeper.close()


@pytest.fixture(scope="module")
def pair(token: HsmKeeper) -> tuple[MaterialRef, bytes]:
    ref = new_ref(Suite.NONE, KeySpec.RSA_2048, UNWRAP)
    return ref, bytes.fromhex(str(token.generate(ref)["public_key"]))


def make(token: HsmKeeper, kind: Kind, pair: tuple[MaterialRef, bytes]) -> tuple[MaterialRef, dict[str, str | int | bool]]:
    """The live object; skips the test where the token says that it cannot have it."""
    ref = kind.ref()
    try:
        token.suite_for(kind.spec, kind.usage)
        if kind.imported:
            assert token.wrapping_usage(TWO_STEP, kind.spec) is UNWRAP
    except KmsError as error:
        pytest.skip(error.message)
    if not kind.imported:
        return ref, dict(token.generate(ref))
    material = peers.pkcs8(peers.new_private_key(kind.spec.value)) if SPECS[kind.spec].is_asymmetric else os.urandom(32)
    wrapped = peers.wrap(pair[1], TWO_STEP, material)
    return ref, dict(token.unwrap(ref, pair[0], TWO_STEP, wrapped, lambda check_value: None))


def is_nss(token: HsmKeeper) -> bool:
    return "NSS" in token.token_facts["model"]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_live_object_equals_the_table(token: HsmKeeper, kind: Kind, pair: tuple[MaterialRef, bytes]) -> None:
    ref, facts = make(token, kind, pair)
    role = Role(str(facts["role"]))
    expected = all_by_hand(ref, role)
    found = token.attributes(ref)
    untold = NSS_UNTOLD if is_nss(token) else set()
    assert {name: found.get(name) for name in expected if name not in untold} == {
        name: value for name, value in expected.items() if name not in untold
    }
    assert facts["usage"] == ",".join(name.name for name, value in expected.items() if value is True and name in ROLES[role].allowed)
    assert facts["token_serial"] == token.token_serial
    assert facts["label"] == f"kmscore/test/{ref.material_id.hex()}"
    assert not {name.name.lower() for name in untold} & facts.keys()
    # Nothing else of a pair is resident.
    assert len([1 for _, object_id, _, _ in token._objects._enumerate() if object_id == ref.material_id]) == 1


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_table_is_what_was_decided(kind: Kind) -> None:
    ref = kind.ref()
    roles = {Role.RSA_DECRYPT, Role.RSA_DECRYPT_RAW} if templates.role_of(ref) is Role.RSA_DECRYPT else {templates.role_of(ref)}
    for role in roles:
        assert template_for(ref, role, "test") == by_hand(ref, role)
        assert expected_of(ref, role, "test") == all_by_hand(ref, role)
        assert list(template_for(ref, role, "test"))[-1] is A.MODIFIABLE  # SoftHSM takes nothing behind it


def test_what_a_token_does_not_know_of_the_table(token: HsmKeeper, pair: tuple[MaterialRef, bytes]) -> None:
    make(token, KINDS[0], pair)
    for role in (Role.DERIVE, Role.UNWRAP):
        dialect = token._maker.dialect(role)
        if is_nss(token):
            assert dialect.refused == NSS_REFUSED
            assert dialect.untold == NSS_UNTOLD - (set() if role is Role.DERIVE else {A.TRUSTED})
        else:
            assert dialect == Dialect()
        assert not dialect.untold & templates.ESSENTIAL


def test_a_token_that_stays_silent_about_what_it_knows_is_not_believed(keeper: HsmKeeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once is a fault of this object; only what no trial object tells either is left out."""
    attributes, asked = keeper._objects.attributes, 0

    def silent(thing, wanted):  # type: ignore[no-untyped-def]
        nonlocal asked
        asked += 1
        found = attributes(thing, wanted)
        return {name: value for name, value in found.items() if name is not A.COPYABLE or asked > 1}

    monkeypatch.setattr(keeper._objects, "attributes", silent)
    ref = new_ref()
    with pytest.raises(KmsError, match="COPYABLE"):
        keeper.generate(ref)
    assert asked == 2
    monkeypatch.undo()
    keeper.destroy(ref.material_id)
    assert ref.material_id not in keeper.inventory().materials


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
    monkeypatch.setattr(hsm, "key_on", lambda token, handle, role, spec: Careless(fake, bytes(16), bytes(32), Suite.XAES_256_GCM))
    ref = new_ref()
    with pytest.raises(KmsError, match="self-test"):
        keeper.generate(ref)
    monkeypatch.undo()
    keeper.destroy(ref.material_id)


def test_every_boolean_is_said() -> None:
    for kind in KINDS:
        ref = kind.ref()
        template = template_for(ref, templates.role_of(ref), "test")
        wanted = SECRET if template[A.CLASS] == 4 else PRIVATE
        assert {name for name, value in template.items() if isinstance(value, bool)} == {
            n for n, v in wanted.items() if isinstance(v, bool)
        }
        assert template[A.ALLOWED_MECHANISMS]


def test_roles_never_mix() -> None:
    groups = [{A.ENCRYPT, A.DECRYPT}, {A.SIGN, A.VERIFY}, {A.WRAP, A.UNWRAP}, {A.DERIVE}]
    assert set(ROLES) == set(Role)
    for facts in ROLES.values():
        assert sum(bool(facts.allowed & group) for group in groups) == 1
    assert Mechanism.RSA_X_509 not in {m for role, facts in ROLES.items() if role is not Role.RSA_DECRYPT_RAW for m in facts.mechanisms}
    assert ROLES[Role.RSA_DECRYPT_RAW].mechanisms == (Mechanism.RSA_X_509,)


@pytest.mark.parametrize(
    "change",
    [
        {A.SENSITIVE: False},
        {A.EXTRACTABLE: True},
        {A.ENCRYPT: True},
        {A.WRAP: True},
        {A.COPYABLE: True},
        {A.ALLOWED_MECHANISMS: (int(Mechanism.AES_ECB_ENCRYPT_DATA), int(Mechanism.AES_GCM))},
        {A.LABEL: "kmscore/other/x"},
        {A.VALUE_LEN: 16},
        {A.MODIFIABLE: True},
    ],
    ids=lambda change: next(iter(change)).name,
)
def test_an_object_that_is_not_as_asked_for_is_refused(
    keeper: HsmKeeper, monkeypatch: pytest.MonkeyPatch, change: dict[Attribute, templates.Value]
) -> None:
    ref = new_ref()
    expected = expected_of
    monkeypatch.setattr(templates, "template_for", lambda *of: {**template_for(*of), **change})
    monkeypatch.setattr(templates, "expected_of", lambda *of: {**expected(*of), **template_for(*of)})
    with pytest.raises(KmsError, match=next(iter(change)).name) as caught:
        keeper.generate(ref)
    assert caught.value.code == "InternalFailure"
    keeper.destroy(ref.material_id)


def test_the_token_enforces_the_role(keeper: HsmKeeper) -> None:
    master, crypt = new_ref(), new_ref(Suite.AES_GCM)
    keeper.generate(master)
    keeper.generate(crypt)
    with keeper._objects.session() as session:
        for ref, mechanism in ((master, Mechanism.AES_GCM), (crypt, Mechanism.AES_ECB)):
            thing = keeper._objects.only(session, ref.material_id)
            assert hasattr(thing, "encrypt") is (ref is crypt)
            for attribute, value in ((A.EXTRACTABLE, True), (A.LABEL, "x"), (A.WRAP, True)):
                with pytest.raises(PKCS11Error):
                    thing[attribute] = value
            with pytest.raises(PKCS11Error):
                thing.copy({A.TOKEN: False})
            with pytest.raises(PKCS11Error):
                thing[A.VALUE]
            if ref is crypt:
                with pytest.raises(PKCS11Error):
                    thing.encrypt(bytes(16), mechanism=mechanism)  # type: ignore[attr-defined]
            else:
                with pytest.raises(PKCS11Error):
                    thing.derive_key(KeyType.AES, 256, mechanism=Mechanism.AES_CBC_ENCRYPT_DATA, mechanism_param=bytes(48))  # type: ignore[attr-defined]


def test_two_objects_with_one_id_are_used_by_nobody(keeper: HsmKeeper) -> None:
    ref = new_ref()
    keeper.generate(ref)
    with keeper._objects.session() as session:
        session.generate_key(KeyType.AES, 256, mechanism=Mechanism.AES_KEY_GEN, template=template_for(ref, Role.DERIVE, "test"))
    keeper._objects._handles = None  # as another process would begin
    with pytest.raises(KmsError) as caught:
        keeper.load(ref)
    assert caught.value.code == "Rejected.Unavailable"
    keeper.destroy(ref.material_id)
    assert ref.material_id not in keeper.inventory().materials


def test_differences_are_told_by_name() -> None:
    expected = expected_of(new_ref(), Role.DERIVE, "test")
    assert differences(expected, expected, Dialect()) == []
    assert differences({}, expected, Dialect(untold=frozenset(expected) - {A.LOCAL})) == ["LOCAL"]


def test_inventory_tells_ours_from_others(keeper: HsmKeeper) -> None:
    before = keeper.inventory()
    with keeper._objects.session() as session:
        for material_id, label in ((b"", "somebody's"), (b"12", ""), (bytes(16), "kmscore/other/x"), (b"", "kmscore/test/y")):
            template = {**template_for(new_ref(), Role.DERIVE, "test"), A.ID: material_id, A.LABEL: label}
            session.generate_key(KeyType.AES, 256, mechanism=Mechanism.AES_KEY_GEN, template=template)
        template = {**template_for(new_ref(), Role.DERIVE, "test"), A.ID: b"", A.LABEL: "", A.PRIVATE: False}
        session.generate_key(KeyType.AES, 256, mechanism=Mechanism.AES_KEY_GEN, template=template)
    after = keeper.inventory()
    assert after.materials == before.materials
    assert len(after.foreign) == len(before.foreign) + 5
    assert keeper.sweep() == 0  # none of them is a fragment, the nameless one neither
    assert keeper.inventory() == after


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[1], KINDS[4], KINDS[5], KINDS[10], KINDS[14]], ids=str)
def test_a_stale_handle_is_looked_up_again(keeper: HsmKeeper, kind: Kind) -> None:
    ref = kind.ref()
    public = bytes.fromhex(str(keeper.generate(ref).get("public_key", "")))
    ref = MaterialRef(ref.material_id, ref.spec, ref.suite, ref.usage, public_key=public)
    keeper._objects.index()[ref.material_id] += 1_000_000
    assert keeper.load(ref)
    keeper.destroy(ref.material_id)
    keeper._objects.index()[ref.material_id] = 1_000_000
    with pytest.raises(KmsError) as caught:
        keeper.load(ref)
    assert caught.value.code == "Rejected.Unavailable"
