"""Which requests were seen: a set of nonces for each access key, in mapped files of the home that all its processes share.

Lives as long as the machine is up, whatever is killed; after a boot, requests stamped before it are refused instead (DESIGN section 9).
A nonce is kept from half an hour to an hour, and a request is refused a quarter of an hour after its stamp: no clock can bring one back.
Nothing here waits: neither for a lock nor for a disk.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kmscore.api._nonces import FULL, NEW, SEEN, holds, put_in
from kmscore.clock import wall_seconds
from kmscore.errors import KmsError
from kmscore.process import boot_id

WINDOW_SECONDS = 900  # how far a stamp may be from now, either way
EPOCH_SECONDS = 2 * WINDOW_SECONDS  # by time of arrival; the last two are looked at
# Slots of the tables of one access key and epoch, 8 bytes each: the next is made when the ones before are full. 38 million in all.
TABLES = (1 << 13, 1 << 16, 1 << 19, 1 << 22, 1 << 25)


class Nonces:
    def __init__(self, directory: Path, tables: tuple[int, ...] = TABLES, clock: Callable[[], float] = wall_seconds) -> None:
        """`directory` is made; what other boots of the machine left beside it is removed. `clock`: seconds since 1970."""
        self._directory = directory / f"nonces-{boot_id()}"
        for old in directory.glob("nonces-*"):
            if old != self._directory:
                shutil.rmtree(old, ignore_errors=True)
        self._directory.mkdir(mode=0o700, exist_ok=True)
        # Fingerprints are keyed: who could choose where a nonce goes would fill every table with a few of them.
        self._key = _shared_key(self._directory)
        self._sizes = tables
        self._clock = clock
        self._owners: dict[str, str] = {}
        self._open: dict[tuple[int, str, int], memoryview[int]] = {}
        self._absent: set[tuple[int, str, int]] = set()
        self._absent_at = -1
        self._swept = -1

    def take(self, access_key_id: str, nonce: str) -> None:
        """Remember a nonce of an access key; called from one thread. Raises SignatureNonceUsed when it is known already.

        Raises Rejected.Throttling when this access key has used up its room, ServiceUnavailableTemporary when the disk has.
        """
        owner = self._owners.get(access_key_id)
        if owner is None:
            owner = self._owners[access_key_id] = hashlib.blake2b(access_key_id.encode(), key=self._key, digest_size=8).hexdigest()
        value = int.from_bytes(hashlib.blake2b(f"{owner}{nonce}".encode(), key=self._key, digest_size=8).digest()) or 1
        mine: list[int] = []
        while (epoch := self._epoch()) not in mine:
            if epoch != self._swept:
                self._sweep(epoch)
            mine.append(epoch)
            # Put in before the neighbours are asked: of two processes that see an epoch end differently, one sees the other's.
            if self._put_in(epoch, owner, value) or any(
                self._holds(near, owner, value) for near in (epoch - 1, epoch + 1) if near not in mine
            ):
                raise KmsError("SignatureNonceUsed", "The request signature nonce has been used.")

    # --- how -----------------------------------------------------------------------------------------------------------------------

    def _epoch(self) -> int:
        now = int(self._clock())
        if now != self._absent_at:
            self._absent.clear()
            self._absent_at = now
        return now // EPOCH_SECONDS

    def _put_in(self, epoch: int, owner: str, value: int) -> bool:
        """Whether it was there; it is now."""
        for number in range(len(self._sizes)):
            table = self._table(epoch, owner, number)
            found = put_in(table or self._make(epoch, owner, number), value)
            if found != FULL:
                return found == SEEN
        raise KmsError("Rejected.Throttling", "This access key has sent more requests than can be told apart; wait some minutes.")

    def _holds(self, epoch: int, owner: str, value: int) -> bool:
        for number in range(len(self._sizes)):
            table = self._table(epoch, owner, number)
            found = NEW if table is None else holds(table, value)
            if found != FULL:
                return found == SEEN
        return False

    def _table(self, epoch: int, owner: str, number: int) -> memoryview[int] | None:
        """A table, where this process or another has made it; each is made when the one before it is full."""
        key = epoch, owner, number
        table = self._open.get(key)
        if table is None and key not in self._absent:
            if os.access(self._path(epoch, owner, number), os.F_OK):
                return self._make(epoch, owner, number)
            self._absent.add(key)  # for a second; of the epoch now, `_put_in` makes it anyway
        return table

    def _make(self, epoch: int, owner: str, number: int) -> memoryview[int]:
        """Open a table, or make it. Its blocks are reserved: what is written into a mapping must not find the disk full."""
        size = self._sizes[number] * 8
        try:
            handle = os.open(self._path(epoch, owner, number), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(handle, 0, size)
                table = memoryview(mmap.mmap(handle, size)).cast("Q")
            finally:
                os.close(handle)
        except OSError as error:
            raise KmsError("ServiceUnavailableTemporary", f"cannot remember requests: {error.strerror}") from error
        self._open[epoch, owner, number] = table
        return table

    def _path(self, epoch: int, owner: str, number: int) -> str:
        return f"{self._directory}/{epoch}-{owner}-{number}"

    def _sweep(self, epoch: int) -> None:
        """Let go of what no request can need any more. A clock that was set back keeps what is ahead of it."""
        for key in [key for key in self._open if key[0] < epoch - 1]:
            del self._open[key]
        for path in self._directory.iterdir():
            if path.name.partition("-")[0].isdigit() and int(path.name.partition("-")[0]) < epoch - 1:
                path.unlink(missing_ok=True)
        self._swept = epoch


def _shared_key(directory: Path) -> bytes:
    """32 bytes that all processes have, from whoever was first."""
    path = directory / "key"
    if not path.exists():
        own = directory / f"key-{os.getpid()}-{os.urandom(4).hex()}"
        with open(os.open(own, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(os.urandom(32))
        with suppress(FileExistsError):
            os.link(own, path)
        own.unlink()
    return path.read_bytes()
