"""What the core does when the token fails, stalls or forgets: SoftHSM behind a module that injects faults, and with its sessions pulled away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from p11_helpers import AAD, HEADER, Rig, Shim, open_rig

from kmscore.errors import KmsError, TokenError


@pytest.fixture
def rig(tmp_path: Path, shim: Shim) -> Iterator[Rig]:
    with open_rig(tmp_path, path=shim.path) as rig:
        yield rig


class Background(threading.Thread):
    """A call in another thread, and what came of it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.result: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._call()
        except BaseException as error:
            self.result = error

    def finish(self) -> Any:
        self.join(30)
        assert not self.is_alive()
        return self.result


# --- failures ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["C_OpenSession", "C_EncryptInit", "C_Encrypt"])
@pytest.mark.parametrize("rv", [0x02, 0x05, 0x06, 0x30, 0x32, 0xE0, 0x101, 0x190])
def test_a_token_that_is_away(rig: Rig, shim: Shim, function: str, rv: int) -> None:
    key = rig.token.xaes_key(rig.key())
    blob = key.encrypt(HEADER, AAD, b"x")
    sessions = rig.token.live_sessions
    if function == "C_OpenSession":
        shim.fail("C_EncryptInit", rv)  # costs the pooled session
        with pytest.raises(TokenError):
            key.encrypt(HEADER, AAD, b"x")
        assert rig.token.live_sessions == sessions - 1
    opened = shim.calls("C_OpenSession")
    shim.fail(function, rv)
    with pytest.raises(TokenError) as caught:
        key.encrypt(HEADER, AAD, b"x")
    assert (caught.value.function, caught.value.rv) == (function, rv)
    assert caught.value.code == "ServiceUnavailableTemporary"
    assert rig.token.live_sessions == sessions - 1
    # The next call does it on a fresh session, and finds the derived key still there.
    assert key.decrypt(19, AAD, blob) == b"x"
    assert shim.calls("C_OpenSession") == opened + (2 if function == "C_OpenSession" else 1)
    assert rig.token.live_sessions == sessions
    assert rig.token.derivations == 2  # L and one Kx


@pytest.mark.parametrize("rv", [0x05, 0x40, 0x41, 0x42])
def test_only_from_c_decrypt_these_codes_mean_a_wrong_tag(rig: Rig, shim: Shim, rv: int) -> None:
    key = rig.token.xaes_key(rig.key())
    blob = key.encrypt(HEADER, AAD, b"x")
    shim.fail("C_Decrypt", rv)
    with pytest.raises(KmsError) as caught:
        key.decrypt(19, AAD, blob)
    assert caught.value.code == "InvalidParameter"
    shim.fail("C_DecryptInit", rv)
    with pytest.raises(TokenError):
        key.decrypt(19, AAD, blob)
    assert key.decrypt(19, AAD, blob) == b"x"


def test_an_item_that_fails_costs_its_session_and_no_other_item(rig: Rig, shim: Shim) -> None:
    key = rig.token.xaes_key(rig.key())
    texts = [b"%d" % number for number in range(20)]
    for function in ("C_EncryptInit", "C_Encrypt"):
        opened = shim.calls("C_OpenSession")
        shim.fail(function, 0x30, skip=7, times=2)
        blobs = key.encrypt_batch(HEADER, AAD, texts)
        assert [index for index, blob in enumerate(blobs) if isinstance(blob, TokenError)] == [7, 8]
        assert shim.calls("C_OpenSession") - opened <= 3
        good = [blob for blob in blobs if isinstance(blob, bytes)]
        assert key.decrypt_batch(19, AAD, good) == texts[:7] + texts[9:]
    shim.fail("C_Decrypt", 0x32, skip=3)
    answers = key.decrypt_batch(19, AAD, good)
    assert isinstance(answers[3], TokenError) and answers[:3] + answers[4:] == texts[:3] + texts[4:7] + texts[9:]


@pytest.mark.parametrize("function", ["C_EncryptInit", "C_Encrypt"])
def test_a_session_that_died_is_replaced_once(rig: Rig, shim: Shim, function: str) -> None:
    key = rig.token.xaes_key(rig.key())
    key.encrypt(HEADER, AAD, b"x")
    shim.fail(function, 0xB3)
    blob = key.encrypt(HEADER, AAD, b"x")
    shim.fail(function.replace("Encrypt", "Decrypt"), 0xB3)
    assert key.decrypt(19, AAD, blob) == b"x"
    shim.fail(function, 0xB3, times=2)
    with pytest.raises(TokenError) as caught:
        key.encrypt(HEADER, AAD, b"x")
    assert caught.value.name == "CKR_SESSION_HANDLE_INVALID"
    assert caught.value.retryable


def test_a_derivation_that_fails(rig: Rig, shim: Shim) -> None:
    key = rig.token.xaes_key(rig.key())
    for rv in (0x30, 0x68, 0x60):
        shim.fail("C_DeriveKey", rv)
        with pytest.raises(TokenError) as caught:
            key.encrypt(HEADER, AAD, b"x")
        assert (caught.value.function, caught.value.rv) == ("C_DeriveKey", rv)
        assert (key.live, rig.token.live_derived) == (0, 0)
    shim.fail("C_DeriveKey", 0xB3)
    blob = key.encrypt(HEADER, AAD, b"x")
    assert key.live == 1
    # One failure stands for a whole slice: no 20 attempts on a token that is away.
    derived = shim.calls("C_DeriveKey")
    shim.fail("C_DeriveKey", 0x32, times=100)
    answers = key.decrypt_batch(19, AAD, [HEADER + bytes([n]) * 60 for n in range(20)] + [blob])
    assert shim.calls("C_DeriveKey") == derived + 1
    assert all(isinstance(answer, TokenError) for answer in answers[:-1])
    assert answers[-1] == b"x"
    # A nursery with a key in it outlives its failure until that key goes.
    sessions = rig.token.live_sessions
    assert key.retire()
    assert rig.token.live_sessions == sessions - 1


def test_a_failed_look_at_l(rig: Rig, shim: Shim) -> None:
    handle = rig.key()
    sessions = rig.token.live_sessions
    shim.fail("C_DestroyObject", 0x30)
    with pytest.raises(TokenError, match="C_DestroyObject"):
        rig.token.xaes_key(handle)
    shim.fail("C_DeriveKey", 0x30)
    with pytest.raises(TokenError, match="C_DeriveKey"):
        rig.token.xaes_key(handle)
    assert rig.token.live_sessions == sessions


def test_a_derived_key_that_cannot_be_destroyed(rig: Rig, shim: Shim) -> None:
    key = rig.token.xaes_key(rig.key())
    key.encrypt(HEADER, AAD, b"x")
    shim.fail("C_DestroyObject", 0x30)
    assert key.retire()
    assert rig.token.xaes_key(rig.key()).encrypt(HEADER, AAD, b"x")


def test_sessions_closed_behind_our_back(rig: Rig) -> None:
    """Every session of ours is closed by someone else: pooled ones, and those that derived keys live in. The login is kept by another."""
    handle = rig.key()
    key = rig.token.xaes_key(handle)
    blobs = key.encrypt_batch(HEADER, AAD, [b"x", b"y"])
    other = rig.raw.open()
    foreign = {other, rig.control.handle}

    def pull() -> None:
        # SoftHSM numbers sessions and objects with one counter.
        closed = [handle for handle in range(1, other + 50) if handle not in foreign and rig.raw.close(handle) == 0]
        assert closed

    pull()
    assert key.decrypt_batch(19, AAD, blobs) == [b"x", b"y"]  # type: ignore[arg-type]
    pull()
    again: list[Any] = key.encrypt_batch(HEADER, AAD, [b"z"] * 5)
    assert all(isinstance(blob, bytes) for blob in again)
    assert again[0][19:31] != blobs[0][19:31]  # type: ignore[index]
    pull()
    assert key.decrypt(19, AAD, again[0]) == b"z"
    assert key.live <= 3
    assert key.retire()
    rig.raw.close(other)


# --- stalls ------------------------------------------------------------------------------------------------------------------------


def test_retire_while_a_call_is_in_the_token(rig: Rig, shim: Shim) -> None:
    master = rig.key()
    key = rig.token.xaes_key(master)
    early = key.encrypt(HEADER, AAD, b"early")
    with shim.held("C_Encrypt"):
        call = Background(lambda: key.encrypt(HEADER, AAD, b"late"))
        shim.wait_for("C_Encrypt")
        assert key.retire() is False
        assert (key.live, rig.token.live_derived) == (1, 1)
        with pytest.raises(KmsError) as caught:
            key.decrypt(19, AAD, early)
        assert caught.value.code == "Rejected.Unavailable"
        assert key.retire() is False
    late = call.finish()
    assert key.retire() is True
    assert rig.token.live_derived == 0
    again = rig.token.xaes_key(master)
    assert again.decrypt_batch(19, AAD, [early, late]) == [b"early", b"late"]


def test_retire_while_a_key_is_being_derived(rig: Rig, shim: Shim) -> None:
    key = rig.token.xaes_key(rig.key())
    with shim.held("C_DeriveKey"):
        calls = [Background(lambda: key.encrypt(HEADER, AAD, b"x")), Background(lambda: key.decrypt(19, AAD, bytes(80)))]
        shim.wait_for("C_DeriveKey", 2)
        assert key.retire() is False
    for call in calls:
        error = call.finish()
        assert isinstance(error, KmsError) and error.code == "Rejected.Unavailable"
    assert key.retire() is True
    assert rig.token.live_derived == 0


def test_eviction_does_not_pull_a_key_from_under_a_call(rig: Rig, shim: Shim) -> None:
    rig.token.derived_limit = 1
    first, second = rig.token.xaes_key(rig.key()), rig.token.xaes_key(rig.key())
    with shim.held("C_Encrypt"):
        call = Background(lambda: first.encrypt_batch(HEADER, AAD, [b"a", b"b"]))
        shim.wait_for("C_Encrypt")
        second.derive_subkey_for_test(bytes(24))
        assert (first.live, second.live) == (1, 1)
    blobs = call.finish()
    assert first.live == 0
    assert first.decrypt_batch(19, AAD, blobs) == [b"a", b"b"]


def test_close_and_finalize_wait_for_calls(rig: Rig, shim: Shim) -> None:
    key = rig.token.xaes_key(rig.key())
    key.encrypt(HEADER, AAD, b"x")
    for end in (rig.token.close, rig.restart):
        with shim.held("C_EncryptInit"):
            call = Background(lambda key=key: key.encrypt(HEADER, AAD, b"x"))  # type: ignore[misc]
            shim.wait_for("C_EncryptInit")
            ending = Background(end)
            while True:  # until `end` has begun
                try:
                    rig.token.random(1)
                except KmsError:
                    break
            assert ending.is_alive()
        assert len(call.finish()) == 60
        assert ending.finish() is None
        if end == rig.restart:
            break
        rig.restart()
        key = rig.token.xaes_key(rig.token.object_ids()[0][0])
        key.encrypt(HEADER, AAD, b"x")


def test_the_gil_is_free_while_the_token_stalls(rig: Rig, shim: Shim) -> None:
    key = rig.token.xaes_key(rig.key())
    blob = key.encrypt(HEADER, AAD, b"x")
    for function, work in (
        ("C_Encrypt", lambda: key.encrypt_batch(HEADER, AAD, [b"x"])),
        ("C_Decrypt", lambda: key.decrypt(19, AAD, blob)),
        ("C_DeriveKey", lambda: rig.token.xaes_key(rig.key())),
        ("C_OpenSession", rig.token.object_ids),
    ):
        with shim.held(function):
            call = Background(work)
            shim.wait_for(function)  # reached only if the other thread gave up the GIL
            assert call.is_alive()
        assert not isinstance(call.finish(), BaseException)


# --- what a derived key is ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("private", [False, True])
def test_what_a_derived_key_may_do(tmp_path: Path, private: bool) -> None:
    with open_rig(tmp_path, private_hot_keys=private) as rig:
        assert rig.token.private_hot_keys is private
        key = rig.token.xaes_key(rig.key())
        handle = key.derive_subkey_for_test(bytes(24))
        assert handle == key.derive_subkey_for_test(bytes(24))
        session = rig.raw.open()
        attributes = {
            0x1: False,
            0x2: private,
            0x103: True,
            0x104: True,
            0x105: True,
            0x106: False,
            0x107: False,
            0x108: False,
            0x10A: False,
            0x10C: False,
            0x162: False,
        }  # TOKEN PRIVATE SENSITIVE ENCRYPT DECRYPT WRAP UNWRAP SIGN VERIFY DERIVE EXTRACTABLE
        for attribute, value in attributes.items():
            assert rig.raw.attribute(session, handle, attribute) == (0, bytes([value])), hex(attribute)
        assert rig.raw.attribute(session, handle, 0x11)[0] == 0x11  # CKA_VALUE: CKR_ATTRIBUTE_SENSITIVE
        assert rig.raw.attribute(session, handle, 0x161)[1] == (32).to_bytes(8, "little")
        for wrong in (b"", bytes(12), bytes(25)):
            with pytest.raises(ValueError, match="24 bytes"):
                key.derive_subkey_for_test(wrong)
        with pytest.raises(ValueError, match="suite 1"):
            rig.token.gcm_key(1).derive_subkey_for_test(bytes(24))
        rig.raw.close(session)
        assert key.decrypt(19, AAD, key.encrypt(HEADER, AAD, b"x")) == b"x"
