"""The one table of what each kind of object in a token may do (RELIABILITY K1-K4). No caller adds to it, nothing is changed later.

Every boolean is written out, because a token's defaults are dangerous (RELIABILITY 1.2 fact 1). Knows no session and no key state.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.attributes import AttributeMapper

from kmscore.custody.port import MaterialRef
from kmscore.domain.specs import SPECS, Suite

Value = bool | int | bytes | str | tuple[int, ...]


class Role(StrEnum):
    """What an object is for. Roles never mix (RELIABILITY K2)."""

    DERIVE = "derive"
    """Master of suite 1: AES-256 that derives session keys and does nothing else."""
    CRYPT = "crypt"
    """Key of suite 2: AES that encrypts and decrypts with GCM and does nothing else."""


@dataclass(frozen=True, slots=True)
class RoleFacts:
    """`allowed` are the usage flags that are true, all others are false; `mechanisms` is CKA_ALLOWED_MECHANISMS."""

    key_type: KeyType
    generated_by: Mechanism
    allowed: frozenset[Attribute]
    mechanisms: tuple[Mechanism, ...]


ROLES: dict[Role, RoleFacts] = {
    Role.DERIVE: RoleFacts(KeyType.AES, Mechanism.AES_KEY_GEN, frozenset({Attribute.DERIVE}), (Mechanism.AES_ECB_ENCRYPT_DATA,)),
    Role.CRYPT: RoleFacts(KeyType.AES, Mechanism.AES_KEY_GEN, frozenset({Attribute.ENCRYPT, Attribute.DECRYPT}), (Mechanism.AES_GCM,)),
}

ROLE_OF_SUITE: dict[Suite, Role] = {Suite.XAES_256_GCM: Role.DERIVE, Suite.AES_GCM: Role.CRYPT}

_USAGES = (
    Attribute.ENCRYPT,
    Attribute.DECRYPT,
    Attribute.SIGN,
    Attribute.VERIFY,
    Attribute.WRAP,
    Attribute.UNWRAP,
    Attribute.DERIVE,
)

# True of every role. DESTROYABLE stays true: false would block the KMS's own deletion (K7).
_COMMON: dict[Attribute, Value] = {
    Attribute.TOKEN: True,
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.WRAP_WITH_TRUSTED: False,
    Attribute.MODIFIABLE: False,
    Attribute.COPYABLE: False,
    Attribute.DESTROYABLE: True,
}

# What only the token can say; the conjunction is what tells generated material from anything else (RELIABILITY section 6).
_GENERATED: dict[Attribute, Value] = {
    Attribute.LOCAL: True,
    Attribute.ALWAYS_SENSITIVE: True,
    Attribute.NEVER_EXTRACTABLE: True,
    Attribute.TRUSTED: False,
}

# Left out of attribute facts: the facts go into an event, and these are said there under other names or are no facts of the token.
_NOT_FACTS = frozenset({Attribute.ID, Attribute.CLASS, Attribute.KEY_TYPE, Attribute.LABEL, *_USAGES})


def label_prefix(instance_id: str) -> str:
    return f"kmscore/{instance_id}/"


def label_for(instance_id: str, material_id: bytes) -> str:
    """CKA_LABEL: for people, and to tell our objects from others'. Never changed, never looked up by."""
    return label_prefix(instance_id) + material_id.hex()


def template_for(ref: MaterialRef, instance_id: str) -> dict[Attribute, Value]:
    """The exact C_GenerateKey template for `ref`."""
    facts = ROLES[ROLE_OF_SUITE[ref.suite]]
    return {
        Attribute.CLASS: int(ObjectClass.SECRET_KEY),
        Attribute.KEY_TYPE: int(facts.key_type),
        Attribute.ID: ref.material_id,
        Attribute.LABEL: label_for(instance_id, ref.material_id),
        Attribute.VALUE_LEN: SPECS[ref.spec].material_bytes,
        **_COMMON,
        **{usage: usage in facts.allowed for usage in _USAGES},
        Attribute.ALLOWED_MECHANISMS: tuple(sorted(int(mechanism) for mechanism in facts.mechanisms)),
    }


def expected_of(ref: MaterialRef, instance_id: str) -> dict[Attribute, Value]:
    """What a fresh look at the finished object must show: the template and what the token adds of itself."""
    facts = ROLES[ROLE_OF_SUITE[ref.suite]]
    return {**template_for(ref, instance_id), **_GENERATED, Attribute.KEY_GEN_MECHANISM: int(facts.generated_by)}


def differences(found: Mapping[Attribute, Value], expected: Mapping[Attribute, Value]) -> list[str]:
    """Names of the attributes that are absent or differ; empty when the object is exactly as asked for."""
    return sorted(attribute.name for attribute, value in expected.items() if found.get(attribute) != value)


def facts_of(ref: MaterialRef, found: Mapping[Attribute, Value]) -> dict[str, str | int | bool]:
    """The verified attributes as a flat mapping for the outcome event: `sensitive`, `local`, `key_gen_mechanism`, `usage`, ..."""
    facts: dict[str, str | int | bool] = {"role": ROLE_OF_SUITE[ref.suite].value, "label": str(found[Attribute.LABEL])}
    for attribute, value in found.items():
        name = attribute.name.lower()
        if attribute in _NOT_FACTS:
            continue
        if isinstance(value, tuple):
            facts[name] = ",".join(mechanism_name(number) for number in value)
        elif attribute is Attribute.KEY_GEN_MECHANISM and isinstance(value, int):
            facts[name] = mechanism_name(value)
        elif isinstance(value, bytes):
            facts[name] = value.hex()
        elif isinstance(value, str | int):
            facts[name] = value
    facts["usage"] = ",".join(usage.name for usage in _USAGES if found.get(usage))
    return facts


def mechanism_name(number: int) -> str:
    """`CKM_AES_GCM` for 0x1087; a number we do not know in hexadecimal."""
    try:
        return f"CKM_{Mechanism(number).name}"
    except ValueError:
        return f"0x{number:x}"


def mapper() -> AttributeMapper:
    """How python-pkcs11 packs and reads our attributes: numbers stay numbers, so that "unavailable" (all ones) is no error."""
    result = AttributeMapper()
    number = struct.Struct("L")  # CK_ULONG

    def unpack_number(data: bytes) -> int:
        return int(number.unpack(data)[0]) if len(data) == number.size else -1

    for attribute in (Attribute.CLASS, Attribute.KEY_TYPE, Attribute.KEY_GEN_MECHANISM, Attribute.VALUE_LEN):
        result.register_handler(attribute, number.pack, unpack_number)
    result.register_handler(
        Attribute.ALLOWED_MECHANISMS,
        lambda numbers: struct.pack(f"{len(numbers)}L", *numbers),
        lambda data: tuple(sorted(struct.unpack(f"{len(data) // number.size}L", data))),
    )
    return result
