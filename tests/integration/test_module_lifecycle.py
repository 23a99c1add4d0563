"""One PKCS#11 library and one configuration per process: opened twice, opened elsewhere, forked, and left open at exit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pkcs11
import pytest
from custody_helpers import child, fast_directory, header_of, new_ref, open_keeper, opened, operators_softhsm, run_child, settings_of

from kmscore.custody import module
from kmscore.custody.objects import TokenObjects
from kmscore.custody.port import MaterialRef
from kmscore.custody.probe import probe
from kmscore.errors import KmsError, SetupError

USE = """
import threading, time
keeper = open_keeper(home)
ref = new_ref()
keeper.generate(ref)
key = keeper.load(ref)
header = bytes(19)
def forever(call):
    try:
        while True:
            call()
    except Exception as error:
        assert type(error).__name__ == "KmsError", error
def daemon(call):
    threading.Thread(target=forever, args=(call,), daemon=True).start()
"""
# How a process may end without having closed anything.
ENDS = {
    "as it is": "",
    "while threads encrypt": "[daemon(lambda: key.encrypt_batch(header, header, [b'x'] * 64)) for _ in range(3)]; time.sleep(0.2)",
    "while threads generate": "[daemon(lambda: keeper.generate(new_ref())) for _ in range(2)]; time.sleep(0.2)",
    "while threads enumerate": "[daemon(keeper.inventory) for _ in range(2)]; time.sleep(0.2)",
    "with an exception": "keep = [keeper, key]; raise SystemExit(0)",
    "in a fork": """
pid = os.fork()
if pid:
    assert os.waitpid(pid, 0)[1] == 0
    key.encrypt(header, header, b"x")
else:
    for call in (lambda: open_keeper(home), lambda: key.encrypt(header, header, b"x"), lambda: keeper.generate(new_ref())):
        try:
            call()
        except Exception as error:
            assert "fork" in str(error) or "closed" in str(error), error
        else:
            os._exit(1)
    keeper.close()
""",
    "in a fork after a close": """
keeper.close()
pid = os.fork()
if pid:
    assert os.waitpid(pid, 0)[1] == 0
keeper = open_keeper(home)
keeper.load(ref).encrypt(header, header, b"x")
""",
}


@pytest.fixture
def directory() -> Iterator[Path]:
    with fast_directory() as path:
        yield path


@pytest.mark.parametrize("end", ENDS)
def test_a_process_ends_well_without_a_close(directory: Path, end: str) -> None:
    answer = run_child(USE + ENDS[end], directory / "home")
    assert answer.returncode == 0, answer.stderr
    with opened(directory / "home") as keeper:
        assert keeper.sweep() == 0


def test_the_same_home_twice_another_only_after_the_last_close(directory: Path) -> None:
    first, second = open_keeper(directory / "a"), open_keeper(directory / "a")
    ref = new_ref()
    first.generate(ref)
    for keeper in (first, second):
        with pytest.raises(SetupError, match="one configuration per process"):
            open_keeper(directory / "b")
        assert second.load(ref)
        keeper.close()
        keeper.close()
    assert not module._open
    with pytest.raises(KmsError):
        first.generate(new_ref())
    with opened(directory / "b") as keeper:
        assert keeper.inventory().materials == frozenset()


def test_dozens_of_homes_one_after_the_other(directory: Path) -> None:
    serials = set()
    for number in range(24):
        with opened(directory / str(number % 12)) as keeper:
            ref = new_ref()
            keeper.generate(ref)
            header = header_of(ref)
            assert keeper.load(ref).encrypt(header, header, b"x")
            serials.add(keeper.token_serial)
    assert len(serials) == 12
    assert "SOFTHSM2_CONF" not in os.environ


THREADS = """
import random, threading
from kmscore.domain.specs import Suite
from kmscore.errors import KmsError
keeper = open_keeper(home)
failed, left = [], []
def work(seed):
    chance, mine = random.Random(seed), []
    try:
        for _ in range(12):
            ref = new_ref(chance.choice((Suite.XAES_256_GCM, Suite.AES_GCM)))
            keeper.generate(ref)
            mine.append(ref)
            for _ in range(3):
                used = chance.choice(mine)
                key = keeper.load(used)
                assert key.decrypt(19, bytes(19), key.encrypt(bytes(19), bytes(19), b"x")) == b"x"
                key.retire()
            if chance.random() < 0.5:
                gone = mine.pop()
                keeper.destroy(gone.material_id)
                try:
                    keeper.load(gone)
                    failed.append("loaded after its destruction")
                except KmsError as error:
                    assert error.code == "Rejected.Unavailable", error
            if chance.random() < 0.2:
                keeper.inventory()
                keeper.sweep()
    except Exception as error:
        failed.append(repr(error))
    left.extend(mine)
threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not failed, failed
for ref in left:
    keeper.load(ref).encrypt(bytes(19), bytes(19), b"x")
    print(ref.material_id.hex())
keeper.close()
"""


@pytest.mark.timeout(120)
def test_threads_of_several_processes_on_one_token(directory: Path) -> None:
    processes = [child(THREADS, directory / "home") for _ in range(3)]
    answers = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, answers
    with opened(directory / "home") as keeper:
        assert keeper.inventory().materials == {bytes.fromhex(line) for out, _ in answers for line in out.split()}
        assert keeper.inventory().foreign == ()


def test_what_another_process_did_just_before_is_not_overlooked(directory: Path) -> None:
    """SoftHSM's commit takes over the number by which it would have noticed (generation.py)."""
    make = "keeper = open_keeper(home)\nref = new_ref()\nkeeper.generate(ref)\nprint(ref.material_id.hex())"
    with opened(directory / "home") as keeper:
        for look in ("load", "inventory", "destroy"):
            kept = new_ref()
            keeper.generate(kept)
            theirs = MaterialRef(bytes.fromhex(run_child(make, directory / "home").stdout.strip()), kept.spec, kept.suite)
            keeper.generate(new_ref())
            if look == "load":
                assert keeper.load(theirs)
            elif look == "inventory":
                assert theirs.material_id in keeper.inventory().materials
            keeper.destroy(theirs.material_id)
            ask = "keeper = open_keeper(home)\nprint(sys.argv[2] in [i.hex() for i in keeper.inventory().materials])"
            assert run_child(ask, directory / "home", theirs.material_id.hex()).stdout.strip() == "False"


def test_an_object_that_softhsm_lists_twice_is_one(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does when a thread uses the token while another makes an object (TokenObjects._sees_everything)."""
    with opened(directory / "home") as keeper:
        find = TokenObjects.find
        monkeypatch.setattr(TokenObjects, "find", lambda self, session, material_id: find(self, session, material_id) * 2)
        ref = new_ref()
        keeper.generate(ref)
        assert keeper.load(ref)
        keeper.destroy(ref.material_id)
        assert keeper.inventory().materials == frozenset()


def test_the_environment_is_as_it_was(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTHSM2_CONF", "/nowhere/softhsm2.conf")
    with opened(directory / "home"):
        assert os.environ["SOFTHSM2_CONF"] == "/nowhere/softhsm2.conf"
    assert os.environ["SOFTHSM2_CONF"] == "/nowhere/softhsm2.conf"


def test_python_pkcs11_cannot_initialise_it_behind_our_back(directory: Path) -> None:
    with opened(directory / "home") as keeper:
        with pytest.raises(pkcs11.PKCS11Error):
            pkcs11.lib(keeper.module_facts["path"])
        ref = new_ref()
        keeper.generate(ref)
        assert keeper.load(ref)
    first = "import pkcs11\npkcs11.lib(sys.argv[2])\nopen_keeper(home)"
    conf = directory / "home" / "softhsm2.conf"
    path = settings_of(directory / "home").pkcs11_module
    for name in (path, os.path.realpath(path)):
        answer = run_child(f"os.environ['SOFTHSM2_CONF'] = {str(conf)!r}\n" + first, directory / "other", name)
        assert "SetupError" in answer.stderr
        assert "first" in answer.stderr


def test_modules_that_are_none_are_said(directory: Path) -> None:
    (directory / "libsofthsm2.so").write_bytes(b"not a library")
    for path, said in (
        ("/nowhere/libsofthsm2.so", "no PKCS#11 module"),
        (directory / "libsofthsm2.so", "cannot be"),
        ("x/pkcs11-spy.so", "spy"),
    ):
        with pytest.raises(SetupError, match=said):
            open_keeper(directory / "home", pkcs11_module=str(path))
    with pytest.raises(SetupError, match="no token"):
        open_keeper(directory / "home", pkcs11_module="none")


@pytest.fixture
def external(directory: Path) -> Iterator[Path]:
    """A SoftHSM token that an operator made; answers its PIN file."""
    with operators_softhsm(directory) as settings:
        yield Path(settings["pkcs11_pin_file"])


def test_an_external_token_is_used_and_otherwise_left_alone(directory: Path, external: Path) -> None:
    more = {"pkcs11_token": "theirs", "pkcs11_pin_file": str(external)}
    with opened(directory / "home", **more) as keeper:
        assert not keeper.owns_token
        ref = new_ref()
        facts = keeper.generate(ref)
        assert facts["token_serial"] == keeper.token_serial
        header = header_of(ref)
        key = keeper.load(ref)
        assert key.decrypt(19, header, key.encrypt(header, header, b"x")) == b"x"
        (files,) = (directory / "theirs").iterdir()
        (files / "dead.object").write_bytes(b"")
        assert keeper.sweep() == 0
        assert (files / "dead.object").exists()
        assert keeper.inventory().materials == {ref.material_id}
        assert keeper.inventory().foreign == ()
    with opened(directory / "home", instance="other", **more) as keeper:
        assert keeper.inventory().materials == frozenset()
        assert keeper.inventory().foreign == ()
        keeper.destroy(ref.material_id)
    assert {path.name for path in (directory / "home").iterdir()} == {"run"}


def test_an_external_token_that_is_not_as_said(directory: Path, external: Path) -> None:
    with pytest.raises(SetupError, match="'theirs'"):
        open_keeper(directory / "home", pkcs11_token="mine", pkcs11_pin_file=str(external))
    external.chmod(0o644)
    with pytest.raises(SetupError, match="chmod"):
        open_keeper(directory / "home", pkcs11_token="theirs", pkcs11_pin_file=str(external))
    external.chmod(0o600)
    external.write_text("4712")
    with pytest.raises(SetupError, match="PIN"):
        open_keeper(directory / "home", pkcs11_token="theirs", pkcs11_pin_file=str(external))
    with pytest.raises(SetupError, match="PIN file"):
        open_keeper(directory / "home", pkcs11_token="theirs", pkcs11_pin_file=str(directory / "none"))
    assert not module._open


def test_the_doctor_finds_a_new_home_well(directory: Path) -> None:
    with opened(directory / "home") as keeper:
        found = probe(settings_of(directory / "home"), keeper)
        assert not [finding for finding in found if finding.level == "fail"]
        said = "\n".join(finding.what for finding in found)
        for part in (keeper.token_serial, "Aliyun_AES_256: suite 1", "Aliyun_AES_128: suite 2", "copy are whole", "SoftHSM"):
            assert part in said
        assert (directory / "home" / "pin").read_text().strip() not in said
