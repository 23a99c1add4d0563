"""Secrets in memory of the core's own, and what a fork does to everything the core made."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from p11_helpers import AAD, HEADER, Rig, in_child, open_rig

from kmscore.custody import _p11
from kmscore.custody._p11 import Secret, soft_key
from kmscore.errors import SetupError


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with open_rig(tmp_path) as rig:
        yield rig


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
    """(VmFlags, content) of this process's pages that are wiped on fork and not dumped (dd): other libraries have some that are dumped."""
    flags, content = [], b""
    with open("/proc/self/smaps") as smaps, open("/proc/self/mem", "rb", 0) as memory:
        start = end = 0
        for line in smaps:
            if line[0] in "0123456789abcdef" and "-" in line.split()[0]:
                start, end = (int(x, 16) for x in line.split()[0].split("-"))
            elif line.startswith("VmFlags") and {"wf", "dd"} <= set(line.split()):
                flags.append(line.split()[1:])
                memory.seek(start)
                content += memory.read(end - start)
    return flags, content


def test_secret_lies_in_guarded_pages_and_is_wiped() -> None:
    secret = Secret.random(64)
    marker = secret.reveal()
    flags, content = _guarded_memory()
    assert marker in content
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


def test_no_nonce_comes_twice() -> None:
    """Several threads and keys draw from one pool, over many refills."""
    nonces: list[bytes] = []

    def work() -> None:
        key = soft_key(Secret.random(32), 2)
        for _ in range(50):
            nonces.extend(blob[:12] for blob in key.encrypt_batch(b"", b"", [b""] * 300) if isinstance(blob, bytes))
            nonces.extend(key.encrypt(b"", b"", b"")[:12] for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(nonces) == 4 * 50 * 320
    assert len(set(nonces)) == len(nonces)
