"""Import of key material into a token: unwrapped in it, proved in it, and only then made to stay.

What the wrapped bytes can cause is InvalidKeyMaterial, always with the same text (RELIABILITY O1). First the material is unwrapped as
session objects, of which nothing is left when the session ends: they prove its kind and length and give the check value.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import cast

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from pkcs11 import MGF, Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.types import Object, Session, UnwrapMixin

from kmscore.custody import _p11, templates
from kmscore.custody.curves import recover
from kmscore.custody.hsm_keys import key_on
from kmscore.custody.making import make, public_of
from kmscore.custody.port import MaterialRef, PrivateKey
from kmscore.custody.public import PublicKeyOperations, ec_spki, fits
from kmscore.custody.selftest import self_test
from kmscore.custody.templates import ROLES, Role, Template, passing_template
from kmscore.custody.tokenerrors import calling, is_trouble
from kmscore.domain.algorithms import HASH_BYTES, WrappingAlgorithm, signing_facts
from kmscore.domain.specs import SPECS, Family, KeySpec
from kmscore.errors import KmsError, TokenError, bad_material

_OAEP = {"SHA-1": (Mechanism.SHA_1, MGF.SHA1, None), "SHA-256": (Mechanism.SHA256, MGF.SHA256, None)}
AES_BYTES = 32  # only AES_256 can be imported
KEK_BYTES = 32
_HMAC_BYTES = 32
# The pair of a trial, or of a way through the host: no more than a call long, so the quickest.
SESSION_PAIR = KeySpec.RSA_2048
# What a token does that does anything.
ONE_STEP, TWO_STEPS = WrappingAlgorithm.RSAES_OAEP_SHA_1, WrappingAlgorithm.RSA_AES_KEY_WRAP_SHA_1
_PUBLIC = PublicKeyOperations()


@dataclass(frozen=True, slots=True)
class Wrapped:
    """Wrapped material and the key that unwraps it: a private key object of `session`."""

    session: Session
    key: UnwrapMixin
    modulus_bytes: int
    algorithm: WrappingAlgorithm
    data: bytes


@dataclass(frozen=True, slots=True)
class Proof:
    """Material is what it should be. `public_key` is that of a private key."""

    check_value: bytes
    public_key: bytes = b""


class Unwrapper:
    """Thread-safe: all state is in the sessions of the callers."""

    def __init__(self, token: _p11.Token, mechanisms: Collection[int], lock: AbstractContextManager[object]) -> None:
        """`lock` keeps look-ups of others away from each C_UnwrapKey (TokenObjects.lock): it takes some milliseconds."""
        self._token = token
        self._lock = lock
        self._kwp = next((mechanism for mechanism in templates.KWP if mechanism in mechanisms), None)

    def unwrap(self, wrapped: Wrapped, template: Template) -> Object:
        """C_UnwrapKey into an object of `template`, a session object or one that stays. Raises TokenError."""
        algorithm, data = wrapped.algorithm, wrapped.data
        if not algorithm.two_step:
            return self._first_step(wrapped, data, template)
        if self._kwp is None:
            raise TokenError(0x70, "C_UnwrapKey", "CKR_MECHANISM_INVALID", "InternalFailure")
        kek = self._first_step(wrapped, data[: wrapped.modulus_bytes], passing_template(Role.KEK, KeySpec.AES_256))
        return self._unwrap_key(cast(UnwrapMixin, kek), data[wrapped.modulus_bytes :], template, self._kwp, None)

    def prove(self, wrapped: Wrapped, ref: MaterialRef, role: Role) -> Proof:
        """That the material is of `ref`, in session objects. Raises InvalidKeyMaterial, or TokenError when the token is out of order."""
        with _answering_alike():
            if wrapped.algorithm.two_step and len(wrapped.data) <= wrapped.modulus_bytes:
                raise bad_material()
            if SPECS[ref.spec].family is Family.AES:
                return self._prove_aes(wrapped)
            thing = self.unwrap(wrapped, passing_template(role, ref.spec))
            _check_role(thing, role)
            public = self._public_of(thing, ref.spec)
            if not fits(public, ref.spec):
                raise bad_material()
            self_test(key_on(self._token, int(thing.handle or 0), role, ref.spec), ref, public)
            return Proof(public, public)

    def through_host(self, wrapped: Wrapped, private: int) -> Wrapped:
        """The same material, wrapped with SHA-1 under a session pair of `wrapped.session`: for a token that does not unwrap SHA-256.

        `private`: the handle of an RSA key that decrypts. The material, or the AES key that wraps it, passes through a Secret of the core.
        """
        old, k = wrapped.algorithm, wrapped.modulus_bytes
        new = TWO_STEPS if old.two_step else ONE_STEP
        with _answering_alike():
            if len(wrapped.data) > k and not old.two_step:
                raise bad_material()
            secret = self._token.rsa_decrypt(private, wrapped.data[:k], old.hash, True)
            try:
                fresh, public = session_pair(wrapped.session, Role.UNWRAP)
                data = _p11.oaep_encrypt(public, new.hash, secret) + wrapped.data[k:]
            finally:
                secret.close()
        return Wrapped(wrapped.session, cast(UnwrapMixin, fresh), SPECS[SESSION_PAIR].bytes, new, data)

    def try_pair(self, session: Session, pair: UnwrapMixin, public_key: bytes) -> None:
        """The self-test of a pair for imports: it unwraps what its public half wrapped, and not what was changed."""
        material = os.urandom(AES_BYTES)
        data = _p11.oaep_encrypt(public_key, ONE_STEP.hash, material)
        for wrapped, good in ((data, True), (data[:-1] + bytes([data[-1] ^ 1]), False)):
            try:
                come = Wrapped(session, pair, len(wrapped), ONE_STEP, wrapped)
                thing = self.unwrap(come, passing_template(Role.DERIVE, KeySpec.AES_256))
                proved = self._token.check_value(int(thing.handle or 0)) == _check_value(material)
            except TokenError as error:
                if is_trouble(error):
                    raise
                proved = False
            if proved is not good:
                raise KmsError("InternalFailure", "self-test: a new pair for imports does not do as it should")

    # --- proofs ----------------------------------------------------------------------------------------------------------------

    def _prove_aes(self, wrapped: Wrapped) -> Proof:
        thing = self.unwrap(wrapped, passing_template(Role.DERIVE, KeySpec.AES_256))
        check_value = self._token.check_value(int(thing.handle or 0))  # so it is an AES key: 16, 24 or 32 bytes
        told = _told_length(thing)
        if told not in (0, AES_BYTES) or (not told and not self._is_long(wrapped)):
            raise bad_material()
        return Proof(check_value)

    def _is_long(self, wrapped: Wrapped) -> bool:
        """Whether the material has 32 bytes or more, where a token does not tell the length of what it unwrapped: SoftHSM takes no shorter
        key for HMAC-SHA-256."""
        thing = self.unwrap(wrapped, passing_template(Role.MAC, KeySpec.HMAC_256))
        try:
            self._token.sign(int(thing.handle or 0), Mechanism.SHA256_HMAC, b"", _HMAC_BYTES)
        except TokenError as error:
            if is_trouble(error):
                raise
            return False
        return True

    def _first_step(self, wrapped: Wrapped, data: bytes, template: Template) -> Object:
        """What the pair itself unwraps."""
        hash_name = wrapped.algorithm.hash
        mechanism, parameter = (Mechanism.RSA_PKCS_OAEP, _OAEP[hash_name]) if hash_name else (Mechanism.RSA_PKCS, None)
        return self._unwrap_key(wrapped.key, data, template, mechanism, parameter)

    def _unwrap_key(self, key: UnwrapMixin, data: bytes, template: Template, mechanism: Mechanism, parameter: object) -> Object:
        with self._lock, calling("C_UnwrapKey"):
            return key.unwrap_key(
                ObjectClass(int(cast(int, template[Attribute.CLASS]))),
                KeyType(int(cast(int, template[Attribute.KEY_TYPE]))),
                data,
                mechanism=mechanism,
                mechanism_param=parameter,  # type: ignore[arg-type]
                template=cast(dict[Attribute, object], template),
            )

    def _public_of(self, thing: Object, spec: KeySpec) -> bytes:
        if SPECS[spec].family is Family.RSA:
            return public_of(thing, spec)
        with calling("C_GetAttributeValue"):
            if thing[Attribute.EC_PARAMS] != templates.EC_PARAMS[spec]:
                raise bad_material()
        # A token does not tell the public key of what it unwrapped. It made these two signatures, so one key fits both.
        facts, handle = signing_facts(spec), int(thing.handle or 0)
        digests = [os.urandom(HASH_BYTES[facts.hash]) for _ in range(2)]
        key = cast(PrivateKey, key_on(self._token, handle, Role.EC_SIGN, spec))
        raw = self._token.sign(handle, Mechanism.ECDSA, digests[0], 2 * SPECS[spec].bytes)
        signature = key.sign(facts, digests[1])
        candidates = [ec_spki(spec, point) for point in recover(spec, digests[0], raw)]
        (public,) = (candidate for candidate in candidates if _PUBLIC.verify(candidate, facts, digests[1], signature))
        return public


def session_pair(session: Session, role: Role, spec: KeySpec = SESSION_PAIR) -> tuple[Object, bytes]:
    """A pair that ends with its session, and its public key. Raises TokenError."""
    return make(session, role, spec, passing_template(role, spec))


def _check_value(key: bytes) -> bytes:
    """As Token.check_value."""
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(bytes(16))  # noqa: S305 - one block


def _told_length(thing: Object) -> int:
    """CKA_VALUE_LEN; 0 where the token does not tell it."""
    with calling("C_GetAttributeValue"):
        return int(thing.get_attributes([Attribute.VALUE_LEN]).get(Attribute.VALUE_LEN, 0))


def _check_role(thing: Object, role: Role) -> None:
    """Some tokens give an unwrapped key whatever flags they like (NSS: all of them)."""
    usages = templates.USAGES[ROLES[role].object_class]
    with calling("C_GetAttributeValue"):
        found = thing.get_attributes(list(usages))
    if any(bool(found.get(usage)) is not (usage in ROLES[role].allowed) for usage in usages):
        raise KmsError("Rejected.UnsupportedOperation", f"the token does not keep unwrapped keys to the role {role}")


@contextmanager
def _answering_alike() -> Iterator[None]:
    """Whatever the wrapped bytes cause in the block is InvalidKeyMaterial."""
    try:
        yield
    except TokenError as error:
        if is_trouble(error):
            raise
        raise bad_material() from error
    except KmsError as error:
        # The core's opaque error, or a self-test that failed: a private key that is not consistent.
        if error.code in ("InvalidParameter", "InternalFailure"):
            raise bad_material() from error
        raise
    except ValueError as error:  # numbers that are no public key
        raise bad_material() from error
