"""What a token can do, found by trying on session objects, once per keeper and when first asked: never by the token's name.

What was tried for certain is remembered; a failure that may pass (the token was away, or said nothing clear) is tried again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Mapping
from typing import cast

from cryptography.hazmat.primitives import keywrap, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from pkcs11 import Attribute, KeyType, Mechanism
from pkcs11.types import Key, Object, Session, UnwrapMixin, WrapMixin

from kmscore.custody import _p11, templates
from kmscore.custody.making import make
from kmscore.custody.objects import TokenObjects
from kmscore.custody.port import MaterialRef
from kmscore.custody.public import CURVES, parse
from kmscore.custody.templates import ROLES, Role, passing_template
from kmscore.custody.tokenerrors import VAGUE, calling, is_trouble
from kmscore.custody.unwrap import AES_BYTES, KEK_BYTES, ONE_STEP, SESSION_PAIR, TWO_STEPS, Unwrapper, Wrapped, session_pair
from kmscore.custody.wrapping import fitting
from kmscore.domain.algorithms import WrappingAlgorithm
from kmscore.domain.specs import SPECS, Family, KeySpec, Suite
from kmscore.errors import KmsError, TokenError

_WRAPPING = frozenset({Mechanism.AES_KEY_WRAP, Mechanism.AES_KEY_WRAP_PAD, Mechanism.AES_CBC_PAD, Mechanism.AES_ECB})
_TRIALS = 2  # of what answers vaguely: a look-up of another thread may have upset SoftHSM (making.py)
# Material of this spec stands for its family in the trial of an import.
_STANDS_FOR = {Family.AES: KeySpec.AES_256, Family.RSA: KeySpec.RSA_2048, Family.EC: KeySpec.EC_P256}


class Ability:
    """Thread-safe; callers wait for a trial that is under way."""

    def __init__(
        self, objects: TokenObjects, token: _p11.Token, unwrapper: Unwrapper, mechanisms: Mapping[int, tuple[int, int, int]]
    ) -> None:
        self._objects = objects
        self._token = token
        self._unwrapper = unwrapper
        self._mechanisms = mechanisms
        self._known: dict[Hashable, bool] = {}
        self._trying = threading.Lock()

    @property
    def derives(self) -> bool:
        """Whether it has the derivation of suite 1. NSS has it and does not list it."""
        return self._tried("derives", self._derives)

    @property
    def raw(self) -> bool:
        """Whether RSA keys that decrypt are made for raw RSA, because RSAES-OAEP with SHA-256 is lacking."""
        return not self._tried("decrypts", self._decrypts_oaep)

    def holds(self, role: Role, spec: KeySpec) -> bool:
        """Whether it can make keys of `spec` for this role: mechanisms, size, curve."""
        if not templates.needed_mechanisms(role, spec) <= self._mechanisms.keys():
            return False
        least, most, _ = self._mechanisms[int(ROLES[role].generated_by)]
        if role is Role.EC_SIGN:
            return self._tried(spec, lambda: self._makes(role, spec))
        return ROLES[role].public is None or least <= SPECS[spec].bits <= (most or SPECS[spec].bits)

    def imports(self, algorithm: WrappingAlgorithm, spec: KeySpec) -> bool:
        """Whether it unwraps such material, proves it, and keeps it to its role."""
        if algorithm not in fitting(spec):
            return False
        family = SPECS[spec].family
        return self._tried((algorithm, family), lambda: self._imports(algorithm, _STANDS_FOR[family]))

    def imports_through_host(self, algorithm: WrappingAlgorithm, spec: KeySpec) -> bool:
        """Whether it could with SHA-1 what it cannot with SHA-256, once this process has changed the one into the other."""
        in_token = TWO_STEPS if algorithm.two_step else ONE_STEP
        return algorithm.hash == "SHA-256" and Mechanism.RSA_X_509 in self._mechanisms and self.raw and self.imports(in_token, spec)

    def broken_rules(self) -> list[str]:
        """What it does for whoever has the PIN although the attributes of a key forbid it; kmscore itself never asks for any of it."""
        rules = {
            "wraps out a key that is not extractable (CKA_EXTRACTABLE)": self._wraps_out,
            "derives from a key that may not derive (CKA_DERIVE)": self._derives_unasked,
        }
        return [what for what, trial in rules.items() if self._tried(what, trial)]

    # --- trials ----------------------------------------------------------------------------------------------------------------

    def _tried(self, what: Hashable, trial: Callable[[], bool]) -> bool:
        with self._trying:
            if what in self._known:
                return self._known[what]
            for _ in range(_TRIALS):
                try:
                    answer, certain = trial(), True
                except TokenError as error:
                    if is_trouble(error):
                        raise
                    answer, certain = False, error.rv not in VAGUE
                if certain:
                    self._known[what] = answer
                    break
            return answer

    def _derives(self) -> bool:
        with self._objects.session() as session:
            self._token.check_value(int(_throwaway(session, Role.DERIVE).handle or 0))
        return True

    def _wraps_out(self) -> bool:
        with self._objects.session() as session:
            theirs = _throwaway(session, Role.CRYPT)
            with calling("C_GenerateKey"):
                ours = session.generate_key(KeyType.AES, 256, template={Attribute.TOKEN: False, Attribute.WRAP: True})
            for mechanism in _WRAPPING & self._mechanisms.keys():
                parameter = bytes(16) if mechanism is Mechanism.AES_CBC_PAD else None
                try:
                    with calling("C_WrapKey"):
                        cast(WrapMixin, ours).wrap_key(cast(Key, theirs), mechanism=mechanism, mechanism_param=parameter)
                except TokenError as error:
                    if is_trouble(error):
                        raise
                else:
                    return True
        return False

    def _derives_unasked(self) -> bool:
        with self._objects.session() as session:
            self._token.check_value(int(_throwaway(session, Role.CRYPT).handle or 0))
        return True

    def _makes(self, role: Role, spec: KeySpec) -> bool:
        with self._objects.session() as session:
            make(session, role, spec, passing_template(role, spec))
        return True

    def _decrypts_oaep(self) -> bool:
        if Mechanism.RSA_PKCS_OAEP not in self._mechanisms:
            return False
        with self._objects.session() as session:
            private, public = session_pair(session, Role.RSA_DECRYPT)
            for hash_name in ("SHA-1", "SHA-256"):
                sealed = _p11.oaep_encrypt(public, hash_name, b"kmscore trial")
                self._token.rsa_decrypt(int(private.handle or 0), sealed, hash_name, False).close()
        return True

    def _imports(self, algorithm: WrappingAlgorithm, spec: KeySpec) -> bool:
        """An import of throwaway material, all but the last step; an AES key of another length must be refused."""
        suite = Suite.XAES_256_GCM if spec is KeySpec.AES_256 else Suite.NONE
        ref = MaterialRef(bytes(16), spec, suite, SPECS[spec].usages[0], imported=True)
        with self._objects.session() as session:
            private, public = session_pair(session, Role.UNWRAP)

            def refusal_of(material: bytes) -> KmsError | None:
                data = _wrapped(public, algorithm, material)
                wrapped = Wrapped(session, cast(UnwrapMixin, private), SPECS[SESSION_PAIR].bytes, algorithm, data)
                try:
                    self._unwrapper.prove(wrapped, ref, templates.role_of(ref))
                except KmsError as error:
                    return error
                return None

            if (refusal := refusal_of(_material(spec))) is not None:
                if isinstance(refusal.__cause__, TokenError):
                    raise refusal.__cause__
                return False
            if not algorithm.hash and self._invents(session, cast(UnwrapMixin, private)):
                return False
            return spec is not KeySpec.AES_256 or all(refusal_of(os.urandom(size)) for size in (16, 24))

    def _invents(self, session: Session, private: UnwrapMixin) -> bool:
        """Whether the token makes something up where the padding of PKCS #1 v1.5 is wrong (implicit rejection: NSS).

        A good defence where the plaintext comes out; here bytes that no one knows would become a key: of NSS's inventions one in 250 has
        the length of an AES-256 key.
        """
        garbage = b"\0" + os.urandom(SPECS[SESSION_PAIR].bytes - 1)
        wrapped = Wrapped(session, private, len(garbage), WrappingAlgorithm.RSAES_PKCS1_V1_5, garbage)
        try:
            self._unwrapper.unwrap(wrapped, passing_template(Role.MAC, KeySpec.HMAC_256))
        except TokenError as error:
            if is_trouble(error):
                raise
            return False
        return True


def _throwaway(session: Session, role: Role) -> Object:
    """A 256-bit AES key of the session."""
    return make(session, role, KeySpec.AES_256, passing_template(role, KeySpec.AES_256, sized=True))[0]


def _material(spec: KeySpec) -> bytes:
    """Throwaway material."""
    if SPECS[spec].family is Family.AES:
        return os.urandom(AES_BYTES)
    rsa_key = SPECS[spec].family is Family.RSA
    key = rsa.generate_private_key(65537, SPECS[spec].bits) if rsa_key else ec.generate_private_key(CURVES[spec])
    return key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _wrapped(public_key: bytes, algorithm: WrappingAlgorithm, material: bytes) -> bytes:
    """Wrapped as a caller does it."""
    if not algorithm.hash:
        return cast(rsa.RSAPublicKey, parse(public_key)).encrypt(material, padding.PKCS1v15())
    if not algorithm.two_step:
        return _p11.oaep_encrypt(public_key, algorithm.hash, material)
    kek = os.urandom(KEK_BYTES)
    return _p11.oaep_encrypt(public_key, algorithm.hash, kek) + keywrap.aes_key_wrap_with_padding(kek, material)
