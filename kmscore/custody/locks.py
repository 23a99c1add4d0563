"""The file locks of a home. They lie in files that are never removed, so a kill leaves nothing to clear away.

`home.lock`   exclusive round a whole start: first-start steps, C_Initialize, login (it is the login lock). bootstrap holds it.
`token.lock`  shared round every mutation of the token, exclusive round the fragment sweep: a slow key generation blocks nobody, and
              a sweep never meets a half-made object that somebody is still making.

flock(2) belongs to the open file description: each holder, also each thread, opens its own. Waiting is by polling, because a blocking
flock cannot be bounded without signals. Order: home.lock before token.lock, never the other way round.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kmscore.disk import make_directory
from kmscore.errors import KmsError

# Eight processes that start on one empty home queue up here, each for a first start or a C_Initialize of some thousand objects. Seconds.
HOME_WAIT_SECONDS = 60.0
# Longer than any sweep (the longest exclusive hold) and than a generation of a large RSA key (the longest shared one). Seconds.
TOKEN_WAIT_SECONDS = 15.0
_FIRST_PAUSE_SECONDS = 0.002
_LONGEST_PAUSE_SECONDS = 0.05


@contextmanager
def hold(path: Path, *, shared: bool = False, wait_seconds: float) -> Iterator[None]:
    """Hold the lock file at `path` for the length of the block. A process that dies lets go of it.

    Raises KmsError ServiceUnavailableTemporary when `wait_seconds` (boot-time clock) pass without getting it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _acquire(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, path, wait_seconds)
        try:
            yield
        finally:
            # Not left to close(): a child forked meanwhile shares the description and would keep the lock.
            fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def _acquire(fd: int, kind: int, path: Path, wait_seconds: float) -> None:
    deadline = time.monotonic() + wait_seconds
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise KmsError(
                    "ServiceUnavailableTemporary", f"another process holds {path} for longer than {wait_seconds:g} seconds; try again"
                ) from None
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


@contextmanager
def home_lock(home: Path, *, wait_seconds: float = HOME_WAIT_SECONDS) -> Iterator[None]:
    """Be the only process that starts on `home` (a directory that exists)."""
    with hold(_run_directory(home) / "home.lock", wait_seconds=wait_seconds):
        yield


@contextmanager
def token_lock(home: Path, *, shared: bool, wait_seconds: float = TOKEN_WAIT_SECONDS) -> Iterator[None]:
    """Shared: change the token. Exclusive: nobody changes the token. Not to be nested in one thread."""
    run = _run_directory(home)
    # Whoever wants it exclusively shuts the gate behind which new mutations queue up; else they could keep it waiting for ever.
    with ExitStack() as gate:
        gate.enter_context(hold(run / "token.gate", shared=shared, wait_seconds=wait_seconds))
        with hold(run / "token.lock", shared=shared, wait_seconds=wait_seconds):
            if shared:
                gate.close()
            yield


def _run_directory(home: Path) -> Path:
    run = home / "run"
    make_directory(run)
    return run
