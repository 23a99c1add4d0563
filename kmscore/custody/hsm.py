"""The keeper of level HSM: material that is made in a PKCS#11 token, or unwrapped in it, and never leaves it. Knows no event, no store and
no key state.

The control plane (generation, look-up, attributes, unwrapping, destruction) goes through python-pkcs11, enumeration, login and all other
cryptography through the core; both share the one initialisation in module.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from pkcs11 import Attribute
from pkcs11.types import UnwrapMixin

from kmscore.custody import module, templates
from kmscore.custody.ability import Ability
from kmscore.custody.hsm_keys import key_on, role_by_trial
from kmscore.custody.making import Maker, is_slow, upset_by_others
from kmscore.custody.objects import OpenToken, TokenObjects
from kmscore.custody.port import Accept, AeadKey, Buffer, Facts, Inventory, Loaded, MacKey, MaterialRef, PrivateKey
from kmscore.custody.selftest import self_test
from kmscore.custody.templates import ROLES, Role
from kmscore.custody.tokenerrors import HANDLE_INVALID
from kmscore.custody.unwrap import Unwrapper, Wrapped
from kmscore.custody.wrapping import fitting, refused, serves
from kmscore.domain.algorithms import HASH_BYTES, WrappingAlgorithm, signing_facts
from kmscore.domain.specs import SPECS, Family, KeySpec, KeyUsage, ProtectionLevel, Suite
from kmscore.errors import KmsError, TokenError, invalid


class HsmKeeper:
    """Keys of level HSM in one token. Thread-safe; one per open home. Made by token.open_hsm."""

    level = ProtectionLevel.HSM

    def __init__(self, opened: OpenToken, instance_id: str, *, allow_host_unwrap: bool = False) -> None:
        """Takes `opened` over; close() gives it back."""
        library, slot = opened.library, opened.slot
        info = library.core.token_info(slot)
        self.token = opened.token
        """For what the engine does with the token itself: random bytes, gauges (`derivations`, `live_sessions`), `derived_limit`."""
        self.token_serial = str(info["serial"])
        self.token_facts = {name: str(info[name]) for name in ("label", "manufacturer", "model", "serial", "firmware", "hardware")}
        self.module_facts = {"path": library.path, **library.core.info()}
        self.owns_token = opened.own is not None
        mechanisms = library.core.mechanisms(slot)
        self.mechanisms = frozenset(mechanisms)
        self._library = library
        self._slot = slot
        self._instance_id = instance_id
        self._allow_host_unwrap = allow_host_unwrap
        # It may also be a SoftHSM token that an operator made.
        softhsm = "softhsm" in f"{info['manufacturer']} {info['model']}".lower()
        self._objects = TokenObjects(opened, instance_id, hides_survivors=softhsm)
        self._maker = Maker(self._objects, self.mechanisms, instance_id)
        self._unwrapper = Unwrapper(self.token, self.mechanisms, self._objects.lock)
        self._ability = Ability(self._objects, self.token, self._unwrapper, mechanisms)
        self._closed = False

    def about(self) -> tuple[str, str]:
        """(label, model and firmware), asked of the token now. Raises KmsError when it does not answer."""
        with self._library.in_use():
            info = self._library.core.token_info(self._slot)
        return str(info["label"]), f"{info['model']} {info['firmware']}"

    # --- what the token can do -------------------------------------------------------------------------------------------------

    def suite_for(self, spec: KeySpec, usage: KeyUsage) -> Suite:
        """Suite 1 for 256-bit AES keys where the token derives, else suite 2. Raises InvalidParameter (KeySpec) naming what it can hold."""
        suite = self._suite_of(spec, usage)
        if suite is None:
            can = ", ".join(other for other, facts in SPECS.items() if self._suite_of(other, facts.usages[0]) is not None) or "none"
            raise invalid("KeySpec", f"The token {self.token_facts['label']!r} cannot hold {spec} keys for {usage}; it can hold: {can}.")
        return suite

    def _suite_of(self, spec: KeySpec, usage: KeyUsage) -> Suite | None:
        """None: the token cannot hold such keys."""
        if not serves(spec, usage):
            return None
        suite = Suite.NONE
        if SPECS[spec].family is Family.AES:
            suite = Suite.XAES_256_GCM if spec is KeySpec.AES_256 and self._ability.derives else Suite.AES_GCM
        return suite if self._ability.holds(self._role(MaterialRef(bytes(16), spec, suite, usage)), spec) else None

    def wrapping_usage(self, algorithm: WrappingAlgorithm, spec: KeySpec) -> KeyUsage:
        """UNWRAP where the token unwraps it; ENCRYPT_DECRYPT where its operator lets this process do that; see port.Keeper."""
        if self._ability.imports(algorithm, spec):
            return KeyUsage.UNWRAP
        if self._allow_host_unwrap and self._ability.imports_through_host(algorithm, spec):
            return KeyUsage.ENCRYPT_DECRYPT
        can = [fit for fit in fitting(spec) if self._ability.imports(fit, spec)]
        raise refused(algorithm, spec, can, f"The token {self.token_facts['label']!r}")

    def broken_rules(self) -> list[str]:
        """What the token does although the attributes of a key forbid it."""
        return self._ability.broken_rules()

    # --- effects ---------------------------------------------------------------------------------------------------------------

    def generate(self, ref: MaterialRef) -> Facts:
        """C_GenerateKey or C_GenerateKeyPair, a fresh look, a self-test, the durability barrier; see port.Keeper.

        Answers the attributes read back: sensitive, extractable, local, always_sensitive, never_extractable, key_gen_mechanism, usage,
        allowed_mechanisms, value_len, check_value, label, role, ..., as far as the token tells them, token_serial and public_key.
        """
        role = self._role(ref)
        self._objects.check_space()
        try:
            return self._generate(ref, role, alone=not is_slow(role))
        except KmsError as error:
            if not (is_slow(role) and upset_by_others(error)) or self._objects.holds(ref.material_id):
                raise
        # Nothing came of it, so the id is as fresh as before.
        return self._generate(ref, role, alone=True)

    def _generate(self, ref: MaterialRef, role: Role, *, alone: bool) -> Facts:
        with self._objects.mutation(), self._objects.session() as session:
            public = self._maker.generate(session, ref, role, alone=alone)
        facts = self._verified(ref, role, public)
        self._objects.barrier()
        return facts

    def unwrap(self, ref: MaterialRef, pair: MaterialRef, algorithm: WrappingAlgorithm, wrapped: Buffer, accept: Accept) -> Facts:
        """C_UnwrapKey into session objects that prove the material, `accept`, C_UnwrapKey into the one that stays, and on as `generate`."""
        role = self._role(ref)
        host = pair.usage is KeyUsage.ENCRYPT_DECRYPT
        if host and not self._allow_host_unwrap:  # it was allowed when the offer was made
            self.wrapping_usage(algorithm, ref.spec)
        self._objects.check_space()
        with self._objects.session() as session:
            key = self._objects.only(session, pair.material_id)
            come = Wrapped(session, cast(UnwrapMixin, key), SPECS[pair.spec].bytes, algorithm, bytes(wrapped))
            if host:
                come = self._unwrapper.through_host(come, int(key.handle or 0))
            proof = self._unwrapper.prove(come, ref, role)
            accept(proof.check_value)
            with self._objects.mutation():
                self._maker.put(ref, role, lambda template: self._unwrapper.unwrap(come, template))
        facts = self._verified(ref, role, proof.public_key, proof.check_value)
        self._objects.barrier()
        return {**facts, "unwrapped_in": "host" if host else "token"}

    def destroy(self, material_id: bytes) -> None:
        """Destroy every object with this id until a fresh session finds none; see port.Keeper and objects.py."""
        self._objects.destroy(material_id)

    def sweep(self) -> int:
        """Remove the fragments of killed calls from the own token's directory; 0 at once for a token that is not ours."""
        return self._objects.sweep()

    # --- use -------------------------------------------------------------------------------------------------------------------

    def load(self, ref: MaterialRef) -> Loaded:
        """The key, ready for use. A handle that went stale is looked up once more; see port.Keeper."""
        object_class = ROLES[templates.role_of(ref)].object_class
        handle = self._objects.handle(ref.material_id, object_class, fresh=False)
        try:
            return self._used_once(ref, handle)
        except TokenError as error:
            self._objects.forget(ref.material_id)
            if error.rv not in HANDLE_INVALID:
                raise
        return self._used_once(ref, self._objects.handle(ref.material_id, object_class, fresh=True))

    def inventory(self) -> Inventory:
        """Our materials by id and label; as foreign everything else in a token that is ours, in another's only what bears our label."""
        return self._objects.inventory()

    def gauges(self) -> Mapping[str, float]:
        return {"token_sessions": self.token.live_sessions, "token_session_keys": self.token.live_derived}

    def attributes(self, ref: MaterialRef) -> templates.Template:
        """What the token says of the object now, for attestation and fsck. Raises Rejected.Unavailable unless there is exactly one."""
        expected = templates.expected_of(ref, templates.role_of(ref), self._instance_id)
        self._objects.look_again()
        with self._objects.session() as session:
            thing = self._objects.only(session, ref.material_id)
            return self._objects.attributes(thing, [*expected, Attribute.CHECK_VALUE])

    def close(self) -> None:
        """Give the token back; the last one of this process logs out and finalises. Keys that were loaded are dead then."""
        if not self._closed:
            self._closed = True
            module.release(self._library)

    # --- inside ----------------------------------------------------------------------------------------------------------------

    def _role(self, ref: MaterialRef) -> Role:
        """Of material that is about to be made."""
        role = templates.role_of(ref)
        return Role.RSA_DECRYPT_RAW if role is Role.RSA_DECRYPT and self._ability.raw else role

    def _verified(self, ref: MaterialRef, role: Role, public: bytes, check_value: bytes = b"") -> dict[str, str | int | bool]:
        """A fresh look and a self-test; answers the facts. `check_value`: what was proved before the material was made to stay."""
        self._objects.look_again()
        with self._objects.session() as session:
            thing, facts = self._maker.verified(session, ref, role)
            handle = int(thing.handle or 0)
            if role is Role.UNWRAP:
                self._unwrapper.try_pair(session, cast(UnwrapMixin, thing), public)
        if role is not Role.UNWRAP:
            self._self_test(ref, role, handle, public)
        if role is Role.DERIVE and check_value and self.token.check_value(handle) != check_value:
            raise KmsError("InternalFailure", "the token unwrapped other material than it proved")
        self._objects.remember(ref.material_id, handle)
        told: Facts = {"public_key": public.hex()} if public else {"value_len": SPECS[ref.spec].bytes}
        return {**facts, **told, "token_serial": self.token_serial}

    def _self_test(self, ref: MaterialRef, role: Role, handle: int, public: bytes) -> None:
        key = key_on(self.token, handle, role, ref.spec)
        try:
            self_test(key, ref, public)
        finally:
            key.retire()

    def _used_once(self, ref: MaterialRef, handle: int) -> Loaded:
        """The key on the object; one use of it, so that a stale handle shows here (the core tries suite 1 itself)."""
        role = templates.role_of(ref)
        if role is Role.RSA_DECRYPT:
            role = role_by_trial(self.token, handle, ref.public_key)
        key = key_on(self.token, handle, role, ref.spec)
        if role is Role.CRYPT:
            cast(AeadKey, key).encrypt(b"", b"", b"")
        elif role is Role.MAC:
            cast(MacKey, key).mac(b"")
        elif role in (Role.RSA_SIGN, Role.EC_SIGN):
            facts = signing_facts(ref.spec)
            cast(PrivateKey, key).sign(facts, bytes(HASH_BYTES[facts.hash]))
        return key
