"""What is known to break PKCS#11 tokens, tried on our live objects with the session that kmscore itself has: nothing comes out.

Clulow, On the Security of PKCS #11 (CHES 2003): wrap, then decrypt. Bortolozzo, Centenaro, Focardi, Steel, Attacking and Fixing PKCS#11 Security
Tokens (CCS 2010), attacks A1 to A5, in the shape of google/pkcs11test, tookan.cc. Whoever holds the PIN can try all of this. What no token of today keeps
from him is stated as a test, too: what he derives from a master of suite 1, and what he unwraps himself while an offer is open.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import peers
import pytest
from custody_helpers import fast_directory, new_nss, new_ref, open_keeper, operators_softhsm
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.exceptions import PKCS11Error
from pkcs11.types import Session

from kmscore.custody.hsm import HsmKeeper
from kmscore.custody.port import MaterialRef
from kmscore.custody.templates import Role
from kmscore.domain.algorithms import WrappingAlgorithm
from kmscore.domain.specs import KeySpec, KeyUsage, Suite

A = Attribute
SIGN, CRYPT, MAC, UNWRAP = KeyUsage.SIGN_VERIFY, KeyUsage.ENCRYPT_DECRYPT, KeyUsage.GENERATE_VERIFY_MAC, KeyUsage.UNWRAP
MADE = {
    Role.DERIVE: (Suite.XAES_256_GCM, KeySpec.AES_256, CRYPT),
    Role.CRYPT: (Suite.AES_GCM, KeySpec.AES_256, CRYPT),
    Role.RSA_SIGN: (Suite.NONE, KeySpec.RSA_2048, SIGN),
    Role.RSA_DECRYPT: (Suite.NONE, KeySpec.RSA_2048, CRYPT),
    Role.EC_SIGN: (Suite.NONE, KeySpec.EC_P256, SIGN),
    Role.MAC: (Suite.NONE, KeySpec.HMAC_256, MAC),
    Role.UNWRAP: (Suite.NONE, KeySpec.RSA_2048, UNWRAP),
}
ROLES = tuple(MADE)
IMPORTED = WrappingAlgorithm.RSAES_OAEP_SHA_1


@dataclass
class Bench:
    keeper: HsmKeeper
    session: Session
    refs: dict[Role, MaterialRef]
    publics: dict[Role, bytes]

    @property
    def nss(self) -> bool:
        return "NSS" in self.keeper.token_facts["model"]

    def thing(self, role: Role) -> Any:
        return self.keeper._objects.only(self.session, self.refs[role].material_id)

    def wrapping_key(self, **more: bool) -> Any:
        """The attacker's own, as strong as the token makes it; CKA_WRAP and CKA_DECRYPT together."""
        flags = {A.WRAP: True, A.UNWRAP: True, A.ENCRYPT: True, A.DECRYPT: True, A.EXTRACTABLE: True, A.SENSITIVE: False}
        template = {A.CLASS: 4, A.KEY_TYPE: 0x1F, A.TOKEN: False, A.PRIVATE: True, A.VALUE_LEN: 32, **flags}
        return self.session.generate_key(KeyType.AES, 256, template=template)


@pytest.fixture(scope="module", params=["own softhsm", "operator's softhsm", "nss"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """The own token lists few mechanisms, but whoever has its files and its PIN may list all: the operator's has them."""
    with fast_directory() as path, ExitStack() as stack:
        settings: dict[str, str] = {}
        if request.param == "nss":
            settings = new_nss(path / "nss")
        elif request.param != "own softhsm":
            settings = stack.enter_context(operators_softhsm(path))
        keeper = open_keeper(path / "home", **settings)
        stack.callback(keeper.close)
        refs = {role: new_ref(*of) for role, of in MADE.items()}
        facts = {role: keeper.generate(ref) for role, ref in refs.items()}
        publics = {role: bytes.fromhex(str(told.get("public_key", ""))) for role, told in facts.items()}
        with keeper._objects.session() as session:
            yield Bench(keeper, session, refs, publics)


def refused(call: Callable[[], object]) -> None:
    """By python-pkcs11, which knows the flags, or by the token."""
    with pytest.raises((PKCS11Error, AttributeError, NotImplementedError)):
        call()


WRAPS = (Mechanism.AES_KEY_WRAP, Mechanism.AES_KEY_WRAP_PAD, Mechanism.AES_KEY_WRAP_KWP, Mechanism.AES_CBC_PAD, Mechanism.AES_ECB)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("mechanism", WRAPS, ids=lambda mechanism: mechanism.name)
def test_clulow_wrap_then_decrypt(bench: Bench, role: Role, mechanism: Mechanism) -> None:
    """No key of the attacker's wraps a key of ours, so there is nothing to decrypt."""
    if bench.nss:
        pytest.skip("NSS does not heed CKA_EXTRACTABLE here: see test_nss_lets_out_what_it_holds")
    target = bench.thing(role)
    parameter = bytes(16) if mechanism is Mechanism.AES_CBC_PAD else None
    refused(lambda: bench.wrapping_key().wrap_key(target, mechanism=mechanism, mechanism_param=parameter))


@pytest.mark.parametrize("role", ROLES)
def test_no_key_of_ours_wraps(bench: Bench, role: Role) -> None:
    """Nor does ours wrap another of ours, or itself: it cannot be told from the attributes alone, so the token is asked in earnest."""
    raw = _Raw(bench.session)
    for target in ROLES:
        for mechanism in (*WRAPS, Mechanism.RSA_PKCS, Mechanism.RSA_PKCS_OAEP, Mechanism.RSA_X_509):
            refused(lambda target=target, mechanism=mechanism: raw.wrap(bench.thing(role), bench.thing(target), mechanism))


class _Raw:
    """The calls that python-pkcs11 offers only on objects with the flag."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def _as(self, mixin: str, thing: Any) -> Any:
        from pkcs11 import _pkcs11

        kind = type("Forced", (getattr(_pkcs11, mixin), _pkcs11.Object), {"key_type": thing.key_type})
        return kind(thing.wrapper)

    def wrap(self, key: Any, target: Any, mechanism: Mechanism) -> object:
        return self._as("WrapMixin", key).wrap_key(target, mechanism=mechanism)

    def decrypt(self, key: Any, data: bytes, mechanism: Mechanism) -> object:
        parameter = bytes(16) if mechanism is Mechanism.AES_CBC_PAD else None
        return self._as("DecryptMixin", key).decrypt(data, mechanism=mechanism, mechanism_param=parameter)

    def unwrap(self, key: Any, data: bytes, mechanism: Mechanism) -> object:
        template = {A.CLASS: 4, A.KEY_TYPE: 0x1F, A.TOKEN: False, A.SENSITIVE: False, A.EXTRACTABLE: True}
        return self._as("UnwrapMixin", key).unwrap_key(ObjectClass.SECRET_KEY, KeyType.AES, data, mechanism=mechanism, template=template)

    def sign(self, key: Any, data: bytes, mechanism: Mechanism) -> object:
        return self._as("SignMixin", key).sign(data, mechanism=mechanism)

    def derive(self, key: Any, mechanism: Mechanism, parameter: object) -> object:
        template = {A.CLASS: 4, A.KEY_TYPE: 0x10, A.TOKEN: False, A.SENSITIVE: False, A.EXTRACTABLE: True, A.VALUE_LEN: 16}
        return self._as("DeriveMixin", key).derive_key(
            KeyType.GENERIC_SECRET, 128, mechanism=mechanism, mechanism_param=parameter, template=template
        )


@pytest.mark.parametrize("role", ROLES)
def test_a1_what_is_sensitive_and_unextractable_stays_so(bench: Bench, role: Role) -> None:
    """A1, A2: neither the attributes nor the material of a key can be had by asking, by setting, or by a copy."""
    thing = bench.thing(role)
    for secret in (A.VALUE, A.PRIVATE_EXPONENT, A.PRIME_1, A.PRIME_2, A.EXPONENT_1, A.EXPONENT_2, A.COEFFICIENT):
        refused(lambda secret=secret: thing[secret])
    for name, value in ((A.SENSITIVE, False), (A.EXTRACTABLE, True), (A.PRIVATE, False), (A.MODIFIABLE, True)):
        refused(lambda name=name, value=value: _set(thing, name, value))
    for flag in (A.WRAP, A.UNWRAP, A.DECRYPT, A.ENCRYPT, A.SIGN, A.DERIVE, A.VERIFY):
        before = _told(bench, role, flag)
        refused(lambda flag=flag, before=before: _set(thing, flag, not before))
        assert _told(bench, role, flag) == before
    for change in ({A.EXTRACTABLE: True}, {A.SENSITIVE: False}):
        refused(lambda change=change: _readable(thing.copy({A.TOKEN: False, **change})))


def _set(thing: Any, name: Attribute, value: bool) -> None:
    thing[name] = value
    if thing[name] is not value:
        raise PKCS11Error("it said yes and did not")


def _told(bench: Bench, role: Role, flag: Attribute) -> bool:
    return bool(bench.thing(role).get_attributes([flag, A.CLASS]).get(flag))


def _readable(copy: Any) -> None:
    """A copy that is as was asked for may still keep its material to itself."""
    try:
        copy[A.VALUE]
    finally:
        copy.destroy()


@pytest.mark.parametrize("role", ROLES)
def test_a3_no_key_serves_two_ends(bench: Bench, role: Role) -> None:
    """A3: a key that decrypts what another wrapped, or unwraps what it encrypted, would let material out."""
    raw, thing, block = _Raw(bench.session), bench.thing(role), bytes(256)
    if role not in (Role.CRYPT, Role.RSA_DECRYPT):
        for mechanism in (Mechanism.AES_ECB, Mechanism.AES_CBC_PAD, Mechanism.RSA_PKCS, Mechanism.RSA_X_509, Mechanism.RSA_PKCS_OAEP):
            refused(lambda mechanism=mechanism: raw.decrypt(thing, block, mechanism))
    if role is not Role.UNWRAP:
        for mechanism in (*WRAPS, Mechanism.RSA_PKCS, Mechanism.RSA_PKCS_OAEP, Mechanism.RSA_X_509):
            refused(lambda mechanism=mechanism: raw.unwrap(thing, block, mechanism))
    if role not in (Role.RSA_SIGN, Role.EC_SIGN, Role.MAC):
        for mechanism in (Mechanism.RSA_PKCS, Mechanism.RSA_X_509, Mechanism.ECDSA, Mechanism.SHA256_HMAC, Mechanism.AES_CMAC):
            refused(lambda mechanism=mechanism: raw.sign(thing, bytes(32), mechanism))
    if role is not Role.DERIVE and not bench.nss:  # NSS does not heed CKA_DERIVE
        refused(lambda: raw.derive(thing, Mechanism.AES_ECB_ENCRYPT_DATA, bytes(16)))


@pytest.mark.parametrize("role", [Role.UNWRAP])
def test_a4_an_import_pair_does_not_decrypt_what_was_wrapped_for_it(bench: Bench, role: Role) -> None:
    """A4: material on its way in cannot be read by whoever has the wrapped bytes and the session, through the pair itself."""
    raw, thing = _Raw(bench.session), bench.thing(role)
    wrapped = peers.wrap(bench.publics[role], IMPORTED, os.urandom(32))
    for mechanism in (Mechanism.RSA_PKCS_OAEP, Mechanism.RSA_X_509, Mechanism.RSA_PKCS):
        refused(lambda mechanism=mechanism: raw.decrypt(thing, wrapped, mechanism))


def test_a5_imported_material_is_as_shut_as_what_was_generated(bench: Bench) -> None:
    """A5: what a caller knows once cannot be changed into a key that lets others out."""
    pair, ref = bench.refs[Role.UNWRAP], new_ref(imported=True)
    material = os.urandom(32)
    bench.keeper.unwrap(ref, pair, IMPORTED, peers.wrap(bench.publics[Role.UNWRAP], IMPORTED, material), lambda check_value: None)
    raw, known = _Raw(bench.session), bench.keeper._objects.only(bench.session, ref.material_id)
    refused(lambda: known[A.VALUE])
    refused(lambda: _set(known, A.WRAP, True))
    for role in ROLES:
        for mechanism in WRAPS:
            refused(lambda role=role, mechanism=mechanism: raw.wrap(known, bench.thing(role), mechanism))
    for mechanism in (Mechanism.AES_ECB, Mechanism.AES_CBC_PAD):
        refused(lambda mechanism=mechanism: raw.decrypt(known, bytes(32), mechanism))


def test_the_public_half_is_not_there_to_be_swapped(bench: Bench) -> None:
    """Only the private half is resident; what callers verify with and encrypt under is in the event."""
    for role in (Role.RSA_SIGN, Role.RSA_DECRYPT, Role.UNWRAP, Role.EC_SIGN):
        (found,) = bench.session.get_objects({A.ID: bench.refs[role].material_id})
        assert found[A.CLASS] == int(ObjectClass.PRIVATE_KEY)


# --- limits ------------------------------------------------------------------------------------------------------------------------------


def test_who_has_the_pin_unwraps_what_is_on_its_way_in(bench: Bench) -> None:
    """The template of C_UnwrapKey is the caller's: with the session, the pair and the wrapped bytes, the material can be had readable. So a
    pair lives no longer than its offer, and no session leaves the process."""
    material = os.urandom(32)
    wrapped = peers.wrap(bench.publics[Role.UNWRAP], IMPORTED, material)
    readable: Any = _Raw(bench.session).unwrap(bench.thing(Role.UNWRAP), wrapped, Mechanism.RSA_PKCS_OAEP)
    assert readable[A.VALUE] == material
    readable.destroy()


def test_who_has_the_pin_derives_from_a_master(bench: Bench) -> None:
    """The template of C_DeriveKey is the caller's, too: subkeys can be had readable, the master cannot (HSM section 4)."""
    derived: Any = _Raw(bench.session).derive(bench.thing(Role.DERIVE), Mechanism.AES_ECB_ENCRYPT_DATA, bytes(16))
    assert len(derived[A.VALUE]) == 16
    derived.destroy()


def test_nss_lets_out_what_it_holds(bench: Bench) -> None:
    """NSS softoken 3.87 wraps a key that is not extractable, so that who has the PIN has the material: no token for keys that must stay."""
    if not bench.nss:
        pytest.skip("SoftHSM does not: see test_clulow_wrap_then_decrypt")
    material, ref = os.urandom(32), new_ref(imported=True)
    pair = bench.refs[Role.UNWRAP]
    bench.keeper.unwrap(ref, pair, IMPORTED, peers.wrap(bench.publics[Role.UNWRAP], IMPORTED, material), lambda check_value: None)
    ours, theirs = bench.keeper._objects.only(bench.session, ref.material_id), bench.wrapping_key()
    assert ours[A.EXTRACTABLE] is False
    assert theirs.decrypt(theirs.wrap_key(ours, mechanism=Mechanism.AES_ECB), mechanism=Mechanism.AES_ECB) == material


def test_the_keeper_knows_which_rules_its_token_breaks(bench: Bench) -> None:
    """What the doctor warns of; SoftHSM keeps both rules, also with every mechanism offered."""
    named = {flag for flag in ("CKA_EXTRACTABLE", "CKA_DERIVE") for rule in bench.keeper.broken_rules() if flag in rule}
    assert named == ({"CKA_EXTRACTABLE", "CKA_DERIVE"} if bench.nss else set())
