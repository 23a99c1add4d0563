"""The one place that loads and initialises a PKCS#11 module for this process.

python-pkcs11 can only C_Initialize(NULL), which switches SoftHSM's mutexes off while it drops the GIL: threads then corrupt memory
(STYLE A1). So our core initialises the module, with CKF_OS_LOCKING_OK, and python-pkcs11 only loads it: its constructor in two halves, of
which the second would initialise. Handles and sessions are process-wide, so both share the one initialisation.

A module has one configuration per process (SoftHSM reads SOFTHSM2_CONF in C_Initialize), so the same home may be opened several times,
counted, another home only after the last close. Initialise after fork: what a child inherits is refused.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pkcs11
from pkcs11 import _pkcs11
from pkcs11.exceptions import PKCS11Error
from pkcs11.types import Slot, Token

from kmscore.custody import _p11
from kmscore.custody.tokenerrors import calling
from kmscore.errors import KmsError, SetupError, TokenError

_CONF = "SOFTHSM2_CONF"
_ALREADY_INITIALIZED = 0x191  # CKR_CRYPTOKI_ALREADY_INITIALIZED
# How long a close waits for calls of other threads, which cannot be cancelled; a large RSA key takes some seconds.
CLOSE_WAIT_SECONDS = 30.0
EXIT_WAIT_SECONDS = 5.0


class Control(Protocol):
    """What we use of python-pkcs11's `lib`."""

    def get_slots(self, token_present: bool = False) -> list[Slot]: ...


@dataclass(slots=True)
class Library:
    """An initialised module. Got from `acquire`, given back with `release`."""

    path: str
    conf: Path | None
    """The SOFTHSM2_CONF it was initialised with; None for a module that we do not configure."""
    init_args: str
    core: _p11.Module
    control: Control
    pid: int
    users: int = 1
    calls: int = 0
    """Threads inside `in_use` now; the core counts its own."""
    closing: bool = False
    """Nobody enters any more; it is finalised when the last call has returned, and only then forgotten."""
    tokens: dict[int, _p11.Token] = field(default_factory=dict)
    """Logged-in tokens by slot, shared by everyone in this process."""
    objects: threading.RLock = field(default_factory=threading.RLock)
    """Held round whatever makes, destroys or looks for token objects. SoftHSM reads its directory at a look-up when another process changed
    it; doing that while a thread is making an object lists that object twice, or half-made, for as long as the process lives (measured)."""
    undead: set[bytes] = field(default_factory=set)
    """Ids whose C_DestroyObject failed since C_Initialize: this process cannot see them any more, though they may exist (see hsm.py)."""

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Round every use of python-pkcs11: C_Finalize waits until nobody is inside. Raises KmsError after the last `release`."""
        with _guard:
            if _open.get(self.path) is not self or self.closing or self.pid != os.getpid():
                raise KmsError("ServiceUnavailableTemporary", "the token is closed")
            self.calls += 1
        try:
            yield
        finally:
            with _guard:
                self.calls -= 1
                _returned.notify_all()

    def logged_in(self, slot: int, login: Callable[[_p11.Token], None]) -> _p11.Token:
        """The token in `slot`, logged in by `login` when nobody in this process has done so yet."""
        with _guard:
            if slot not in self.tokens:
                token = self.core.open(slot)
                try:
                    login(token)
                except BaseException:
                    token.close()
                    raise
                self.tokens[slot] = token
            return self.tokens[slot]

    def control_token(self, slot: int) -> Token:
        """python-pkcs11's view of the token in `slot`, for the control plane. Raises TokenError."""
        with calling("C_GetTokenInfo"):
            for candidate in self.control.get_slots(token_present=True):
                if candidate.slot_id == slot:
                    return candidate.get_token()
        raise TokenError(0x03, "C_GetSlotList", "CKR_SLOT_ID_INVALID")


_guard = threading.RLock()
_returned = threading.Condition(_guard)
"""Told whenever a call returns. Waiting on it lets go of _guard, which the returning call needs."""
_open: dict[str, Library] = {}
_controls: dict[str, Control] = {}
"""python-pkcs11's side of each module ever loaded; it stays loaded, since nothing is gained by dlclose."""


def acquire(module: str | os.PathLike[str], conf: Path | None = None, init_args: str = "") -> Library:
    """Load and initialise `module`, with SOFTHSM2_CONF=`conf` and `init_args` (for NSS) if given; counts up when it is open already.

    Raises SetupError when the module cannot be loaded or initialised, is a spy, is in use with another configuration, or was
    inherited from a parent process.
    """
    path = os.path.realpath(module)
    conf = conf.resolve() if conf is not None else None
    with _guard:
        if (library := _open.get(path)) is not None and library.closing and library.pid == os.getpid():
            _shut(library, CLOSE_WAIT_SECONDS)  # what an earlier close did not see the end of
        if (library := _open.get(path)) is not None:
            _check_same(library, conf, init_args)
            library.users += 1
            return library
        refuse_spy(path)
        if not os.path.isfile(path):
            raise SetupError(f"there is no PKCS#11 module at {module}; name another in KMS_PKCS11_MODULE, or 'none' for no token")
        loaded: dict[str, Any] = pkcs11._loaded
        if (foreign := loaded.get(path)) is not None and foreign.initialized:
            raise SetupError(f"python-pkcs11 is already using {path} in this process, without locking; kmscore must be opened first, alone")
        try:
            core = _p11.Module(path)
            if path not in _controls:
                _controls[path] = _load_control(path)
            with _softhsm_conf(conf):
                core.initialize(init_args)
        except TokenError as error:
            hint = ": something else in this process has started it, so open kmscore first" if error.rv == _ALREADY_INITIALIZED else ""
            raise SetupError(f"the PKCS#11 module {path} does not start: {error.name}{hint}") from error
        except PKCS11Error as error:
            raise SetupError(f"the PKCS#11 module {path} cannot be loaded: {error or type(error).__name__}") from error
        except OSError as error:
            raise SetupError(f"the PKCS#11 module {path} cannot be loaded: {error}") from error
        library = Library(path, conf, init_args, core, _controls[path], os.getpid())
        _open[path] = library
        return library


def release(library: Library) -> None:
    """Give a library back; the last one closes its sessions (which logs out) and finalises it. Harmless after fork and after exit."""
    with _guard:
        if library.pid != os.getpid() or _open.get(library.path) is not library:
            return
        library.users -= 1
        if library.users:
            return
        _shut(library, CLOSE_WAIT_SECONDS)


def refuse_spy(path: str) -> None:
    """Raises SetupError for a logging proxy: pkcs11-spy writes the PIN and every plaintext to a file (RELIABILITY H4)."""
    if "spy" in os.path.basename(path).lower():
        raise SetupError(f"{path} looks like a PKCS#11 spy, which logs the PIN and all data; name the real module in KMS_PKCS11_MODULE")


def _check_same(library: Library, conf: Path | None, init_args: str) -> None:
    if library.pid != os.getpid():
        raise SetupError("this process was forked from one that has the token open; open kmscore after the fork, in each process")
    if (library.conf, library.init_args) != (conf, init_args):
        raise SetupError(
            f"{library.path} is open in this process with {library.conf or 'other arguments'}; a PKCS#11 module has one "
            "configuration per process: close that kmscore first, or use another process"
        )


def _load_control(path: str) -> Control:
    """python-pkcs11's `lib` as its __cinit__ leaves it: loaded. Its __init__ would C_Initialize(NULL)."""
    new: Any = _pkcs11.lib.__new__
    control: Control = new(_pkcs11.lib, path)
    return control


@contextlib.contextmanager
def _softhsm_conf(conf: Path | None) -> Iterator[None]:
    """SOFTHSM2_CONF for the length of a C_Initialize, the only moment it is read; then as it was."""
    if conf is None:
        yield
        return
    before = os.environ.get(_CONF)
    os.environ[_CONF] = str(conf)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_CONF]
        else:
            os.environ[_CONF] = before


def _shut(library: Library, wait_seconds: float) -> None:
    """Finalise, which logs out and kills every session and key, once every call has returned; _guard is held.

    Raises KmsError when one has not in time: the next close or open tries again.
    """
    library.closing = True
    library.tokens.clear()
    if not _returned.wait_for(lambda: not library.calls or _open.get(library.path) is not library, wait_seconds):
        raise KmsError("ServiceUnavailableTemporary", f"a call of {library.path} has not returned in {wait_seconds:g} seconds")
    if _open.get(library.path) is library:
        library.core.finalize()
        del _open[library.path]
        _returned.notify_all()


@atexit.register
def _shut_all() -> None:
    """Nobody closed: finalise before the C library's own exit handlers pull OpenSSL away under SoftHSM (SoftHSM #635)."""
    for library in list(_open.values()):
        if library.pid == os.getpid():
            with contextlib.suppress(Exception), _guard:
                _shut(library, EXIT_WAIT_SECONDS)
