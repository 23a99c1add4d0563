"""One suite for every keeper: key pairs that sign or decrypt, and MAC keys."""

from __future__ import annotations

import hmac
import os
from functools import partial

import pytest
from benches import Bench, code

from kmscore.custody.port import MacKey, MaterialRef, PrivateKey
from kmscore.custody.public import PublicKeyOperations, fits
from kmscore.domain.algorithms import ENCRYPTION, HASH_BYTES, MAC, SIGNING, AlgorithmFacts, max_oaep_bytes
from kmscore.domain.specs import SPECS, Family, KeySpec, KeyUsage, ProtectionLevel
from kmscore.errors import KmsError

PUBLIC = PublicKeyOperations()
CASES = [(spec, usage) for spec, facts in SPECS.items() for usage in facts.usages if facts.family is not Family.AES]
SIGNERS = [(spec, facts) for facts in SIGNING.values() for spec in sorted(facts.specs)]
DECRYPTERS = [(spec, facts) for facts in ENCRYPTION.values() for spec in sorted(facts.specs)]
MACS = [(spec, facts) for facts in MAC.values() for spec in sorted(facts.specs)]
GENERATED_BY = {Family.RSA: "RSA_PKCS_KEY_PAIR_GEN", Family.EC: "EC_KEY_PAIR_GEN", Family.HMAC: "GENERIC_SECRET_KEY_GEN"}


@pytest.fixture(scope="module")
def made(bench: Bench) -> dict[tuple[KeySpec, KeyUsage], MaterialRef]:
    """References by spec and usage, so that each slow pair is made once."""
    return {}


def key_of(bench: Bench, made: dict[tuple[KeySpec, KeyUsage], MaterialRef], spec: KeySpec, usage: KeyUsage) -> MaterialRef:
    if (spec, usage) not in made:
        made[spec, usage] = bench.new(spec, usage)
    return made[spec, usage]


@pytest.mark.parametrize(("spec", "usage"), CASES)
def test_facts(bench: Bench, spec: KeySpec, usage: KeyUsage) -> None:
    ref = bench.ref(spec, usage)
    facts = bench.keeper.generate(ref)
    assert all(isinstance(name, str) and isinstance(value, str | int | bool) for name, value in facts.items())
    if SPECS[spec].is_asymmetric:
        assert fits(bytes.fromhex(str(facts["public_key"])), spec)
    else:
        assert "public_key" not in facts
        assert facts["value_len"] == SPECS[spec].bytes
    if bench.keeper.level is ProtectionLevel.HSM:
        told = {**dict.fromkeys(("sensitive", "always_sensitive", "never_extractable"), True), "extractable": False}
        if bench.kind != "nss":
            told |= {"local": True, "key_gen_mechanism": f"CKM_{GENERATED_BY[SPECS[spec].family]}"}
        assert {name: facts.get(name) for name in told} == told
    bench.keeper.destroy(ref.material_id)
    assert ref.material_id not in bench.keeper.inventory().materials


def name_of(part: KeySpec | AlgorithmFacts) -> str:
    return f"{part.scheme}-{part.hash}" if isinstance(part, AlgorithmFacts) else part.value


@pytest.mark.parametrize(("spec", "facts"), SIGNERS, ids=name_of)
def test_what_a_key_signs_its_public_half_verifies(
    bench: Bench, made: dict[tuple[KeySpec, KeyUsage], MaterialRef], spec: KeySpec, facts: AlgorithmFacts
) -> None:
    ref = key_of(bench, made, spec, KeyUsage.SIGN_VERIFY)
    key: PrivateKey = bench.keeper.load(ref)  # type: ignore[assignment]
    for _ in range(3):
        digest = os.urandom(HASH_BYTES[facts.hash])
        signature = key.sign(facts, digest)
        assert PUBLIC.verify(ref.public_key, facts, digest, signature)
        assert not PUBLIC.verify(ref.public_key, facts, os.urandom(len(digest)), signature)
        for wrong in (b"", signature[:-1], signature + b"\0", bytes(len(signature)), bytes([signature[0] ^ 1]) + signature[1:]):
            assert not PUBLIC.verify(ref.public_key, facts, digest, wrong)
    others = [other for fit, other in SIGNERS if fit is spec and other is not facts]
    assert not any(PUBLIC.verify(ref.public_key, other, digest, signature) for other in others)


@pytest.mark.parametrize(("spec", "facts"), DECRYPTERS, ids=name_of)
def test_what_a_public_half_encrypts_its_key_decrypts(
    bench: Bench, made: dict[tuple[KeySpec, KeyUsage], MaterialRef], spec: KeySpec, facts: AlgorithmFacts
) -> None:
    ref = key_of(bench, made, spec, KeyUsage.ENCRYPT_DECRYPT)
    key: PrivateKey = bench.keeper.load(ref)  # type: ignore[assignment]
    for size in (0, 1, max_oaep_bytes(SPECS[spec].bytes, facts.hash)):
        plaintext = os.urandom(size)
        opened = key.decrypt_secret(facts, PUBLIC.encrypt(ref.public_key, facts, plaintext))
        assert (opened.size, opened.reveal()) == (size, plaintext)
        opened.close()
    ciphertext = PUBLIC.encrypt(ref.public_key, facts, b"x")
    other = next(fact for fit, fact in DECRYPTERS if fit is spec and fact is not facts)
    size = len(ciphertext)
    for wrong in (b"", ciphertext[:-1], ciphertext + b"\0", bytes(size), b"\xff" * size, ciphertext[:-1] + bytes([ciphertext[-1] ^ 1])):
        assert code(partial(key.decrypt_secret, facts, wrong)) == "InvalidParameter"
    with pytest.raises(KmsError, match="CiphertextBlob"):
        key.decrypt_secret(other, ciphertext)


@pytest.mark.parametrize(("spec", "facts"), MACS, ids=name_of)
def test_macs(bench: Bench, spec: KeySpec, facts: AlgorithmFacts) -> None:
    ref = bench.new(spec)
    key: MacKey = bench.keeper.load(ref)  # type: ignore[assignment]
    tags = {message: key.mac(message) for message in (b"", b"x", bytes(5000))}
    assert {len(tag) for tag in tags.values()} == {HASH_BYTES[facts.hash]}
    assert len(set(tags.values())) == 3
    again: MacKey = bench.again().load(ref)  # type: ignore[assignment]
    assert {message: again.mac(message) for message in tags} == tags
    other: MacKey = bench.keeper.load(bench.new(spec))  # type: ignore[assignment]
    assert not any(hmac.compare_digest(other.mac(message), tag) for message, tag in tags.items())


@pytest.mark.parametrize("spec", [KeySpec.EC_P256, KeySpec.RSA_2048, KeySpec.HMAC_384])
def test_the_life_of_a_key_that_is_not_aes(bench: Bench, spec: KeySpec) -> None:
    ref, facts = bench.new(spec), next((facts for fit, facts in SIGNERS if fit is spec), None)

    def use(key: object) -> bytes:
        return key.sign(facts, bytes(HASH_BYTES[facts.hash])) if facts else key.mac(b"x")  # type: ignore[attr-defined]

    key = bench.keeper.load(ref)
    assert use(key)
    assert bench.again().inventory().materials >= {ref.material_id}
    assert use(bench.again().load(ref))
    assert key.retire()
    assert key.retire()
    assert code(lambda: use(key)) == "Rejected.Unavailable"
    assert use(bench.keeper.load(ref))  # the material is as it was
    if bench.kind != "nss":
        assert code(lambda: bench.keeper.generate(ref)) == "Rejected.Unavailable"
    for _ in range(2):
        bench.keeper.destroy(ref.material_id)
    assert ref.material_id not in bench.keeper.inventory().materials
    assert code(lambda: bench.keeper.load(ref)) == "Rejected.Unavailable"
    assert code(lambda: bench.again().load(ref)) == "Rejected.Unavailable"


def test_material_that_was_never_made_is_unavailable(bench: Bench) -> None:
    for spec, usage in CASES:
        try:
            bench.keeper.suite_for(spec, usage)
        except KmsError:
            continue
        assert code(partial(bench.keeper.load, bench.ref(spec, usage))) == "Rejected.Unavailable"
