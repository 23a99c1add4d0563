"""The C core around the hot path: its stub, modules, logins, sessions, objects, secrets, fork. Real SoftHSM."""

from __future__ import annotations

import ast
import contextlib
import copy
import os
import pickle
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from p11_helpers import AAD, HEADER, PIN, ROOT, Rig, make_token, open_rig, slot_of, softhsm, started

from kmscore.custody import _p11
from kmscore.custody._p11 import AeadKey, Module, Secret, Token, soft_key, token_error
from kmscore.errors import CODES, KmsError, SetupError, TokenError
from kmscore.store import _gate


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with open_rig(tmp_path) as rig:
        yield rig


def in_child(work: Callable[[], object]) -> str:
    """What `work` answered or raised in a forked child."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            answer = repr(work())
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read().decode()
    assert os.waitpid(pid, 0)[1] == 0
    return answer


# --- the stubs ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stub", "module"), [("custody/_p11.pyi", _p11), ("store/_gate.pyi", _gate)])
def test_every_name_of_the_stub_exists(stub: str, module: Any) -> None:
    def names(body: list[ast.stmt]) -> Iterator[tuple[str, list[str] | None]]:
        for node in body:
            if isinstance(node, ast.FunctionDef):
                properties = any(isinstance(d, ast.Name) and d.id == "property" for d in node.decorator_list)
                arguments = [a.arg for a in node.args.args + node.args.kwonlyargs]
                yield node.name, None if properties else arguments
            elif isinstance(node, ast.AnnAssign):
                assert isinstance(node.target, ast.Name)
                yield node.target.id, None

    tree = ast.parse((ROOT / "kmscore" / stub).read_text())
    checked = 0
    for owner, body in [(module, tree.body)] + [(getattr(module, c.name), c.body) for c in tree.body if isinstance(c, ast.ClassDef)]:
        for name, arguments in names(body):
            assert hasattr(owner, name), f"{owner.__name__}.{name}"
            checked += 1
            if arguments is not None and name != "__init__":
                # embedsignature puts the signature on the docstring's first line.
                line = getattr(owner, name).__doc__.split("\n")[0]
                given = line[line.index("(") + 1 : line.rindex(")")]
                for argument in arguments:
                    assert argument == "self" or argument in given, f"{owner.__name__}.{name} has no {argument}: {line}"
    assert checked > 10


# --- errors ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rv", "name", "code"),
    [
        (0x30, "CKR_DEVICE_ERROR", "ServiceUnavailableTemporary"),
        (0x32, "CKR_DEVICE_REMOVED", "ServiceUnavailableTemporary"),
        (0x05, "CKR_GENERAL_ERROR", "ServiceUnavailableTemporary"),
        (0xB3, "CKR_SESSION_HANDLE_INVALID", "ServiceUnavailableTemporary"),
        (0xE0, "CKR_TOKEN_NOT_PRESENT", "ServiceUnavailableTemporary"),
        (0x101, "CKR_USER_NOT_LOGGED_IN", "ServiceUnavailableTemporary"),
        (0x190, "CKR_CRYPTOKI_NOT_INITIALIZED", "ServiceUnavailableTemporary"),
        (0x02, "CKR_HOST_MEMORY", "ServiceUnavailableTemporary"),
        (0x06, "CKR_FUNCTION_FAILED", "ServiceUnavailableTemporary"),
        (0x60, "CKR_KEY_HANDLE_INVALID", "Rejected.Unavailable"),
        (0x82, "CKR_OBJECT_HANDLE_INVALID", "Rejected.Unavailable"),
        (0x68, "CKR_KEY_FUNCTION_NOT_PERMITTED", "InternalFailure"),
        (0xA0, "CKR_PIN_INCORRECT", "InternalFailure"),
        (0x80001234, "CKR 0x80001234", "InternalFailure"),
    ],
)
def test_error_table(rv: int, name: str, code: str) -> None:
    error = token_error(rv, "C_Encrypt")
    assert (error.rv, error.function, error.name, error.code) == (rv, "C_Encrypt", name, code)
    assert code in CODES
    again = pickle.loads(pickle.dumps(error))
    assert (again.rv, again.code, str(again)) == (rv, code, str(error))


# --- module and login --------------------------------------------------------------------------------------------------------------


def test_not_a_module(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no library")
    for path in (str(tmp_path / "absent.so"), str(tmp_path / "text"), "libc.so.6"):
        with pytest.raises(SetupError, match="cannot be used as a PKCS#11 module"):
            Module(path)


def test_making_a_module_does_not_initialise_it() -> None:
    with pytest.raises(TokenError) as caught:
        Module(softhsm()).slots()
    assert caught.value.name == "CKR_CRYPTOKI_NOT_INITIALIZED"


def test_module_life(tmp_path: Path) -> None:
    with started(tmp_path) as (module, _):
        with pytest.raises(TokenError) as caught:
            module.initialize()
        assert caught.value.name == "CKR_CRYPTOKI_ALREADY_INITIALIZED"
        slot = make_token(module, "a label")
        assert module.token_info(slot)["label"] == "a label"
        assert module.info()["manufacturer"] == "SoftHSM"
        assert module.info()["cryptoki_version"] == "2.40"
        assert set(module.mechanisms(slot)) == {0x1080, 0x1087, 0x1104}
        assert module.mechanisms(slot)[0x1087][:2] == (16, 32)
        for _ in range(3):
            module.finalize()
            module.finalize()
            module.initialize()
        slot = slot_of(module, "a label")
        with pytest.raises(ValueError, match="label"):
            module.init_token(slot, Secret.copy_of(b"12345678"), "x" * 33)
        with pytest.raises(TokenError, match="CKR_SLOT_ID_INVALID"):
            module.token_info(999_999)


def test_login_and_close(tmp_path: Path) -> None:
    with started(tmp_path) as (module, _):
        token = module.open(make_token(module))
        assert token.live_sessions == 0
        for wrong in (b"not the pin", b"x"):
            with pytest.raises(TokenError) as caught:
                token.login(Secret.copy_of(wrong))
            assert caught.value.name in ("CKR_PIN_INCORRECT", "CKR_PIN_LEN_RANGE")
            assert caught.value.code == "InternalFailure"
            assert token.live_sessions == 0
        token.login(Secret.copy_of(PIN))
        assert token.live_sessions == 1
        token.login(Secret.copy_of(PIN))  # CKR_USER_ALREADY_LOGGED_IN
        assert token.live_sessions == 2  # the first one has joined the pool
        token.close()
        token.close()
        assert token.live_sessions == 0
        for call in (lambda: token.find(b"x"), token.object_ids, lambda: token.random(8), lambda: token.xaes_key(1)):
            with pytest.raises(KmsError, match="closed") as closed:
                call()
            assert closed.value.retryable
        # All sessions were closed, so the process is logged out: a wrong PIN is looked at again.
        again = module.open(token.slot)
        with pytest.raises(TokenError, match="CKR_PIN_INCORRECT"):
            again.login(Secret.copy_of(b"not the pin"))


def test_finalize_kills_tokens_and_keys(tmp_path: Path) -> None:
    with open_rig(tmp_path) as rig:
        key = rig.token.xaes_key(rig.key())
        key.encrypt(HEADER, AAD, b"x")
        old = rig.token
        rig.restart()
        for call in (lambda: key.encrypt(HEADER, AAD, b"x"), old.object_ids):
            with pytest.raises(KmsError) as caught:
                call()
            assert caught.value.code == "ServiceUnavailableTemporary"
        old.close()
        assert key.retire() is True
        key = old = None  # destroys nothing in the new life of the module
        ((handle, *_),) = rig.token.object_ids()
        assert len(rig.token.xaes_key(handle).encrypt(HEADER, AAD, b"x")) == 60


# --- objects -----------------------------------------------------------------------------------------------------------------------


def test_objects(rig: Rig) -> None:
    assert rig.token.object_ids() == []
    handles = [rig.key() for _ in range(70)]  # more than one C_FindObjects gives
    session_object = rig.key(resident=False)
    aead = rig.token.xaes_key(handles[0])
    aead.encrypt(HEADER, AAD, b"")
    seen = rig.token.object_ids()
    assert sorted(row[0] for row in seen) == sorted(handles)  # neither session objects nor derived keys
    assert session_object not in [row[0] for row in seen]
    handle, object_id, label, object_class = seen[5]
    assert (label, object_class, len(object_id)) == ("test", 4, 16)
    assert rig.token.find(object_id) == [handle]
    assert rig.token.find(object_id, 3) == []
    assert rig.token.find(b"another id") == []
    rig.token.destroy(handle)
    assert rig.token.find(object_id) == []
    with pytest.raises(TokenError) as caught:
        rig.token.destroy(handle)
    assert caught.value.code == "Rejected.Unavailable"
    assert rig.token.live_sessions <= 4  # the login's, one or two of the pool, one that derived


def test_objects_that_tell_nothing(rig: Rig) -> None:
    # Fragments as a killed SoftHSM leaves them: listed, nameless, or not readable at all (RELIABILITY 1.1 fact 7).
    rig.key()
    (directory,) = (path for path in Path(os.environ["SOFTHSM2_CONF"]).parent.joinpath("tokens").iterdir() if path.is_dir())
    (whole,) = directory.glob("*-*.object")
    content = whole.read_bytes()
    for cut in range(0, len(content), 8):
        (directory / f"00000000-0000-0000-0000-{cut:012d}.object").write_bytes(content[:cut])
    rig.restart()
    rows = rig.token.object_ids()
    assert all(isinstance(row[0], int) and len(row[1]) in (0, 16) and row[2] in ("", "test") and row[3] in (4, -1) for row in rows)
    assert any(row[1:] == (b"", "", -1) for row in rows)
    assert any(len(row[1]) == 16 and row[2:] == ("test", 4) for row in rows)


def test_random(rig: Rig) -> None:
    assert rig.token.random(32) != rig.token.random(32)
    assert len(rig.token.random(65536)) == 65536
    for size in (0, -1, 65537):
        with pytest.raises(ValueError, match="65536"):
            rig.token.random(size)


# --- secrets -----------------------------------------------------------------------------------------------------------------------


def test_secret(tmp_path: Path) -> None:
    before = _p11.live_secrets()
    secret = Secret.random(32)
    assert secret.size == 32
    assert secret.reveal() != Secret.random(32).reveal()
    assert Secret.copy_of(bytearray(b"abc")).reveal() == b"abc"
    assert repr(secret) == str(secret) == "<Secret>"
    for leak in (
        lambda: pickle.dumps(secret),
        lambda: copy.copy(secret),
        lambda: copy.deepcopy(secret),
        lambda: memoryview(secret),
        lambda: bytes(secret),
        Secret,
    ):
        with pytest.raises(TypeError):
            leak()
    assert not hasattr(secret, "__dict__")
    secret.close()
    secret.close()
    for call in (secret.reveal, lambda: secret.size, lambda: soft_key(secret, 1)):
        with pytest.raises(ValueError, match="closed"):
            call()
    for size in (0, -1, 8193):
        with pytest.raises(ValueError, match="1 to 8192"):
            Secret.random(size)
    with pytest.raises(ValueError, match="1 to 8192"):
        Secret.copy_of(b"")
    secret = None  # type: ignore[assignment]
    assert _p11.live_secrets() == before


def test_secret_from_file(tmp_path: Path) -> None:
    file = tmp_path / "pin"
    for content, expected in ((b"1234\n", b"1234"), (b"1234", b"1234"), (b"a\n\n", b"a\n"), (b"x" * 4096 + b"\n", b"x" * 4096)):
        file.write_bytes(content)
        assert Secret.from_file(str(file)).reveal() == expected
    for content in (b"", b"\n", b"x" * 4097, b"x" * 9000):
        file.write_bytes(content)
        with pytest.raises(SetupError, match="1 to 4096"):
            Secret.from_file(str(file))
    with pytest.raises(SetupError, match="No such file"):
        Secret.from_file(str(tmp_path / "absent"))
    with pytest.raises(SetupError, match="directory"):
        Secret.from_file(str(tmp_path))


def _guarded_memory() -> tuple[list[list[str]], bytes]:
    """(VmFlags, content) of this process's pages that are wiped on fork."""
    flags, content = [], b""
    with open("/proc/self/smaps") as smaps, open("/proc/self/mem", "rb", 0) as memory:
        start = end = 0
        for line in smaps:
            if line[0] in "0123456789abcdef" and "-" in line.split()[0]:
                start, end = (int(x, 16) for x in line.split()[0].split("-"))
            elif line.startswith("VmFlags") and "wf" in line.split():
                flags.append(line.split()[1:])
                memory.seek(start)
                content += memory.read(end - start)
    return flags, content


def test_secret_lies_in_guarded_pages_and_is_wiped() -> None:
    secret = Secret.random(64)
    marker = secret.reveal()
    flags, content = _guarded_memory()
    assert marker in content
    assert all("dd" in f for f in flags)  # MADV_DONTDUMP
    assert secret.locked == any("lo" in f for f in flags)
    in_the_child = in_child(lambda: (marker in _guarded_memory()[1], len(_guarded_memory()[1])))
    assert in_the_child == f"(False, {len(content)})"  # the same pages, zero
    assert marker in _guarded_memory()[1]
    secret.close()
    assert marker not in _guarded_memory()[1]


def test_thousands_of_secrets_fit_under_the_lock_limit() -> None:
    before = _p11.live_secrets()
    locked_before = _locked_kib()
    secrets = [Secret.random(32) for _ in range(4000)]
    assert _p11.live_secrets() == before + 4000
    if secrets[0].locked:
        assert _locked_kib() - locked_before <= 4000 * 64 // 1024 + 32
    assert len({s.reveal() for s in secrets}) == 4000
    for index, secret in enumerate(secrets):
        if index % 3:
            secret.close()
    more = [Secret.copy_of(bytes([i % 256]) * 40) for i in range(3000)]
    assert all(s.reveal() == bytes([i % 256]) * 40 for i, s in enumerate(more))
    del secrets, secret, more
    assert _p11.live_secrets() == before
    assert _locked_kib() - locked_before <= 32


def _locked_kib() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmLck"))
    return int(line.split()[1])


def test_secrets_go_on_without_locked_memory() -> None:
    def work() -> tuple[bool, int]:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
        with contextlib.suppress(PermissionError):
            os.setuid(65534)  # root may lock whatever the limit says
        secret = Secret.random(8192)
        return secret.locked, secret.size

    assert in_child(work) == "(False, 8192)"


# --- fork --------------------------------------------------------------------------------------------------------------------------


def test_everything_refuses_in_a_forked_child(rig: Rig) -> None:
    secret = Secret.random(32)
    soft = soft_key(Secret.random(32), 1)
    hard = rig.token.xaes_key(rig.key())
    blob, soft_blob = hard.encrypt(HEADER, AAD, b"text"), soft.encrypt(HEADER, AAD, b"text")
    refused: dict[str, Callable[[], object]] = {
        "Secret": secret.reveal,
        "Token": rig.token.object_ids,
        "Token.close": rig.token.close,
        "Module": rig.module.slots,
        "Module.finalize": rig.module.finalize,
        "hard encrypt": lambda: hard.encrypt(HEADER, AAD, b"x"),
        "hard batch": lambda: hard.encrypt_batch(HEADER, AAD, [b"x"]),
        "hard decrypt": lambda: hard.decrypt(19, AAD, blob),
        "hard retire": hard.retire,
        "soft encrypt": lambda: soft.encrypt(HEADER, AAD, b"x"),
        "soft decrypt": lambda: soft.decrypt(19, AAD, soft_blob),
        "soft retire": soft.retire,
    }
    for name, call in refused.items():
        answer = in_child(call)
        assert answer.startswith("SetupError") and "was opened before fork; open it again in the child" in answer, (name, answer)

    def leave() -> str:
        nonlocal secret, soft, hard
        del secret, soft, hard  # must not call into the module
        fresh = soft_key(Secret.random(32), 1)
        return str(fresh.decrypt(19, AAD, fresh.encrypt(HEADER, AAD, b"child")))

    assert in_child(leave) == repr("b'child'")
    # The parent does not notice.
    assert hard.decrypt(19, AAD, blob) == b"text"
    assert soft.decrypt(19, AAD, soft_blob) == b"text"
    assert secret.size == 32


def test_parent_and_child_draw_other_nonces() -> None:
    soft_key(Secret.random(32), 1).encrypt(HEADER, AAD, b"")  # fills the pool
    child = in_child(lambda: soft_key(Secret.random(32), 1).encrypt(HEADER, AAD, b"")[19:43].hex()).strip("'")
    parent = soft_key(Secret.random(32), 1).encrypt(HEADER, AAD, b"")[19:43].hex()
    assert len(child) == 48
    assert child[:24] != parent[:24] and child[24:] != parent[24:]


# --- nothing leaks into a pickle ----------------------------------------------------------------------------------------------------


def test_no_pickle_no_copy_no_direct_making(rig: Rig) -> None:
    things: list[object] = [rig.module, rig.token, rig.token.xaes_key(rig.key()), rig.token.gcm_key(1), soft_key(Secret.random(32), 1)]
    for thing in things:
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError):
                pickle.dumps(thing, protocol)
        with pytest.raises(TypeError):
            copy.copy(thing)
    for kind in (Token, AeadKey, Secret, type(things[2]), type(things[4])):
        with pytest.raises(TypeError):
            kind()
    for empty in (type(things[2]), type(things[4]), AeadKey):
        hollow = empty.__new__(empty)  # not what anyone should do, but it must not crash
        with pytest.raises(TypeError):
            hollow.encrypt(HEADER, AAD, b"")
        with pytest.raises(TypeError):
            hollow.decrypt(19, AAD, b"x" * 80)
        with pytest.raises((TypeError, NotImplementedError)):
            hollow.retire()


def test_syncfs_and_protect_process(tmp_path: Path) -> None:
    _p11.syncfs(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        _p11.syncfs(str(tmp_path / "absent"))
    assert in_child(_p11.protect_process) == "{'no_core_file': True, 'not_dumpable': True}"
