"""The one table of what each kind of object in a token may do (RELIABILITY K1-K5). No caller adds to it, nothing is changed later.

Every boolean is written out, because a token's defaults are dangerous (RELIABILITY 1.2 fact 1). Knows no session and no key state.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.attributes import AttributeMapper

from kmscore.custody.port import MaterialRef
from kmscore.domain.algorithms import mac_hash
from kmscore.domain.specs import SPECS, Family, KeySpec, KeyUsage, Suite

Value = bool | int | bytes | str | tuple[int, ...]
Template = dict[Attribute, Value]


class Role(StrEnum):
    """What an object is for. Roles never mix (RELIABILITY K2)."""

    DERIVE = "derive"
    """Master of suite 1: AES-256 that derives session keys and does nothing else."""
    CRYPT = "crypt"
    """Key of suite 2: AES that encrypts and decrypts with GCM and does nothing else."""
    RSA_SIGN = "rsa-sign"
    RSA_DECRYPT = "rsa-decrypt"
    """RSAES-OAEP in the token."""
    RSA_DECRYPT_RAW = "rsa-decrypt-raw"
    """RSA in the token and the padding in the core, where a token lacks RSAES-OAEP with SHA-256. Raw RSA is allowed nowhere else."""
    EC_SIGN = "ec-sign"
    MAC = "mac"
    UNWRAP = "unwrap"
    """The pair of an import offer: unwraps material and does nothing else."""
    KEK = "kek"
    """The AES key that comes first in a two-step import; a session object, for the length of one call."""


@dataclass(frozen=True, slots=True)
class RoleFacts:
    """`allowed` are the usage flags that are true, all others are false; `mechanisms` is CKA_ALLOWED_MECHANISMS.

    `public` is the one flag of the public half, a session object that is read and dropped. It does nothing, but the token tries a new
    pair with it.
    """

    object_class: ObjectClass
    key_type: KeyType
    generated_by: Mechanism
    allowed: frozenset[Attribute]
    mechanisms: tuple[Mechanism, ...]
    public: Attribute | None = None


def _secret(key_type: KeyType, generated_by: Mechanism, allowed: set[Attribute], *mechanisms: Mechanism) -> RoleFacts:
    return RoleFacts(ObjectClass.SECRET_KEY, key_type, generated_by, frozenset(allowed), mechanisms)


def _rsa(allowed: Attribute, public: Attribute, *mechanisms: Mechanism) -> RoleFacts:
    return RoleFacts(ObjectClass.PRIVATE_KEY, KeyType.RSA, Mechanism.RSA_PKCS_KEY_PAIR_GEN, frozenset({allowed}), mechanisms, public)


HMAC: dict[str, Mechanism] = {
    "SHA-256": Mechanism.SHA256_HMAC,
    "SHA-384": Mechanism.SHA384_HMAC,
    "SHA-512": Mechanism.SHA512_HMAC,
}
# AES-KWP (RFC 5649). The first is its own number; the second means the same in SoftHSM, and something else in NSS, which has both.
KWP = (Mechanism.AES_KEY_WRAP_KWP, Mechanism.AES_KEY_WRAP_PAD)

_AES = (KeyType.AES, Mechanism.AES_KEY_GEN)
ROLES: dict[Role, RoleFacts] = {
    Role.DERIVE: _secret(*_AES, {Attribute.DERIVE}, Mechanism.AES_ECB_ENCRYPT_DATA),
    Role.CRYPT: _secret(*_AES, {Attribute.ENCRYPT, Attribute.DECRYPT}, Mechanism.AES_GCM),
    Role.RSA_SIGN: _rsa(Attribute.SIGN, Attribute.VERIFY, Mechanism.RSA_PKCS, Mechanism.RSA_PKCS_PSS),
    Role.RSA_DECRYPT: _rsa(Attribute.DECRYPT, Attribute.ENCRYPT, Mechanism.RSA_PKCS_OAEP),
    Role.RSA_DECRYPT_RAW: _rsa(Attribute.DECRYPT, Attribute.ENCRYPT, Mechanism.RSA_X_509),
    Role.EC_SIGN: RoleFacts(
        ObjectClass.PRIVATE_KEY,
        KeyType.EC,
        Mechanism.EC_KEY_PAIR_GEN,
        frozenset({Attribute.SIGN}),
        (Mechanism.ECDSA,),
        Attribute.VERIFY,
    ),
    # Each MAC key has the one of its hash.
    Role.MAC: _secret(KeyType.GENERIC_SECRET, Mechanism.GENERIC_SECRET_KEY_GEN, {Attribute.SIGN}, *HMAC.values()),
    Role.UNWRAP: _rsa(Attribute.UNWRAP, Attribute.WRAP, Mechanism.RSA_PKCS, Mechanism.RSA_PKCS_OAEP),
    Role.KEK: _secret(*_AES, {Attribute.UNWRAP}, *KWP),
}

_ROLE_OF_SUITE = {Suite.XAES_256_GCM: Role.DERIVE, Suite.AES_GCM: Role.CRYPT}
_ROLE_OF_USE = {
    (Family.RSA, KeyUsage.SIGN_VERIFY): Role.RSA_SIGN,
    (Family.RSA, KeyUsage.ENCRYPT_DECRYPT): Role.RSA_DECRYPT,
    (Family.RSA, KeyUsage.UNWRAP): Role.UNWRAP,
    (Family.EC, KeyUsage.SIGN_VERIFY): Role.EC_SIGN,
    (Family.HMAC, KeyUsage.GENERATE_VERIFY_MAC): Role.MAC,
}

# CKA_EC_PARAMS: a named curve as an object identifier in DER (RFC 5480, SEC 2).
EC_PARAMS: dict[KeySpec, bytes] = {
    KeySpec.EC_P256: bytes.fromhex("06082a8648ce3d030107"),
    KeySpec.EC_P256K: bytes.fromhex("06052b8104000a"),
    KeySpec.EC_P384: bytes.fromhex("06052b81040022"),
    KeySpec.EC_P521: bytes.fromhex("06052b81040023"),
}

USAGES: dict[ObjectClass, tuple[Attribute, ...]] = {
    ObjectClass.SECRET_KEY: (
        *(Attribute.ENCRYPT, Attribute.DECRYPT, Attribute.SIGN, Attribute.VERIFY),
        *(Attribute.WRAP, Attribute.UNWRAP, Attribute.DERIVE),
    ),
    ObjectClass.PRIVATE_KEY: (Attribute.DECRYPT, Attribute.SIGN, Attribute.SIGN_RECOVER, Attribute.UNWRAP, Attribute.DERIVE),
    ObjectClass.PUBLIC_KEY: (Attribute.ENCRYPT, Attribute.VERIFY, Attribute.VERIFY_RECOVER, Attribute.WRAP, Attribute.DERIVE),
}

UNAVAILABLE = (1 << 64) - 1  # CK_UNAVAILABLE_INFORMATION

# What only the token can say; the conjunction is what tells generated material from anything else (RELIABILITY section 6).
_TOLD = (Attribute.LOCAL, Attribute.ALWAYS_SENSITIVE, Attribute.NEVER_EXTRACTABLE)

# Without these a token does not do, whatever it says. All others may be unknown to it (see Dialect).
ESSENTIAL = frozenset(
    {
        *(Attribute.CLASS, Attribute.KEY_TYPE, Attribute.ID, Attribute.LABEL, Attribute.VALUE_LEN, Attribute.EC_PARAMS),
        *(Attribute.TOKEN, Attribute.PRIVATE, Attribute.SENSITIVE, Attribute.EXTRACTABLE),
        *USAGES[ObjectClass.SECRET_KEY],
        *USAGES[ObjectClass.PRIVATE_KEY],
    }
)

# Left out of attribute facts: the facts go into an event, and these are said there under other names or are no facts of the token.
_NOT_FACTS = frozenset(
    {
        *(Attribute.ID, Attribute.CLASS, Attribute.KEY_TYPE, Attribute.LABEL, Attribute.EC_PARAMS),
        *USAGES[ObjectClass.SECRET_KEY],
        *USAGES[ObjectClass.PRIVATE_KEY],
    }
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a token does not know of our table, found by trying (ability.py); nothing for SoftHSM. Never anything essential."""

    refused: frozenset[Attribute] = field(default_factory=frozenset)
    """It makes no object with these in the template; they are left out."""
    untold: frozenset[Attribute] = field(default_factory=frozenset)
    """It does not tell these, or not truly, of an object that it made; left out of comparison and facts. Has all of `refused`."""


def label_prefix(instance_id: str) -> str:
    return f"kmscore/{instance_id}/"


def label_for(instance_id: str, material_id: bytes) -> str:
    """CKA_LABEL: for people, and to tell our objects from others'. Never changed, never looked up by."""
    return label_prefix(instance_id) + material_id.hex()


def role_of(ref: MaterialRef) -> Role:
    """Of RSA keys that decrypt, RSA_DECRYPT; the keeper decides which way."""
    family = SPECS[ref.spec].family
    return _ROLE_OF_SUITE[ref.suite] if family is Family.AES else _ROLE_OF_USE[family, ref.usage]


def template_for(ref: MaterialRef, role: Role, instance_id: str) -> Template:
    """The exact template of the resident object of `ref`, generated or unwrapped."""
    return _template(role, ref.spec, ref.material_id, label_for(instance_id, ref.material_id), resident=True, sized=not ref.imported)


def passing_template(role: Role, spec: KeySpec, *, sized: bool = False) -> Template:
    """The template of a session object that is tried and dropped within one call; `sized` when it is generated, not unwrapped."""
    return _template(role, spec, b"", "", resident=False, sized=sized)


def public_template(role: Role, spec: KeySpec) -> Template:
    """The template of the public half of a pair."""
    facts = ROLES[role]
    return {
        Attribute.CLASS: int(ObjectClass.PUBLIC_KEY),
        Attribute.KEY_TYPE: int(facts.key_type),
        Attribute.TOKEN: False,
        Attribute.PRIVATE: False,
        **{usage: usage is facts.public for usage in USAGES[ObjectClass.PUBLIC_KEY]},
        **(
            {Attribute.EC_PARAMS: EC_PARAMS[spec]}
            if facts.key_type is KeyType.EC
            else {Attribute.MODULUS_BITS: SPECS[spec].bits, Attribute.PUBLIC_EXPONENT: b"\1\0\1"}
        ),
    }


def expected_of(ref: MaterialRef, role: Role, instance_id: str) -> Template:
    """What a fresh look at the finished object must show: the template and what the token adds of itself."""
    expected = template_for(ref, role, instance_id)
    facts = ROLES[role]
    expected |= dict.fromkeys(_TOLD, not ref.imported)
    expected[Attribute.KEY_GEN_MECHANISM] = UNAVAILABLE if ref.imported else int(facts.generated_by)
    if facts.object_class is ObjectClass.SECRET_KEY:
        expected[Attribute.TRUSTED] = False
    if facts.key_type is KeyType.EC:
        expected[Attribute.EC_PARAMS] = EC_PARAMS[ref.spec]
    return expected


def _template(role: Role, spec: KeySpec, object_id: bytes, label: str, *, resident: bool, sized: bool) -> Template:
    facts = ROLES[role]
    secret = facts.object_class is ObjectClass.SECRET_KEY
    return {
        Attribute.CLASS: int(facts.object_class),
        Attribute.KEY_TYPE: int(facts.key_type),
        Attribute.ID: object_id,
        Attribute.LABEL: label,
        **({Attribute.VALUE_LEN: SPECS[spec].bytes} if secret and sized else {}),
        Attribute.TOKEN: resident,
        Attribute.PRIVATE: True,
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: False,
        Attribute.WRAP_WITH_TRUSTED: False,
        **{usage: usage in facts.allowed for usage in USAGES[facts.object_class]},
        **({} if secret else {Attribute.ALWAYS_AUTHENTICATE: False}),
        Attribute.ALLOWED_MECHANISMS: tuple(sorted(map(int, _mechanisms(role, spec)))),
        Attribute.COPYABLE: False,
        Attribute.DESTROYABLE: True,  # false would block the KMS's own deletion (K7)
        Attribute.MODIFIABLE: False,  # last: SoftHSM's C_UnwrapKey takes no attribute behind it (measured: CKR_ATTRIBUTE_READ_ONLY)
    }


def _mechanisms(role: Role, spec: KeySpec) -> Collection[Mechanism]:
    return (HMAC[mac_hash(spec)],) if role is Role.MAC else ROLES[role].mechanisms


def needed_mechanisms(role: Role, spec: KeySpec) -> frozenset[Mechanism]:
    """What a token must list for keys of this role. The derivation of a master is tried instead, and what it derives encrypts with GCM."""
    return frozenset({ROLES[role].generated_by, *((Mechanism.AES_GCM,) if role is Role.DERIVE else _mechanisms(role, spec))})


def differences(found: Mapping[Attribute, Value], expected: Mapping[Attribute, Value], dialect: Dialect) -> list[str]:
    """Names of the attributes that are absent or differ; empty when the object is exactly as asked for."""
    return sorted(
        attribute.name for attribute, value in expected.items() if attribute not in dialect.untold and found.get(attribute) != value
    )


def facts_of(role: Role, found: Mapping[Attribute, Value], dialect: Dialect) -> dict[str, str | int | bool]:
    """The verified attributes as a flat mapping for the outcome event: `sensitive`, `local`, `key_gen_mechanism`, `usage`, ..."""
    facts: dict[str, str | int | bool] = {"role": role.value, "label": str(found[Attribute.LABEL])}
    for attribute, value in found.items():
        name = attribute.name.lower()
        if attribute in _NOT_FACTS or attribute in dialect.untold or value in (b"", UNAVAILABLE):
            continue
        if isinstance(value, tuple):
            facts[name] = ",".join(mechanism_name(number) for number in value)
        elif attribute is Attribute.KEY_GEN_MECHANISM and isinstance(value, int):
            facts[name] = mechanism_name(value)
        elif isinstance(value, bytes):
            facts[name] = value.hex()
        elif isinstance(value, str | int):
            facts[name] = value
    facts["usage"] = ",".join(usage.name for usage in USAGES[ROLES[role].object_class] if found.get(usage))
    return facts


def mechanism_name(number: int) -> str:
    """`CKM_AES_GCM` for 0x1087; a number we do not know in hexadecimal."""
    try:
        return f"CKM_{Mechanism(number).name}"
    except ValueError:
        return f"0x{number:x}"


class Mapper(AttributeMapper):
    """How python-pkcs11 packs and reads our attributes. Templates go through as they are: it would add defaults of its own."""

    def __init__(self) -> None:
        super().__init__()
        number = struct.Struct("L")  # CK_ULONG

        def unpack_number(data: bytes) -> int:
            # Numbers stay numbers, so that "unavailable" (all ones) is no error.
            return int(number.unpack(data)[0]) if len(data) == number.size else -1

        for attribute in (Attribute.CLASS, Attribute.KEY_TYPE, Attribute.KEY_GEN_MECHANISM, Attribute.VALUE_LEN):
            self.register_handler(attribute, number.pack, unpack_number)
        self.register_handler(
            Attribute.ALLOWED_MECHANISMS,
            lambda numbers: struct.pack(f"{len(numbers)}L", *numbers),
            lambda data: tuple(sorted(struct.unpack(f"{len(data) // number.size}L", data))),
        )

    def secret_key_template(self, **_: Any) -> dict[Attribute, Any]:
        return {}

    def public_key_template(self, **_: Any) -> dict[Attribute, Any]:
        return {}

    def private_key_template(self, **_: Any) -> dict[Attribute, Any]:
        return {}

    def generic_key_template(self, base_template: dict[Attribute, Any], **_: Any) -> dict[Attribute, Any]:
        return {}
