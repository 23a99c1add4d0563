"""One suite for every keeper: the fake, SoftHSM, software material under a root key file and under a root key in the token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from custody_helpers import MemoryTable, fast_directory, header_of, new_ref, open_keeper

from kmscore.custody import _p11
from kmscore.custody.fake import FakeKeeper, FakeToken
from kmscore.custody.port import Keeper, MaterialRef
from kmscore.custody.software import SoftwareKeeper, load_or_create_root_file
from kmscore.domain.specs import HEADER_BYTES, NONCE_BYTES, SPECS, TAG_BYTES, KeySpec, ProtectionLevel, Suite
from kmscore.errors import KmsError

AAD = b"associated data"


@dataclass
class Bench:
    """A keeper and a way to open the same custody once more, as another process would."""

    keeper: Keeper
    again: Callable[[], Keeper]

    def new(self, spec: KeySpec = KeySpec.AES_256) -> MaterialRef:
        ref = new_ref(self.keeper.suite_for(spec), spec)
        self.keeper.generate(ref)
        return ref


def _fake(home: Path, stack: ExitStack) -> Bench:
    token = FakeToken()
    return Bench(FakeKeeper(token), lambda: FakeKeeper(token))


def _hsm(home: Path, stack: ExitStack) -> Bench:
    def open_one() -> Keeper:
        keeper = open_keeper(home)
        stack.callback(keeper.close)
        return keeper

    return Bench(open_one(), open_one)


def _software(home: Path, stack: ExitStack) -> Bench:
    root, table = load_or_create_root_file(home / "root.key", may_create=True), MemoryTable()
    return Bench(
        SoftwareKeeper(table, root),
        lambda: SoftwareKeeper(table, load_or_create_root_file(home / "root.key", may_create=False)),
    )


def _software_in_token(home: Path, stack: ExitStack) -> Bench:
    token, table = _hsm(home, stack).keeper, MemoryTable()
    ref = new_ref()
    token.generate(ref)
    return Bench(SoftwareKeeper(table, token.load(ref), ref.material_id), lambda: SoftwareKeeper(table, token.load(ref), ref.material_id))


KINDS = {"fake": _fake, "hsm": _hsm, "software": _software, "software-in-token": _software_in_token}


@pytest.fixture(scope="module", params=KINDS)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with fast_directory() as directory, ExitStack() as stack:
        yield KINDS[request.param](directory, stack)


def _code(call: Callable[[], object]) -> str:
    with pytest.raises(KmsError) as caught:
        call()
    return caught.value.code


@pytest.mark.parametrize("spec", KeySpec)
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
    assert bench.keeper.suite_for(KeySpec.AES_256) is Suite.XAES_256_GCM
    assert bench.keeper.suite_for(KeySpec.AES_192) is Suite.AES_GCM
    assert bench.keeper.suite_for(KeySpec.AES_128) is Suite.AES_GCM


def test_a_spec_it_cannot_hold_is_refused_by_name(bench: Bench) -> None:
    with pytest.raises(KmsError, match="KeySpec") as caught:
        bench.keeper.suite_for("RSA_2048")  # type: ignore[arg-type]
    assert caught.value.code == "InvalidParameter"


def test_facts_are_flat_and_hold_no_material(bench: Bench) -> None:
    ref = new_ref()
    facts = bench.keeper.generate(ref)
    assert facts
    assert all(isinstance(name, str) and isinstance(value, str | int | bool) for name, value in facts.items())
    assert facts["value_len"] == SPECS[ref.spec].material_bytes
    if bench.keeper.level is ProtectionLevel.HSM:
        residency = ("sensitive", "extractable", "local", "always_sensitive", "never_extractable", "key_gen_mechanism")
        assert [facts[name] for name in residency] == [True, False, True, True, True, "CKM_AES_KEY_GEN"]


@pytest.mark.parametrize("spec", [KeySpec.AES_256, KeySpec.AES_128])
def test_every_change_is_refused_with_the_one_opaque_error(bench: Bench, spec: KeySpec) -> None:
    ref, other = bench.new(spec), bench.new(spec)
    key, header = bench.keeper.load(ref), header_of(ref)
    blob = key.encrypt(header, header + AAD, b"plaintext")
    for at in (HEADER_BYTES, HEADER_BYTES + NONCE_BYTES[ref.suite] - 1, HEADER_BYTES + NONCE_BYTES[ref.suite], len(blob) - 1):
        changed = bytearray(blob)
        changed[at] ^= 0x80
        assert _code(partial(key.decrypt, HEADER_BYTES, header + AAD, changed)) == "InvalidParameter"
        assert key.decrypt(HEADER_BYTES, header + AAD, blob) == b"plaintext"
    assert _code(lambda: key.decrypt(HEADER_BYTES, header + b"other", blob)) == "InvalidParameter"
    assert _code(lambda: bench.keeper.load(other).decrypt(HEADER_BYTES, header + AAD, blob)) == "InvalidParameter"
    for size in (0, HEADER_BYTES, HEADER_BYTES + NONCE_BYTES[ref.suite] + TAG_BYTES - 1):
        assert _code(partial(key.decrypt, HEADER_BYTES, header + AAD, blob[:size])) == "InvalidParameter"


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
    assert _code(lambda: bench.keeper.load(ref)) == "Rejected.Unavailable"


def test_destroy_is_repeatable_and_absent_is_success(bench: Bench) -> None:
    ref, kept = bench.new(), bench.new()
    for _ in range(3):
        bench.keeper.destroy(ref.material_id)
    bench.keeper.destroy(bytes(16))
    assert _code(lambda: bench.keeper.load(ref)) == "Rejected.Unavailable"
    found = bench.keeper.inventory()
    assert ref.material_id not in found.materials
    assert kept.material_id in found.materials
    assert found.foreign == () or bench.keeper.level is ProtectionLevel.HSM


def test_material_that_was_never_made_is_unavailable(bench: Bench) -> None:
    assert _code(lambda: bench.keeper.load(new_ref())) == "Rejected.Unavailable"
    assert _code(lambda: bench.keeper.load(new_ref(Suite.AES_GCM, KeySpec.AES_128))) == "Rejected.Unavailable"


def test_one_id_is_used_once(bench: Bench) -> None:
    ref = bench.new()
    assert _code(lambda: bench.keeper.generate(ref)) == "Rejected.Unavailable"
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
        assert _code(partial(key.encrypt, header, header, b"x")) == "Rejected.Unavailable"
        assert _code(partial(key.decrypt, HEADER_BYTES, header, blob)) == "Rejected.Unavailable"
        # The material is as it was.
        assert bench.keeper.load(ref).decrypt(HEADER_BYTES, header, blob) == b"x"


def test_sweep_touches_nothing_that_has_a_name(bench: Bench) -> None:
    ref = bench.new()
    before = bench.keeper.inventory().materials
    assert bench.keeper.sweep() == 0
    assert bench.keeper.inventory().materials == before
    assert bench.keeper.load(ref)
