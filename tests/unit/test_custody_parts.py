"""The parts of custody that need no token: files, locks, SoftHSM's file format, the fake and its faults, the root key file, the doctor."""

from __future__ import annotations

import json
import os
import struct
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from custody_helpers import MemoryTable, header_of, new_ref, settings_of
from hypothesis import given
from hypothesis import strategies as st

from kmscore import disk
from kmscore.custody import _p11, objectfile
from kmscore.custody.fake import POINTS, Crash, FakeKeeper, FakeToken
from kmscore.custody.fake_keys import xaes_subkey
from kmscore.custody.locks import hold, home_lock
from kmscore.custody.port import MaterialRef
from kmscore.custody.probe import probe
from kmscore.custody.software import SoftwareKeeper, load_or_create_root_file
from kmscore.domain.algorithms import WrappingAlgorithm
from kmscore.domain.specs import KeySpec, KeyUsage, Suite
from kmscore.errors import KmsError, SetupError
from kmscore.results import Finding

ALGORITHM = WrappingAlgorithm.RSAES_OAEP_SHA_1


def test_write_file_is_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    (tmp_path / ".secret.new").write_bytes(b"left by a kill, and longer")
    before = os.umask(0)
    try:
        for data in (b"first", b"2nd", b""):
            disk.write_file(path, data)
            assert path.read_bytes() == data
            assert path.stat().st_mode & 0o777 == 0o600
        disk.make_directory(tmp_path / "d")
        disk.make_directory(tmp_path / "d")
        assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)
    assert {entry.name for entry in tmp_path.iterdir()} == {"secret", "d"}


def test_a_lock_is_let_go_even_with_a_fork_around(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with hold(path, wait_seconds=0):
        child = os.fork()
        if child == 0:
            os.read(0, 0)
            threading.Event().wait(20)
            os._exit(0)
        with pytest.raises(KmsError) as caught, hold(path, wait_seconds=0.01):
            pass
        assert (caught.value.code, caught.value.retryable) == ("ServiceUnavailableTemporary", True)
    with hold(path, wait_seconds=0):  # though the child still has the description
        pass
    os.kill(child, 9)
    os.waitpid(child, 0)


def test_threads_exclude_each_other_and_readers_do_not(tmp_path: Path) -> None:
    inside, most = 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        with home_lock(tmp_path):
            with guard:
                inside += 1
                most = max(most, inside)
            with guard:
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    path = tmp_path / "lock"
    with hold(path, shared=True, wait_seconds=0), hold(path, shared=True, wait_seconds=0):
        pass


def _object(*attributes: tuple[int, int, bytes]) -> bytes:
    return struct.pack(">Q", 7) + b"".join(struct.pack(">QQ", kind_of, kind) + value for kind_of, kind, value in attributes)


def _text(data: bytes) -> bytes:
    return struct.pack(">Q", len(data)) + data


def test_object_files() -> None:
    nameless = _object((0, 2, struct.pack(">Q", 4)), (1, 1, b"\0"), (3, 3, _text(b"")), (0x102, 3, _text(b"")))
    assert objectfile.parse(nameless) == {0: 4, 1: False, 3: b"", 0x102: b""}
    for fragment in (b"", struct.pack(">Q", 1), nameless):
        assert objectfile.is_fragment(fragment)
    for named in ((1, 1, b"\1"), (3, 3, _text(b"label")), (0x102, 3, _text(b"id"))):
        assert not objectfile.is_fragment(_object((0, 2, struct.pack(">Q", 4)), named))
    assert not objectfile.is_fragment(nameless[:-1])
    assert not objectfile.is_fragment(b"abc")
    assert objectfile.is_nameless(_object((1, 1, b"\1")))
    assert objectfile.parse(_object((0x40000600, 5, struct.pack(">QQ", 1, 0x1104)))) == {0x40000600: struct.pack(">Q", 0x1104)}


def test_a_key_file_is_whole_with_its_last_attribute(tmp_path: Path) -> None:
    number = struct.pack(">Q", 3)
    parts = [(0, 2, number), (0x11, 3, _text(b"value")), (0x102, 3, _text(b"id")), (0x40000600, 5, struct.pack(">QQ", 1, 0x1041))]
    path = tmp_path / "x.object"
    assert objectfile.is_whole(path)  # its maker destroyed it
    whole = _object(*parts)
    path.write_bytes(whole)
    assert objectfile.is_whole(path)
    for size in range(len(whole)):  # between two attributes, too
        path.write_bytes(whole[:size])
        assert not objectfile.is_whole(path)
    for missing in (1, 2):
        path.write_bytes(_object(*(part for at, part in enumerate(parts) if at != missing)))
        assert not objectfile.is_whole(path)
    path.write_bytes(_object((0, 2, struct.pack(">Q", 1)), *parts[1:3]))  # a certificate of somebody's
    assert objectfile.is_whole(path)


@given(st.binary(max_size=400))
def test_object_files_of_any_bytes_are_no_tokens_and_no_crash(data: bytes) -> None:
    assert objectfile.parse_token(data) is None
    objectfile.parse(struct.pack(">Q", 1) + data)
    objectfile.is_fragment(data)


def test_the_xaes_of_the_fake_passes_the_published_vectors(vectors: Path) -> None:
    for vector in json.loads((vectors / "xaes-256-gcm.json").read_text())["vectors"]:
        nonce = vector["nonce_ascii"].encode()
        subkey = xaes_subkey(bytes.fromhex(vector["key"]), nonce)
        assert subkey.hex() == vector["derived_key"]
        sealed = AESGCM(subkey).encrypt(nonce[12:], vector["plaintext_ascii"].encode(), vector["aad_ascii"].encode())
        assert sealed.hex() == vector["ciphertext"]


def test_a_fake_crashes_at_every_step_and_the_token_remembers() -> None:
    """The loop that the engine's crash tests run: through once, then crash at each step, then start again on the same token."""

    def life(token: FakeToken) -> None:
        keeper = FakeKeeper(token)
        ref, imported = new_ref(), new_ref(imported=True)
        keeper.generate(ref)
        keeper.load(ref)
        keeper.destroy(ref.material_id)
        keeper.inventory()
        keeper.sweep()
        keeper.unwrap(imported, pair, ALGORITHM, wrapped, lambda _: None)

    def token_with_pair() -> FakeToken:
        token = FakeToken(objects={pair.material_id: made.objects[pair.material_id]})
        token.faults.clear()
        return token

    pair, made = new_ref(Suite.NONE, KeySpec.RSA_2048, KeyUsage.UNWRAP), FakeToken()
    public = bytes.fromhex(str(FakeKeeper(made).generate(pair)["public_key"]))
    wrapped = _p11.oaep_encrypt(public, ALGORITHM.hash, bytes(32))
    through = token_with_pair()
    life(through)
    assert len(through.faults.passed) == len(POINTS)
    assert set(through.faults.passed) == set(POINTS)
    left = {}
    for step, point in enumerate(through.faults.passed):
        token = token_with_pair()
        token.faults.crash_at_step(step)
        with pytest.raises(Crash):
            life(token)
        values = [thing.value is not None for material_id, thing in token.objects.items() if material_id != pair.material_id]
        left[point] = (token.fragments, values)
        restarted = FakeKeeper(token)
        for material_id in restarted.inventory().materials:
            restarted.destroy(material_id)
        assert restarted.sweep() == left[point][0]
        assert restarted.inventory().foreign == ()
    assert left["generate.before"] == (0, [])
    assert left["generate.fragment"] == (1, [])
    assert left["generate.half"] == (0, [False])
    assert left["generate.after"] == left["destroy.before"] == (0, [True])
    assert left["destroy.during"] == left["destroy.after"] == left["unwrap.before"] == (0, [])
    assert left["unwrap.after"] == (0, [True])


def test_a_fake_fails_stalls_and_stays_busy() -> None:
    token = FakeToken()
    keeper = FakeKeeper(token)
    seen: list[str] = []
    token.faults.at("generate.half", KmsError("ServiceUnavailableTemporary", "stop"))
    token.faults.at("generate.before", lambda: seen.append("stalled"), skip=1, times=2)
    ref = new_ref()
    with pytest.raises(KmsError):
        keeper.generate(ref)
    with pytest.raises(KmsError):
        keeper.load(ref)  # half-made
    for _ in range(3):
        keeper.generate(new_ref())
    assert seen == ["stalled"] * 2
    whole = new_ref()
    keeper.generate(whole)
    key = keeper.load(whole)
    token.busy.add(whole.material_id)
    assert not key.retire()
    token.busy.clear()
    assert key.retire()
    keeper.close()
    with pytest.raises(KmsError):
        keeper.load(whole)
    with pytest.raises(ValueError, match="point"):
        token.faults.at("nowhere", Crash())


def test_the_root_key_file(tmp_path: Path) -> None:
    path = tmp_path / "root.key"
    with pytest.raises(SetupError, match="backup"):
        load_or_create_root_file(path, may_create=False)
    header = bytes(19)
    blob = load_or_create_root_file(path, may_create=True).encrypt(header, header, b"x")
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_or_create_root_file(path, may_create=False).decrypt(19, header, blob) == b"x"
    for ending in (b"\n", b"\r", b"\0", b" "):  # a key may end with anything
        path.write_bytes(bytes(31) + ending + b"\n")
        assert load_or_create_root_file(path, may_create=True).suite == Suite.XAES_256_GCM
    for wrong in (b"", b"short\n", bytes(40)):
        path.write_bytes(wrong)
        with pytest.raises(SetupError):
            load_or_create_root_file(path, may_create=True)
    path.chmod(0o640)
    with pytest.raises(SetupError, match="chmod"):
        load_or_create_root_file(path, may_create=True)


def test_wrapped_material_is_bound_to_its_id_its_root_and_its_size(tmp_path: Path) -> None:
    table = MemoryTable()
    root = load_or_create_root_file(tmp_path / "root.key", may_create=True)
    keeper = SoftwareKeeper(table, root)
    one, two = new_ref(), new_ref()
    keeper.generate(one)
    keeper.generate(two)
    blob = table.rows[one.material_id]
    # docs/FORMAT.md, "Software material at rest": version, suite, content kind 2, no version id; nonce, material, tag.
    assert blob[:19] == bytes((1, 1, 2)) + bytes(16)
    assert len(blob) == 19 + 24 + 32 + 16
    assert root.decrypt(19, blob[:19] + b"kmscore software material" + one.material_id, blob)

    def refused(ref: MaterialRef, wrapped: bytes, by: SoftwareKeeper = keeper) -> None:
        table.rows[ref.material_id] = wrapped
        with pytest.raises(KmsError) as caught:
            by.load(ref)
        assert caught.value.code == "Rejected.Unavailable"

    refused(two, blob)  # swapped rows
    refused(one, blob[:-1] + bytes([blob[-1] ^ 1]))
    refused(one, bytes((1, 1, 0)) + blob[3:])
    refused(one, b"")
    refused(one, blob, SoftwareKeeper(table, root, bytes(15) + b"\1"))
    refused(one, blob, SoftwareKeeper(table, load_or_create_root_file(tmp_path / "other.key", may_create=True)))
    refused(MaterialRef(one.material_id, KeySpec.AES_128, Suite.AES_GCM), blob)
    table.rows[one.material_id] = blob
    header = header_of(one)
    assert keeper.load(one).encrypt(header, header, b"x")


def test_the_doctor_works_on_a_home_that_does_not_open(tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "home")
    assert any(finding.level == "warn" and "no home" in finding.what for finding in probe(settings, None))
    home = tmp_path / "home"
    (home / "tokens" / "6720f453-ef8a-6faa-f66e-3b1064d0ac6b").mkdir(parents=True)
    (home / "pin").write_bytes(b"1234")
    home.chmod(0o755)
    (home / "pin").chmod(0o644)
    found = probe(settings, None)
    assert all(isinstance(finding, Finding) for finding in found)
    failures = [finding for finding in found if finding.level == "fail"]
    assert any("pin has mode 0644" in finding.what and "chmod" in finding.do for finding in failures)
    assert any("damaged" in finding.what for finding in failures)
