"""What a C_GenerateKey leaves when it is killed or refused, and the sweep (RELIABILITY 1.1 facts 7-9): SoftHSM's real crash states."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import peers
import pytest
from custody_helpers import STRACE, child, fast_directory, header_of, new_ref, opened, run_child, sample, syscalls_after_mark
from pkcs11 import Attribute, KeyType, Mechanism
from pkcs11.exceptions import PKCS11Error

from kmscore.custody import templates
from kmscore.custody.fragments import find_fragments
from kmscore.custody.hsm import HsmKeeper
from kmscore.custody.locks import token_lock
from kmscore.custody.port import AeadKey, Inventory, MacKey, MaterialRef, PrivateKey
from kmscore.custody.templates import Role
from kmscore.domain.algorithms import HASH_BYTES, WrappingAlgorithm, signing_facts
from kmscore.domain.specs import SPECS, KeySpec, KeyUsage, Suite
from kmscore.errors import KmsError

GENERATE = """
from kmscore.custody.port import MaterialRef
from kmscore.domain.algorithms import WrappingAlgorithm
from kmscore.domain.specs import SPECS, KeySpec, Suite
spec = KeySpec(sys.argv[3]) if len(sys.argv) > 3 else KeySpec.AES_256
suite = Suite.XAES_256_GCM if spec is KeySpec.AES_256 else Suite.NONE
imported = len(sys.argv) > 4
ref = MaterialRef(bytes.fromhex(sys.argv[2]), spec, suite, SPECS[spec].usages[0], imported)
keeper = open_keeper(home, material_known=True)
if imported:
    pair, wrapped = MaterialRef(bytes.fromhex(sys.argv[4]), KeySpec.RSA_2048, Suite.NONE, "UNWRAP"), bytes.fromhex(sys.argv[5])
    mark("generate")
    keeper.unwrap(ref, pair, WrappingAlgorithm.RSA_AES_KEY_WRAP_SHA_1, wrapped, lambda check_value: None)
else:
    mark("generate")
    keeper.generate(ref)
mark("generated")
keeper.close()
"""
# What is made, and whether it is imported.
MADE = [
    *((KeySpec.AES_256, False), (KeySpec.EC_P256, False), (KeySpec.RSA_2048, False), (KeySpec.HMAC_256, False)),
    *((KeySpec.AES_256, True), (KeySpec.EC_P256, True), (KeySpec.RSA_2048, True)),
]
CHANGES = ("ftruncate", "write", "openat")
POINTS = 20  # of an AES key; of all else fewer

needs_strace = pytest.mark.skipif(STRACE is None, reason="needs strace")


@pytest.fixture
def home() -> Iterator[Path]:
    with fast_directory() as path:
        yield path / "home"


def _files(home: Path) -> Path:
    (directory,) = (home / "tokens").iterdir()
    return directory


def _works(keeper: HsmKeeper, ref: MaterialRef) -> bool:
    key, header = keeper.load(ref), header_of(ref)
    if SPECS[ref.spec].is_asymmetric:
        facts = signing_facts(ref.spec)
        return len(cast(PrivateKey, key).sign(facts, bytes(HASH_BYTES[facts.hash]))) > 64
    if ref.suite is Suite.NONE:
        return len(cast(MacKey, key).mac(b"x")) == 32
    aead = cast(AeadKey, key)
    return aead.decrypt(19, header, aead.encrypt(header, header, b"x")) == b"x"


@needs_strace
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("spec", "imported"), MADE, ids=lambda value: getattr(value, "name", {True: "imported", False: "generated"}.get(value))
)
def test_killed_at_any_system_call_of_a_making(home: Path, spec: KeySpec, imported: bool) -> None:
    log = home.parent / "log"
    pair = new_ref(Suite.NONE, KeySpec.RSA_2048, KeyUsage.UNWRAP)
    with opened(home) as keeper:
        kept, kept_files = new_ref(), 3 if imported else 2
        keeper.generate(kept)
        arguments = [spec.value]
        if imported:
            public = bytes.fromhex(str(keeper.generate(pair)["public_key"]))
            material = peers.pkcs8(peers.new_private_key(spec.value)) if SPECS[spec].is_asymmetric else os.urandom(32)
            arguments += [pair.material_id.hex(), peers.wrap(public, WrappingAlgorithm.RSA_AES_KEY_WRAP_SHA_1, material).hex()]
        before = keeper.inventory().materials
    whole = os.urandom(16)
    trace = ["-e", f"trace={','.join(CHANGES)}", "-o", str(log)]
    first = run_child(GENERATE, home, whole.hex(), *arguments, strace=trace)
    assert first.returncode == 0, first.stderr
    points = sample(syscalls_after_mark(log, "generate", CHANGES), POINTS if spec is KeySpec.AES_256 and not imported else POINTS // 2)
    ids = [os.urandom(16) for _ in points]

    def kill_at(point: tuple[str, int], material_id: bytes) -> int:
        options = ["-e", f"trace={point[0]}", "-e", f"inject={point[0]}:signal=KILL:when={point[1]}", "-o", "/dev/null"]
        return run_child(GENERATE, home, material_id.hex(), *arguments, strace=options).returncode

    with ThreadPoolExecutor(2) as pool:
        statuses = list(pool.map(kill_at, points, ids))
    assert all(status in (-signal.SIGKILL, 128 + signal.SIGKILL) for status in statuses)

    ref = MaterialRef(whole, spec, new_ref().suite if spec is KeySpec.AES_256 else Suite.NONE, SPECS[spec].usages[0], imported)
    with opened(home, material_known=True) as keeper:
        left = find_fragments(_files(home))
        named = keeper.inventory().materials  # what bears an id is no business of the sweep, however broken
        assert left
        assert len(keeper.inventory().foreign) == len(left)
        assert keeper.sweep() == len(left)
        assert keeper.inventory() == Inventory(named, ())
        # What the reconciler does with every open intent: destroy by id. Then nothing is left but what was whole.
        for material_id in ids:
            keeper.destroy(material_id)
        assert keeper.inventory().materials == {*before, whole}
        assert _works(keeper, kept)
        assert _works(keeper, ref)
    objects = [path for path in _files(home).glob("*.object") if path.name != "token.object"]
    assert len(objects) == kept_files
    assert {path.with_suffix(".lock") for path in objects} == {path for path in _files(home).glob("*.lock") if path.name != "token.lock"}


@needs_strace
def test_an_object_that_is_half_made_but_named_cannot_be_used_and_is_destroyed_by_id(home: Path) -> None:
    log = home.parent / "log"
    with opened(home):
        pass
    assert run_child(GENERATE, home, os.urandom(16).hex(), strace=["-e", "trace=ftruncate,write", "-o", str(log)]).returncode == 0
    # The last truncation comes after the template was written and before the value is.
    name, number = [point for point in syscalls_after_mark(log, "generate", ("ftruncate", "write")) if point[0] == "ftruncate"][-1]
    ref = new_ref()
    run_child(GENERATE, home, ref.material_id.hex(), strace=["-e", f"trace={name}", "-e", f"inject={name}:signal=KILL:when={number}"])
    with opened(home, material_known=True) as keeper:
        assert ref.material_id in keeper.inventory().materials
        with pytest.raises(KmsError):
            _works(keeper, ref)
        assert keeper.sweep() == 0
        expected = templates.expected_of(ref, Role.DERIVE, "test")
        assert "LOCAL" in templates.differences(keeper.attributes(ref), expected, templates.Dialect())
        keeper.destroy(ref.material_id)
        assert keeper.inventory() == Inventory(frozenset({*keeper.inventory().materials} - {ref.material_id}), ())


@needs_strace
def test_a_destruction_that_failed_is_never_called_done(home: Path) -> None:
    """After a failed unlink SoftHSM hides the object from this process only: an empty find there proves nothing."""
    with opened(home) as keeper:
        ref = new_ref()
        keeper.generate(ref)
    code = """
from kmscore.errors import KmsError
keeper = open_keeper(home, material_known=True)
for _ in range(3):
    try:
        keeper.destroy(bytes.fromhex(sys.argv[2]))
    except KmsError as error:
        print(error.code)
print(len(keeper.inventory().materials))
keeper.close()
keeper = open_keeper(home, material_known=True)
print(len(keeper.inventory().materials))
keeper.destroy(bytes.fromhex(sys.argv[2]))
print(len(keeper.inventory().materials))
"""
    inject = ["-P", str(_object(home)), "-e", "trace=unlink,unlinkat", "-e", "inject=unlink,unlinkat:error=EIO:when=1", "-o", "/dev/null"]
    answer = run_child(code, home, ref.material_id.hex(), strace=inject)
    assert answer.stdout.split() == ["ServiceUnavailableTemporary"] * 3 + ["0", "1", "0"], answer.stderr
    with opened(home) as keeper:
        assert keeper.inventory() == Inventory(frozenset(), ())


@needs_strace
@pytest.mark.timeout(120)
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_a_write_that_fails_is_noticed(home: Path, error: str) -> None:
    """SoftHSM does not look at what its writes answer. Whatever is reported as made is whole for another process."""
    log = home.parent / "log"
    with opened(home):
        pass
    assert run_child(GENERATE, home, os.urandom(16).hex(), strace=["-e", "trace=write", "-o", str(log)]).returncode == 0
    points = syscalls_after_mark(log, "generate", ("write",))
    for name, number in [*sample(points[:-4], 3), *points[-4:]]:
        ref = new_ref()
        inject = ["-e", f"trace={name}", "-e", f"inject={name}:error={error}:when={number}", "-o", "/dev/null"]
        said = run_child(GENERATE, home, ref.material_id.hex(), strace=inject).returncode
        with opened(home, material_known=True) as keeper:
            assert said != 0 or _works(keeper, ref)
            keeper.destroy(ref.material_id)
            keeper.sweep()
            assert ref.material_id not in keeper.inventory().materials
            assert keeper.inventory().foreign == ()


def test_nothing_is_made_on_a_disk_that_is_nearly_full(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(home) as keeper:
        ref = new_ref()
        keeper.generate(ref)
        monkeypatch.setattr("kmscore.custody.objects.free_bytes", lambda path: 1 << 20)
        with pytest.raises(KmsError) as caught:
            keeper.generate(new_ref())
        assert caught.value.code == "ServiceUnavailableTemporary"
        assert _works(keeper, ref)
        keeper.destroy(ref.material_id)
        assert keeper.inventory() == Inventory(frozenset(), ())


@needs_strace
def test_killed_inside_a_destruction(home: Path) -> None:
    code = """
keeper = open_keeper(home)
keeper.destroy(bytes.fromhex(sys.argv[2]))
"""
    for number in (1, 2):  # the object, its lock
        with opened(home) as keeper:
            ref = new_ref()
            keeper.generate(ref)
        path = _object(home)
        files = ["-P", str(path), "-P", str(path.with_suffix(".lock"))]
        kill = [*files, "-e", "trace=unlink,unlinkat", "-e", f"inject=unlink,unlinkat:signal=KILL:when={number}", "-o", "/dev/null"]
        assert run_child(code, home, ref.material_id.hex(), strace=kill).returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
        with opened(home) as keeper:
            assert keeper.sweep() == 0
            keeper.destroy(ref.material_id)
            assert keeper.inventory() == Inventory(frozenset(), ())
        assert {path.name for path in _files(home).iterdir()} == {"token.object", "token.lock", "generation"}


def test_a_refused_generation_leaves_a_fragment_that_is_swept(home: Path) -> None:
    with opened(home) as keeper:
        ref = new_ref()
        template = {Attribute.LOCAL: True, **templates.template_for(ref, Role.DERIVE, "test")}
        with keeper._objects.session() as session, pytest.raises(PKCS11Error):
            session.generate_key(KeyType.AES, 256, mechanism=Mechanism.AES_KEY_GEN, template=template)
        assert len(find_fragments(_files(home))) == 1
        assert keeper.sweep() == 1
        assert keeper.inventory() == Inventory(frozenset(), ())


def test_only_nameless_files_that_stay_as_they_are_are_swept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(home) as keeper:
        ref = new_ref()
        keeper.generate(ref)
        whole = _object(home).read_bytes()
        files = _files(home)
        (files / "dead.object").write_bytes(b"")
        (files / "dead.lock").write_bytes(b"")
        (files / "stray.lock").write_bytes(b"")  # a destruction died between its two unlinks
        (files / "eight.object").write_bytes(bytes(8))
        (files / "growing.object").write_bytes(b"")  # a foreign tool is making it
        (files / "cut.object").write_bytes(whole[:-3])  # damage that no kill makes: for a person
        (files / "notes.txt").write_bytes(b"")

        def grow(seconds: float) -> None:
            (files / "growing.object").write_bytes(bytes(8))
            os.utime(files / "growing.object", ns=(1, 1))

        monkeypatch.setattr("kmscore.custody.fragments.time.sleep", grow)
        assert keeper.sweep() == 2
        names = {path.name for path in files.iterdir()}
        assert {"growing.object", "cut.object", "notes.txt", "token.object", "token.lock"} <= names
        assert not {"dead.object", "dead.lock", "eight.object", "stray.lock"} & names
        assert _works(keeper, ref)


def test_an_empty_token_object_is_never_swept(home: Path) -> None:
    with opened(home) as keeper:
        whole = (_files(home) / "token.object").read_bytes()
        (_files(home) / "token.object").write_bytes(b"")
        assert keeper.sweep() == 0
        assert (_files(home) / "token.object").exists()
        (_files(home) / "token.object").write_bytes(whole)


def test_the_sweep_waits_for_mutations_and_mutations_for_the_sweep(home: Path) -> None:
    with opened(home) as keeper:
        order: list[str] = []
        (_files(home) / "dead.object").write_bytes(b"")
        with token_lock(home, shared=True), token_lock(home, shared=True):  # two mutations at once
            sweeper = threading.Thread(target=lambda: order.append(f"swept {keeper.sweep()}"))
            sweeper.start()
            with pytest.raises(KmsError), token_lock(home, shared=False, wait_seconds=0.05):
                pass
            order.append("mutated")
        sweeper.join(30)
        assert order == ["mutated", "swept 1"]
        with token_lock(home, shared=False), pytest.raises(KmsError) as caught, token_lock(home, shared=True, wait_seconds=0.05):
            pass
        assert caught.value.code == "ServiceUnavailableTemporary"


@pytest.mark.timeout(60)
def test_sweeping_beside_two_processes_that_generate_hurts_nobody(home: Path) -> None:
    code = """
keeper = open_keeper(home)
for _ in range(40):
    ref = new_ref()
    keeper.generate(ref)
    print(ref.material_id.hex())
keeper.close()
"""
    with opened(home) as keeper:
        processes = [child(code, home) for _ in range(2)]
        while any(process.poll() is None for process in processes):
            keeper.sweep()
            time.sleep(0.02)
        answers = [process.communicate() for process in processes]
        made = {bytes.fromhex(line) for out, _ in answers for line in out.split()}
        assert len(made) == 80, answers
        assert keeper.inventory().materials == made


def _object(home: Path) -> Path:
    (path,) = (path for path in _files(home).glob("*.object") if path.name != "token.object")
    return path


@pytest.mark.slow
def test_an_object_whose_writing_was_cut_short_is_not_acknowledged(tmp_path: Path) -> None:
    """SoftHSM answers from memory: without a look at the file, such a key works until the next start, and is lost then."""
    make = """
import resource, sys, kmscore
from kmscore.domain.specs import ProtectionLevel
with kmscore.open_kms(sys.argv[1], ticker=False) as kms:
    keeper = kms._s.reconciler._keepers[ProtectionLevel.HSM]
    generate = type(keeper).generate
    def limited(ref, size=None):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        try:
            return generate(keeper, ref)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    for size in (16, 100, 200, 300, 400, 500, 600, 700, 4096):
        keeper.generate = lambda ref, size=size: limited(ref, size)
        try:
            print(kms.create_key(protection_level="HSM").key_id)
        except kmscore.KmsError:
            print("refused")
"""
    use = """
import sys, kmscore
with kmscore.open_kms(sys.argv[1], ticker=False) as kms:
    for key in sys.argv[2:]:
        kms.encrypt(key, b"x")
    report = kms.reconcile()
    assert report.missing == (), report
"""
    home = str(tmp_path / "home")
    made = subprocess.run([sys.executable, "-c", make, home], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    answers = made.stdout.split()
    assert answers[0] == "refused"
    assert answers[-1].startswith("key-")
    used = subprocess.run([sys.executable, "-c", use, home, *(key for key in answers if key != "refused")], capture_output=True, text=True)
    assert used.returncode == 0, used.stderr
