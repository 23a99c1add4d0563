"""What the tests and the benchmark of the C core share: a SoftHSM token of their own, keys in it, and the same module spoken to by hand.

Knows nothing of kmscore above the core: keys come in by python-pkcs11's create_object, which the product never calls.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pkcs11
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from pkcs11 import Attribute, KeyType, ObjectClass

from kmscore.config import SOFTHSM_MODULES
from kmscore.custody._p11 import Module, Secret, Token

ROOT = Path(__file__).resolve().parents[2]
MECHANISMS = "CKM_AES_KEY_GEN,CKM_AES_GCM,CKM_AES_ECB_ENCRYPT_DATA"
PIN = b"user-pin-123"
SO_PIN = b"so-pin-12345"
LABEL = "core-test"
HEADER = bytes(range(19))
AAD = HEADER + bytes(4)


def softhsm() -> str:
    """Path of the SoftHSM module; skips the test where there is none."""
    for path in SOFTHSM_MODULES:
        if Path(path).exists():
            return path
    pytest.skip("SoftHSM is not installed")


def vectors(name: str) -> Any:
    """A file of outside vectors, found through KMS_VECTORS (default: ../shared/vectors beside the checkout); skips where it is absent."""
    path = Path(os.environ.get("KMS_VECTORS") or ROOT.parent / "shared" / "vectors") / name
    if not path.exists():
        pytest.skip(f"{path} is absent: set KMS_VECTORS to the folder of outside vectors")
    return json.loads(path.read_text())


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


def xaes_subkey(key: bytes, nonce: bytes) -> bytes:
    """Kx of XAES-256-GCM by docs/FORMAT.md, on `cryptography`."""

    def aes(block: bytes) -> bytes:
        return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(block)

    doubled = int.from_bytes(aes(bytes(16))) << 1
    k1 = (doubled ^ 0x87 if doubled >> 128 else doubled) & (1 << 128) - 1
    return b"".join(aes((int.from_bytes(bytes((0, half, 0x58, 0)) + nonce[:12]) ^ k1).to_bytes(16)) for half in (1, 2))


# Place in the function list (PKCS#11 v2.40 section 5.1), C_Initialize being 0.
_INDEX = {
    "C_InitPIN": 10,
    "C_OpenSession": 12,
    "C_CloseSession": 13,
    "C_Login": 18,
    "C_CreateObject": 20,
    "C_GetAttributeValue": 24,
    "C_EncryptInit": 29,
    "C_Encrypt": 30,
}


class Raw:
    """The module by its function list, through ctypes: what no method of the core offers, such as a chosen nonce."""

    def __init__(self, function_list: int, slot: int) -> None:
        self._list, self._slot = function_list, slot

    def call(self, name: str, *arguments: object) -> int:
        # CK_VERSION is two bytes, padded to a pointer; the pointers follow in the order of the specification.
        at = self._list + 8 + 8 * _INDEX[name]
        function = ctypes.CFUNCTYPE(ctypes.c_ulong)(ctypes.c_void_p.from_address(at).value)
        function.argtypes = [ctypes.c_ulong if isinstance(a, int) else ctypes.c_void_p for a in arguments]
        return int(function(*arguments))

    def open(self, flags: int = 4) -> int:
        handle = ctypes.c_ulong()
        assert self.call("C_OpenSession", self._slot, flags, None, None, ctypes.byref(handle)) == 0
        return handle.value

    def create(self, session: int, attributes: dict[int, bytes | int | bool]) -> int:
        """Handle of a new object; it lives as long as the session unless CKA_TOKEN says otherwise."""
        kept = []
        template = (ctypes.c_ulong * (3 * len(attributes)))()
        for at, (attribute, value) in enumerate(attributes.items()):
            if not isinstance(value, bytes):
                value = bytes([value]) if isinstance(value, bool) else value.to_bytes(8, "little")
            kept.append(ctypes.create_string_buffer(value, len(value)))
            template[3 * at : 3 * at + 3] = [attribute, ctypes.addressof(kept[-1]), len(value)]
        handle = ctypes.c_ulong()
        rv = self.call("C_CreateObject", session, template, len(attributes), ctypes.byref(handle))
        assert rv == 0, hex(rv)
        return handle.value

    def close(self, session: int) -> int:
        return self.call("C_CloseSession", session)

    def attribute(self, session: int, handle: int, attribute: int) -> tuple[int, bytes]:
        """(CK_RV, value) of one attribute."""
        value = ctypes.create_string_buffer(64)
        template = (ctypes.c_ulong * 3)(attribute, ctypes.addressof(value), 64)
        rv = self.call("C_GetAttributeValue", session, handle, template, 1)
        return rv, value.raw[: template[2]] if rv == 0 else b""

    def encrypt(self, session: int, handle: int, iv: bytes, aad: bytes, plaintext: bytes) -> bytes:
        """AES-GCM under a chosen 12-byte IV: ciphertext || tag."""
        iv_buffer, aad_buffer = ctypes.create_string_buffer(iv), ctypes.create_string_buffer(aad)
        parameters = (ctypes.c_ulong * 6)(ctypes.addressof(iv_buffer), 12, 96, ctypes.addressof(aad_buffer), len(aad), 128)
        mechanism = (ctypes.c_ulong * 3)(0x1087, ctypes.addressof(parameters), ctypes.sizeof(parameters))
        assert self.call("C_EncryptInit", session, mechanism, handle) == 0
        out, size = ctypes.create_string_buffer(len(plaintext) + 16), ctypes.c_ulong(len(plaintext) + 16)
        assert self.call("C_Encrypt", session, ctypes.create_string_buffer(plaintext), len(plaintext), out, ctypes.byref(size)) == 0
        return out.raw[: size.value]


@dataclass
class Rig:
    """A token that is logged in, in a module that this process has initialised."""

    module: Module
    lib: Any
    private_hot_keys: bool = False
    slot: int = -1
    token: Token = field(init=False)
    control: Any = field(init=False)
    """python-pkcs11's session on the token, read-write; session objects made in it live as long as it does."""
    raw: Raw = field(init=False)
    objects: list[Any] = field(default_factory=list)

    def connect(self) -> None:
        self.slot = slot_of(self.module)  # SoftHSM numbers its slots anew at every start
        self.token = self.module.open(self.slot, private_hot_keys=self.private_hot_keys)
        self.token.login(Secret.copy_of(PIN))
        (seen,) = (s for s in self.lib.get_slots(token_present=True) if s.slot_id == self.slot)
        self.control = seen.get_token().open(rw=True)
        self.raw = Raw(self.module.function_list, self.slot)

    def restart(self) -> None:
        """Finalise and start again: new sessions, a new Token, and every handle is another one."""
        self.control.close()
        self.module.finalize()
        self.module.initialize()
        self.connect()

    def key(self, value: bytes | None = None, *, derives: bool = True, resident: bool = True) -> int:
        """Handle of an AES key with this value (random if none): one that only derives, or one that only encrypts and decrypts."""
        value = os.urandom(32) if value is None else value
        thing = self.control.create_object(
            {
                Attribute.CLASS: ObjectClass.SECRET_KEY,
                Attribute.KEY_TYPE: KeyType.AES,
                Attribute.VALUE: value,
                Attribute.ID: os.urandom(16),
                Attribute.LABEL: "test",
                Attribute.TOKEN: resident,
                Attribute.PRIVATE: True,
                Attribute.SENSITIVE: True,
                Attribute.EXTRACTABLE: False,
                Attribute.DERIVE: derives,
                **dict.fromkeys((Attribute.ENCRYPT, Attribute.DECRYPT), not derives),
                **dict.fromkeys((Attribute.WRAP, Attribute.UNWRAP, Attribute.SIGN, Attribute.VERIFY), False),
            }
        )
        self.objects.append(thing)
        return int(thing.handle)


def configure(directory: Path, mechanisms: str = MECHANISMS) -> None:
    """A token directory of its own, with the short list of mechanisms that makes SoftHSM quick (HSM.md section 1)."""
    tokens = directory / "tokens"
    tokens.mkdir(mode=0o700)
    conf = directory / "softhsm2.conf"
    conf.write_text(
        f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n"
        f"slots.mechanisms = {mechanisms}\nlibrary.reset_on_fork = false\n"
    )
    os.environ["SOFTHSM2_CONF"] = str(conf)


@contextmanager
def started(directory: Path, *, path: str | None = None, mechanisms: str = MECHANISMS) -> Iterator[tuple[Module, Any]]:
    """(our Module, python-pkcs11's lib) on an empty token directory, initialised with locking; finalised at the end."""
    before = os.environ.get("SOFTHSM2_CONF")
    configure(directory, mechanisms)
    path = path or softhsm()
    lib = pkcs11.lib(path)
    lib.finalize()
    module = Module(path)
    module.initialize()
    try:
        yield module, lib
    finally:
        module.finalize()
        if before is None:
            os.environ.pop("SOFTHSM2_CONF", None)
        else:
            os.environ["SOFTHSM2_CONF"] = before


def slot_of(module: Module, label: str = LABEL) -> int:
    (slot,) = (slot for slot in module.slots() if module.token_info(slot)["label"] == label)
    return slot


def make_token(module: Module, label: str = LABEL) -> int:
    """Initialises a token with SO_PIN and PIN; returns its slot."""
    (empty,) = (slot for slot in module.slots(False) if not module.token_info(slot)["label"])
    module.init_token(empty, Secret.copy_of(SO_PIN), label)
    slot = slot_of(module, label)
    module.init_user_pin(slot, Secret.copy_of(SO_PIN), Secret.copy_of(PIN))
    return slot


@contextmanager
def open_rig(directory: Path, *, path: str | None = None, private_hot_keys: bool = False, mechanisms: str = MECHANISMS) -> Iterator[Rig]:
    """A fresh token, logged in."""
    with started(directory, path=path, mechanisms=mechanisms) as (module, lib):
        make_token(module)
        rig = Rig(module, lib, private_hot_keys)
        rig.connect()
        try:
            yield rig
        finally:
            rig.control.close()
            rig.token.close()


class Shim:
    """A module with faults on demand: see p11_shim.c."""

    FUNCTIONS = (
        "C_OpenSession",
        "C_EncryptInit",
        "C_Encrypt",
        "C_DecryptInit",
        "C_Decrypt",
        "C_DeriveKey",
        "C_DestroyObject",
        "C_CloseSession",
        "C_SignInit",
        "C_Sign",
        "C_MessageEncryptInit",
        "C_EncryptMessage",
        "C_MessageEncryptFinal",
        "C_MessageDecryptInit",
        "C_DecryptMessage",
        "C_MessageDecryptFinal",
    )

    def __init__(self, path: str) -> None:
        self.path = path
        self._library = ctypes.CDLL(path)
        self._library.shim_calls.restype = ctypes.c_long

    def fail(self, function: str, rv: int, *, skip: int = 0, times: int = 1, after: bool = False) -> None:
        """Let the next `times` calls answer `rv`, after `skip` good ones; `after`: the call is done all the same."""
        self._library.shim_fail(self.FUNCTIONS.index(function), ctypes.c_ulong(rv), skip, times, after)

    @contextmanager
    def held(self, function: str) -> Iterator[None]:
        """While inside, calls of the function wait at its door; they go on at the end."""
        self._library.shim_gate(self.FUNCTIONS.index(function), 1)
        try:
            yield
        finally:
            self._library.shim_gate(self.FUNCTIONS.index(function), 0)

    def wait_for(self, function: str, n: int = 1) -> None:
        """Until n calls wait at the door (ctypes drops the GIL meanwhile)."""
        self._library.shim_await(self.FUNCTIONS.index(function), n)

    def calls(self, function: str) -> int:
        return int(self._library.shim_calls(self.FUNCTIONS.index(function)))

    def reset(self) -> None:
        self._library.shim_reset()


def build_shim(directory: Path, module: str | None = None) -> Shim:
    """Compiles p11_shim.c before a module, SoftHSM if none; skips the test where there is no C compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("no C compiler for the fault-injecting module")
    path = directory / "p11_shim.so"
    source = Path(__file__).with_name("p11_shim.c")
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", f"-I{ROOT / 'ext'}", f'-DSHIM_MODULE="{module or softhsm()}"']
    subprocess.run([compiler, *options, "-o", path, source, "-lpthread", "-ldl"], check=True)
    return Shim(str(path))
