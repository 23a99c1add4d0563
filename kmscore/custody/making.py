"""Making one object in a token: C_GenerateKey or C_GenerateKeyPair with an exact template, and what a token does not know of the table."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from typing import TypeVar, cast

from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.types import Object, Session

from kmscore.custody import templates
from kmscore.custody.objects import TokenObjects
from kmscore.custody.port import MaterialRef
from kmscore.custody.public import ec_spki, rsa_spki
from kmscore.custody.templates import ESSENTIAL, ROLES, Dialect, Role, Template
from kmscore.custody.tokenerrors import calling, is_trouble
from kmscore.domain.specs import SPECS, KeySpec, KeyUsage, Suite
from kmscore.errors import KmsError, TokenError

T = TypeVar("T")


def make(session: Session, role: Role, spec: KeySpec, template: Mapping[Attribute, object]) -> tuple[Object, bytes]:
    """One new object, and the SubjectPublicKeyInfo of a pair. Of a pair only the private half is made to stay."""
    facts = ROLES[role]
    if facts.public is None:
        with calling("C_GenerateKey"):
            made = session.generate_key(
                facts.key_type, 8 * SPECS[spec].bytes, mechanism=facts.generated_by, template=cast(dict[Attribute, object], template)
            )
        return made, b""
    with calling("C_GenerateKeyPair"):
        public, private = session.generate_keypair(
            facts.key_type,
            SPECS[spec].bits,
            mechanism=facts.generated_by,
            public_template=templates.public_template(role, spec),
            private_template=template,
        )
    told = public_of(public, spec)
    with calling("C_DestroyObject"):
        public.destroy()
    return private, told


def public_of(thing: Object, spec: KeySpec) -> bytes:
    """SubjectPublicKeyInfo of a public key object, or of a private RSA key. Raises ValueError for what is none."""
    with calling("C_GetAttributeValue"):
        if spec in templates.EC_PARAMS:
            return ec_spki(spec, thing[Attribute.EC_POINT])
        return rsa_spki(thing[Attribute.MODULUS], thing[Attribute.PUBLIC_EXPONENT])


def is_slow(role: Role) -> bool:
    """An RSA pair takes up to some seconds, in which nobody else shall wait."""
    return ROLES[role].key_type is KeyType.RSA and ROLES[role].public is not None


def upset_by_others(error: KmsError) -> bool:
    """Whether a generation that was not alone may have failed of that.

    Beside a C_FindObjects of another thread SoftHSM 2.6.1 may answer CKR_GENERAL_ERROR or CKR_TEMPLATE_INCONSISTENT, or CKR_OK for an
    object that is nowhere (measured beside a look-up each millisecond: 19 of 845 failed; each 100 ms: none of 100).
    """
    return error.rv in (0x05, 0xD1) if isinstance(error, TokenError) else error.code == "Rejected.Unavailable"


class Maker:
    """Makes resident objects by the table, as far as the token knows it; see templates.Dialect. Thread-safe."""

    def __init__(self, objects: TokenObjects, mechanisms: Collection[int], instance_id: str) -> None:
        self._objects = objects
        self._instance_id = instance_id
        self._dialects: dict[ObjectClass, Dialect] = {}
        self._learning = threading.Lock()
        # What is quick to make, to try attributes on.
        aes = MaterialRef(bytes(16), KeySpec.AES_256, Suite.XAES_256_GCM)
        ec = MaterialRef(bytes(16), KeySpec.EC_P256, Suite.NONE, KeyUsage.SIGN_VERIFY)
        rsa = MaterialRef(bytes(16), KeySpec.RSA_2048, Suite.NONE, KeyUsage.SIGN_VERIFY)
        self._trials = {
            ObjectClass.SECRET_KEY: (aes, Role.DERIVE),
            ObjectClass.PRIVATE_KEY: (ec, Role.EC_SIGN) if Mechanism.EC_KEY_PAIR_GEN in mechanisms else (rsa, Role.RSA_SIGN),
        }

    def dialect(self, role: Role) -> Dialect:
        return self._dialects.get(ROLES[role].object_class, Dialect())

    def generate(self, session: Session, ref: MaterialRef, role: Role, *, alone: bool) -> bytes:
        """C_GenerateKey or C_GenerateKeyPair; answers the public key of a pair. `alone`: nobody else of this process looks for objects or
        makes some meanwhile."""
        return self.put(ref, role, lambda template: make(session, role, ref.spec, template)[1], lock=alone)

    def put(self, ref: MaterialRef, role: Role, make_one: Callable[[Template], T], *, lock: bool = True) -> T:
        """Have `make_one` make the resident object of `ref` from the exact template that it is given."""
        try:
            return self._put(ref, role, make_one, lock=lock)
        except TokenError as error:
            if is_trouble(error) or not self._learn(ref, role):
                raise
        return self._put(ref, role, make_one, lock=lock)

    def _put(self, ref: MaterialRef, role: Role, make_one: Callable[[Template], T], *, lock: bool) -> T:
        refused = self.dialect(role).refused
        template = {name: value for name, value in templates.template_for(ref, role, self._instance_id).items() if name not in refused}
        with self._objects.lock if lock else nullcontext(), self._objects.written_whole():
            return make_one(template)

    def verified(self, session: Session, ref: MaterialRef, role: Role) -> tuple[Object, dict[str, str | int | bool]]:
        """A fresh look at the resident object of `ref`, and its attributes as facts. Raises KmsError unless all is as asked for."""
        expected = templates.expected_of(ref, role, self._instance_id)
        thing = self._objects.only(session, ref.material_id)
        found = self._objects.attributes(thing, [*expected, Attribute.CHECK_VALUE])
        wrong = templates.differences(found, expected, self.dialect(role))
        if wrong and not ESSENTIAL & {Attribute[name] for name in wrong} and self._learn(ref, role):
            wrong = templates.differences(found, expected, self.dialect(role))
        if wrong:
            raise KmsError("InternalFailure", f"the token made an object that is not as asked for: {', '.join(wrong)}")
        return thing, templates.facts_of(role, found, self.dialect(role))

    # --- what the token does not know -------------------------------------------------------------------------------------------

    def _learn(self, ref: MaterialRef, role: Role) -> bool:
        """Try the table's attributes one by one, on objects that are made and destroyed at once; answers whether anything new was learned.

        They bear the id of `ref`: whatever a kill leaves goes with the attempt.
        """
        object_class = ROLES[role].object_class
        with self._learning:
            known = self._dialects.get(object_class)
            if known is None and (learned := self._tried(ref.material_id, *self._trials[object_class])) is not None:
                self._dialects[object_class] = learned
                return learned != Dialect()
            return False

    def _tried(self, material_id: bytes, kind: MaterialRef, role: Role) -> Dialect | None:
        """None where nothing can be said: the token makes no such object at all now."""
        ref = MaterialRef(material_id, kind.spec, kind.suite, kind.usage)
        expected = templates.expected_of(ref, role, self._instance_id)
        optional = frozenset(templates.template_for(ref, role, self._instance_id)) - ESSENTIAL
        with self._objects.session() as session:

            def trial(without: frozenset[Attribute]) -> Template | None:
                template = templates.template_for(ref, role, self._instance_id)
                wanted = {name: value for name, value in template.items() if name not in without}
                with self._objects.lock:
                    try:
                        thing, _ = make(session, role, ref.spec, wanted)
                    except TokenError as error:
                        if is_trouble(error):
                            raise
                        return None
                    try:
                        return self._objects.attributes(thing, expected)
                    finally:
                        with calling("C_DestroyObject"):
                            thing.destroy()

            refused: frozenset[Attribute] = frozenset()
            found = trial(refused)
            if found is None:
                if trial(optional) is None:
                    return None
                refused = frozenset(name for name in optional if trial(optional - {name}) is None)
                found = trial(refused)
                if found is None:
                    return None
        # What was asked for must be told as asked; what the token says of itself may also be untrue.
        silent = {name for name in optional if name not in found}
        untrue = {name for name in expected.keys() - optional - ESSENTIAL if found.get(name) != expected[name]}
        return Dialect(refused, refused | silent | untrue)
