"""The C core around the hot path: its stub, modules, logins, sessions, objects, secrets, fork. Real SoftHSM."""

from __future__ import annotations

import ast
import copy
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from p11_helpers import AAD, HEADER, PIN, ROOT, Rig, in_child, make_token, open_rig, slot_of, softhsm, started

from kmscore.custody import _p11
from kmscore.custody._p11 import AeadKey, Module, Secret, Token, soft_key, token_error
from kmscore.errors import CODES, KmsError, SetupError, TokenError
from kmscore.store import _gate


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with open_rig(tmp_path) as rig:
        yield rig


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
    for kind in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        known = {name for name, _ in names(kind.body)}
        assert {name for name in vars(getattr(module, kind.name)) if not name.startswith("_")} <= known, kind.name
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
