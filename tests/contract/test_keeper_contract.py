"""One suite for every keeper: AES keys on the fake, SoftHSM, NSS, and software material under either kind of root key."""

from __future__ import annotations

from functools import partial

import pytest
from benches import Bench, code
from custody_helpers import header_of, new_ref

from kmscore.custody import _p11
from kmscore.custody.port import Facts
from kmscore.domain.specs import HEADER_BYTES, NONCE_BYTES, SPECS, TAG_BYTES, Family, KeySpec, KeyUsage, ProtectionLevel, Suite
from kmscore.errors import KmsError

AAD = b"associated data"
AES = [spec for spec in KeySpec if SPECS[spec].family is Family.AES]


@pytest.mark.parametrize("spec", AES)
def test_a_generated_key_opens_what_it_sealed(bench: Bench, spec: KeySpec) -> None:
    ref = bench.new(spec)
    key = bench.keeper.load(ref)
    assert key.suite == ref.suite
    header = header_of(ref)
    for plaintext in (b"", b"x", bytes(range(256)) * 24):
        blob = key.encrypt(header, header + AAD, plaintext)
        assert blob[:HEADER_BYTES] == header
        assert len(blob) == HEADER_BYTES + NONCE_BYTES[ref.suite] + len(plaintext) + TAG_BYTES
        assert key.decrypt(HEADER_BYTES, header + AAD, blob) == plaintext


def test_suites(bench: Bench) -> None:
    for spec in AES:
        suite = bench.keeper.suite_for(spec, KeyUsage.ENCRYPT_DECRYPT)
        assert suite is (Suite.XAES_256_GCM if spec is KeySpec.AES_256 else Suite.AES_GCM)


def test_a_spec_it_cannot_hold_is_refused_by_name(bench: Bench) -> None:
    for spec, usage in (
        ("RSA_1024", KeyUsage.SIGN_VERIFY),
        (KeySpec.AES_256, KeyUsage.SIGN_VERIFY),
        (KeySpec.AES_256, KeyUsage.UNWRAP),
        (KeySpec.EC_P256, KeyUsage.ENCRYPT_DECRYPT),
        (KeySpec.EC_P256, KeyUsage.UNWRAP),
        (KeySpec.HMAC_256, KeyUsage.SIGN_VERIFY),
        (KeySpec.RSA_2048, KeyUsage.GENERATE_VERIFY_MAC),
    ):
        with pytest.raises(KmsError, match="KeySpec") as caught:
            bench.keeper.suite_for(spec, usage)  # type: ignore[arg-type]
        assert caught.value.code == "InvalidParameter"


def test_facts_are_flat_and_hold_no_material(bench: Bench) -> None:
    ref = new_ref()
    facts = bench.keeper.generate(ref)
    assert facts
    assert all(isinstance(name, str) and isinstance(value, str | int | bool) for name, value in facts.items())
    assert facts["value_len"] == SPECS[ref.spec].bytes
    if bench.keeper.level is ProtectionLevel.HSM:
        assert not residency(facts) - {"local", "key_gen_mechanism"} if bench.kind == "nss" else not residency(facts)


def residency(facts: Facts) -> set[str]:
    """The names of those facts that do not say: generated here, and never anywhere else."""
    expected = {
        **dict.fromkeys(("sensitive", "local", "always_sensitive", "never_extractable"), True),
        "extractable": False,
        "key_gen_mechanism": "CKM_AES_KEY_GEN",
    }
    return {name for name, value in expected.items() if facts.get(name) != value}


@pytest.mark.parametrize("spec", [KeySpec.AES_256, KeySpec.AES_128])
def test_every_change_is_refused_with_the_one_opaque_error(bench: Bench, spec: KeySpec) -> None:
    ref, other = bench.new(spec), bench.new(spec)
    key, header = bench.keeper.load(ref), header_of(ref)
    blob = key.encrypt(header, header + AAD, b"plaintext")
    for at in (HEADER_BYTES, HEADER_BYTES + NONCE_BYTES[ref.suite] - 1, HEADER_BYTES + NONCE_BYTES[ref.suite], len(blob) - 1):
        changed = bytearray(blob)
        changed[at] ^= 0x80
        assert code(partial(key.decrypt, HEADER_BYTES, header + AAD, changed)) == "InvalidParameter"
        assert key.decrypt(HEADER_BYTES, header + AAD, blob) == b"plaintext"
    assert code(lambda: key.decrypt(HEADER_BYTES, header + b"other", blob)) == "InvalidParameter"
    assert code(lambda: bench.keeper.load(other).decrypt(HEADER_BYTES, header + AAD, blob)) == "InvalidParameter"
    for size in (0, HEADER_BYTES, HEADER_BYTES + NONCE_BYTES[ref.suite] + TAG_BYTES - 1):
        assert code(partial(key.decrypt, HEADER_BYTES, header + AAD, blob[:size])) == "InvalidParameter"


def test_batches_give_each_item_its_own_answer(bench: Bench) -> None:
    ref = bench.new()
    key, header = bench.keeper.load(ref), header_of(ref)
    plaintexts = [bytes([number]) * number for number in range(20)]
    blobs = key.encrypt_batch(header, header + AAD, plaintexts)
    assert all(isinstance(blob, bytes) for blob in blobs)
    assert len({blob[HEADER_BYTES : HEADER_BYTES + 24] for blob in blobs if isinstance(blob, bytes)}) == 20  # no nonce twice
    good = [blob for blob in blobs if isinstance(blob, bytes)]
    answers = key.decrypt_batch(HEADER_BYTES, header + AAD, [*good[:10], good[3][:-1] + bytes([good[3][-1] ^ 1]), *good[10:]])
    assert [answer for answer in answers if isinstance(answer, bytes)] == plaintexts
    assert isinstance(answers[10], KmsError)
    assert answers[10].code == "InvalidParameter"


def test_secrets_go_in_and_come_out_as_secrets(bench: Bench) -> None:
    ref = bench.new()
    key, header = bench.keeper.load(ref), header_of(ref)
    secret = _p11.Secret.random(32)
    opened = key.decrypt_secret(HEADER_BYTES, header + AAD, key.encrypt(header, header + AAD, secret))
    assert (opened.size, opened.reveal()) == (32, secret.reveal())
    opened.close()
    secret.close()


def test_another_process_sees_the_material_and_its_end(bench: Bench) -> None:
    ref = bench.new()
    header = header_of(ref)
    blob = bench.keeper.load(ref).encrypt(header, header + AAD, b"shared")
    other = bench.again()
    assert ref.material_id in other.inventory().materials
    assert other.load(ref).decrypt(HEADER_BYTES, header + AAD, blob) == b"shared"
    bench.keeper.destroy(ref.material_id)
    assert ref.material_id not in other.inventory().materials
    # A loaded key may outlive its material until it is retired (DESIGN section 9, eviction before destruction); a new load may not.
    assert code(lambda: bench.keeper.load(ref)) == "Rejected.Unavailable"


def test_destroy_is_repeatable_and_absent_is_success(bench: Bench) -> None:
    ref, kept = bench.new(), bench.new()
    for _ in range(3):
        bench.keeper.destroy(ref.material_id)
    bench.keeper.destroy(bytes(16))
    assert code(lambda: bench.keeper.load(ref)) == "Rejected.Unavailable"
    found = bench.keeper.inventory()
    assert ref.material_id not in found.materials
    assert kept.material_id in found.materials
    assert found.foreign == () or bench.keeper.level is ProtectionLevel.HSM


def test_material_that_was_never_made_is_unavailable(bench: Bench) -> None:
    assert code(lambda: bench.keeper.load(new_ref())) == "Rejected.Unavailable"
    assert code(lambda: bench.keeper.load(new_ref(Suite.AES_GCM, KeySpec.AES_128))) == "Rejected.Unavailable"


def test_one_id_is_used_once(bench: Bench) -> None:
    if bench.kind == "nss":
        pytest.skip("NSS puts a new object with a CKA_ID in the place of the old one: ids are random and used once, so that none is lost")
    ref = bench.new()
    assert code(lambda: bench.keeper.generate(ref)) == "Rejected.Unavailable"
    bench.keeper.destroy(ref.material_id)
    assert ref.material_id not in bench.keeper.inventory().materials


def test_a_retired_key_refuses_and_says_when_nothing_is_left(bench: Bench) -> None:
    for spec in (KeySpec.AES_256, KeySpec.AES_128):
        ref = bench.new(spec)
        key, header = bench.keeper.load(ref), header_of(ref)
        blob = key.encrypt(header, header, b"x")
        assert key.retire()
        assert key.retire()
        assert key.live == 0
        assert code(partial(key.encrypt, header, header, b"x")) == "Rejected.Unavailable"
        assert code(partial(key.decrypt, HEADER_BYTES, header, blob)) == "Rejected.Unavailable"
        # The material is as it was.
        assert bench.keeper.load(ref).decrypt(HEADER_BYTES, header, blob) == b"x"


def test_sweep_touches_nothing_that_has_a_name(bench: Bench) -> None:
    ref = bench.new()
    before = bench.keeper.inventory().materials
    assert bench.keeper.sweep() == 0
    assert bench.keeper.inventory().materials == before
    assert bench.keeper.load(ref)
