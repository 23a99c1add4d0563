"""One suite for every keeper: material that comes from outside, wrapped under a pair of the custody."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import peers
import pytest
from benches import Bench, code, with_public
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from custody_helpers import header_of
from peers import pkcs8, wrap

from kmscore.custody.fake import FakeKeeper, FakeToken
from kmscore.custody.fake_keys import FakeKey
from kmscore.custody.port import AlreadyHeld, MaterialRef
from kmscore.custody.public import PublicKeyOperations
from kmscore.custody.wrapping import fitting
from kmscore.domain.algorithms import ENCRYPTION, HASH_BYTES, SIGNING, WrappingAlgorithm
from kmscore.domain.specs import HEADER_BYTES, SPECS, Family, KeySpec, KeyUsage, ProtectionLevel
from kmscore.errors import KmsError, bad_material

PUBLIC = PublicKeyOperations()
TWO_STEP = WrappingAlgorithm.RSA_AES_KEY_WRAP_SHA_1
# All, but of the longer RSA keys, which are slow to make, one way each.
IMPORTABLE = [
    (spec, usage, algorithm)
    for spec, facts in SPECS.items()
    for usage in facts.usages
    for algorithm in fitting(spec)
    if spec not in (KeySpec.RSA_3072, KeySpec.RSA_4096) or (usage, algorithm) == (facts.usages[0], TWO_STEP)
]
ONE_STEP = WrappingAlgorithm.RSAES_OAEP_SHA_1
Accepted = list[bytes]


def material_of(spec: KeySpec) -> bytes:
    return pkcs8(peers.new_private_key(spec.value)) if SPECS[spec].is_asymmetric else os.urandom(SPECS[spec].bytes)


def usage_of(bench: Bench, algorithm: WrappingAlgorithm, spec: KeySpec) -> KeyUsage:
    try:
        return bench.keeper.wrapping_usage(algorithm, spec)
    except KmsError as error:
        assert (error.code, "WrappingAlgorithm" in error.message) == ("InvalidParameter", True)
        pytest.skip(error.message)


@pytest.fixture(scope="module")
def pair(bench: Bench) -> MaterialRef:
    return bench.new(KeySpec.RSA_2048, KeyUsage.UNWRAP)


def test_which_algorithms_fit_which_material(bench: Bench) -> None:
    for spec in SPECS:
        for algorithm in WrappingAlgorithm:
            fits = SPECS[spec].importable and (SPECS[spec].family is Family.AES or algorithm.two_step)
            try:
                usage = bench.keeper.wrapping_usage(algorithm, spec)
            except KmsError as error:
                assert error.code == "InvalidParameter"
                # What the token lacks is told by name. SoftHSM has no RSAES-OAEP with SHA-256; NSS takes no private keys into one role,
                # and makes up bytes where the padding of PKCS #1 v1.5 is wrong.
                lacks = {"hsm": algorithm.hash == "SHA-256", "nss": SPECS[spec].is_asymmetric or not algorithm.hash}.get(bench.kind)
                assert not fits or lacks
                if bench.kind == "hsm" and fits:
                    assert "RSA_AES_KEY_WRAP_SHA_1" in error.message
            else:
                assert (fits, usage) == (True, KeyUsage.UNWRAP)


@pytest.mark.parametrize(("spec", "usage", "algorithm"), IMPORTABLE)
def test_import(bench: Bench, pair: MaterialRef, spec: KeySpec, usage: KeyUsage, algorithm: WrappingAlgorithm) -> None:
    usage_of(bench, algorithm, spec)
    material, accepted = material_of(spec), Accepted()
    refs = [bench.ref(spec, usage, imported=True) for _ in range(2)]
    facts = [bench.keeper.unwrap(ref, pair, algorithm, wrap(pair.public_key, algorithm, material), accepted.append) for ref in refs]
    assert accepted[0] == accepted[1]  # equal material, equal check value
    assert material not in accepted
    assert all(isinstance(value, str | int | bool) for value in facts[0].values())
    if bench.keeper.level is ProtectionLevel.HSM:
        told = {"sensitive": True, "extractable": False, "always_sensitive": False, "never_extractable": False, "unwrapped_in": "token"}
        assert {name: facts[0].get(name) for name in told} == told
        assert facts[0].get("local") is (None if bench.kind == "nss" else False)
        assert "key_gen_mechanism" not in facts[0]
    ref = with_public(refs[0], facts[0])
    for keeper in (bench.keeper, bench.again()):
        assert ref.material_id in keeper.inventory().materials
        key = keeper.load(ref)
        if SPECS[spec].is_asymmetric:
            assert ref.public_key == peers.spki(serialization.load_der_private_key(material, None, unsafe_skip_rsa_key_validation=True))
            assert works(key, ref)
        else:
            header = header_of(ref)
            blob = key.encrypt(header, header, b"x")  # type: ignore[union-attr]
            twin = keeper.load(refs[1])
            assert twin.decrypt(HEADER_BYTES, header, blob) == b"x"  # type: ignore[union-attr]
            assert FakeKey(FakeKeeper(FakeToken()), ref.material_id, material, ref.suite).decrypt(HEADER_BYTES, header, blob) == b"x"
    for one in refs:
        bench.keeper.destroy(one.material_id)


def works(key: object, ref: MaterialRef) -> bool:
    """The key does what its public half says."""
    if ref.usage is KeyUsage.SIGN_VERIFY:
        signing = [facts for facts in SIGNING.values() if ref.spec in facts.specs]
        digests = [os.urandom(HASH_BYTES[facts.hash]) for facts in signing]
        return all(
            PUBLIC.verify(ref.public_key, facts, digest, key.sign(facts, digest))  # type: ignore[attr-defined]
            for facts, digest in zip(signing, digests, strict=True)
        )
    for facts in ENCRYPTION.values():
        opened = key.decrypt_secret(facts, PUBLIC.encrypt(ref.public_key, facts, b"x"))  # type: ignore[attr-defined]
        if opened.reveal() != b"x":
            return False
    return True


def bad_wraps() -> dict[str, Callable[[bytes], tuple[KeySpec, WrappingAlgorithm, bytes]]]:
    aes, one, two = KeySpec.AES_256, ONE_STEP, TWO_STEP
    v15 = WrappingAlgorithm.RSAES_PKCS1_V1_5
    p256, rsa2048 = material_of(KeySpec.EC_P256), material_of(KeySpec.RSA_2048)
    key = os.urandom(32)

    def of(spec: KeySpec, algorithm: WrappingAlgorithm, material: bytes):  # type: ignore[no-untyped-def]
        return lambda public: (spec, algorithm, wrap(public, algorithm, material))

    def changed(spec: KeySpec, algorithm: WrappingAlgorithm, material: bytes, at: int):  # type: ignore[no-untyped-def]
        def make(public: bytes) -> tuple[KeySpec, WrappingAlgorithm, bytes]:
            blob = bytearray(wrap(public, algorithm, material))
            blob[at] ^= 1
            return spec, algorithm, bytes(blob)

        return make

    def cut(spec: KeySpec, algorithm: WrappingAlgorithm, material: bytes, end: int | None):  # type: ignore[no-untyped-def]
        return lambda public: (spec, algorithm, wrap(public, algorithm, material)[:end])

    return {
        **{f"one step, {size} bytes": of(aes, one, os.urandom(size)) for size in (1, 15, 16, 24, 31, 33, 48, 64)},
        **{f"PKCS1, {size} bytes": of(aes, v15, os.urandom(size)) for size in (16, 24, 31, 33)},
        **{f"two steps, {size} bytes": of(aes, two, os.urandom(size)) for size in (1, 16, 24, 25, 31, 33, 40, 64)},
        "nothing": lambda public: (aes, one, b""),
        "no modulus": cut(aes, one, key, -1),
        "longer than a modulus": lambda public: (aes, one, wrap(public, one, key) + b"\0"),
        "zeros": lambda public: (aes, one, bytes(256)),
        "ones": lambda public: (aes, one, b"\xff" * 256),
        "another hash": lambda public: (aes, one, wrap(public, WrappingAlgorithm.RSAES_OAEP_SHA_256, key)),
        "another padding": lambda public: (aes, v15, wrap(public, one, key)),
        "a changed bit": changed(aes, one, key, 200),
        "a changed bit of the KEK": changed(aes, two, key, 200),
        "a changed bit of the KWP": changed(aes, two, key, -1),
        "a short KWP": cut(aes, two, key, -8),
        "no KWP": cut(aes, two, key, 256),
        "no KEK": lambda public: (aes, two, wrap(public, two, key)[256:]),
        "a KEK that is no AES key": lambda public: (aes, two, wrap(public, one, os.urandom(20)) + wrap(public, two, key)[256:]),
        "an AES key as a private key": of(KeySpec.EC_P256, two, key),
        "a private key as an AES key": of(aes, two, p256),
        "another curve": of(KeySpec.EC_P256, two, material_of(KeySpec.EC_P256K)),
        "a longer curve": of(KeySpec.EC_P256, two, material_of(KeySpec.EC_P384)),
        "EC for RSA": of(KeySpec.RSA_2048, two, p256),
        "RSA for EC": of(KeySpec.EC_P256, two, rsa2048),
        "another size of RSA": of(KeySpec.RSA_3072, two, rsa2048),
        "an odd size of RSA": of(KeySpec.RSA_2048, two, pkcs8(rsa.generate_private_key(65537, 2056))),
        "Ed25519": of(KeySpec.EC_P256, two, pkcs8(ed25519.Ed25519PrivateKey.generate())),
        "a cut PKCS#8": of(KeySpec.EC_P256, two, p256[:-9]),
    }


BAD = bad_wraps()


@pytest.mark.parametrize("case", BAD)
def test_bad_material_is_refused_with_one_text_and_leaves_nothing(bench: Bench, pair: MaterialRef, case: str) -> None:
    spec, algorithm, wrapped = BAD[case](pair.public_key)
    usage_of(bench, algorithm, spec)
    before, accepted = bench.keeper.inventory(), Accepted()
    with pytest.raises(KmsError) as caught:
        bench.keeper.unwrap(bench.ref(spec, imported=True), pair, algorithm, wrapped, accepted.append)
    assert str(caught.value) == str(bad_material())
    assert not accepted
    assert bench.keeper.inventory() == before


@pytest.mark.parametrize("spec", [KeySpec.AES_256, KeySpec.EC_P256, KeySpec.RSA_2048])
def test_a_refusal_by_accept_leaves_nothing(bench: Bench, pair: MaterialRef, spec: KeySpec) -> None:
    usage_of(bench, TWO_STEP, spec)
    before = bench.keeper.inventory()
    for refusal in (AlreadyHeld(), KmsError("InvalidKeyMaterial", "not the one")):

        def refuse(_: bytes, refusal: Exception = refusal) -> None:
            assert bench.keeper.inventory() == before
            raise refusal

        wrapped = wrap(pair.public_key, TWO_STEP, material_of(spec))
        with pytest.raises(type(refusal)) as caught:
            bench.keeper.unwrap(bench.ref(spec, imported=True), pair, TWO_STEP, wrapped, refuse)
        assert caught.value is refusal
        assert bench.keeper.inventory() == before


def test_one_id_is_used_once_and_a_pair_that_is_gone_is_unavailable(bench: Bench, pair: MaterialRef) -> None:
    ref = bench.ref(imported=True)
    wrapped = wrap(pair.public_key, ONE_STEP, os.urandom(32))
    bench.keeper.unwrap(ref, pair, ONE_STEP, wrapped, lambda _: None)
    if bench.kind != "nss":
        assert code(partial(bench.keeper.unwrap, ref, pair, ONE_STEP, wrapped, lambda _: None)) == "Rejected.Unavailable"
    bench.keeper.destroy(ref.material_id)
    gone = bench.new(KeySpec.RSA_2048, KeyUsage.UNWRAP)
    bench.keeper.destroy(gone.material_id)
    wrapped = wrap(gone.public_key, ONE_STEP, os.urandom(32))
    assert code(partial(bench.keeper.unwrap, ref, gone, ONE_STEP, wrapped, lambda _: None)) == "Rejected.Unavailable"


@pytest.mark.parametrize("spec", [KeySpec.RSA_3072, KeySpec.RSA_4096])
def test_longer_pairs(bench: Bench, spec: KeySpec) -> None:
    pair = bench.new(spec, KeyUsage.UNWRAP)
    for algorithm in (ONE_STEP, TWO_STEP):
        ref = bench.ref(imported=True)
        facts = bench.keeper.unwrap(ref, pair, algorithm, wrap(pair.public_key, algorithm, os.urandom(32)), lambda _: None)
        assert facts["value_len"] == 32
        assert bench.keeper.load(ref)
