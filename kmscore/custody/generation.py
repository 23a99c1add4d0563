"""Making this process look at the token's directory again: the remedy for a change that SoftHSM overlooks.

SoftHSM tells that another process changed the directory by a number in the file `generation`. But a process that changes something itself
takes over the number it finds, plus one, without having looked: an object that another process made just before stays unknown to it until
somebody changes something again (SoftHSMv2 2.6.1, Generation::commit; measured: it then answers that a live key is absent, and that a
key is gone that is not). So before a look that must be right, the number is changed from outside.
"""

from __future__ import annotations

import os
from pathlib import Path


def look_again(token_directory: Path) -> None:
    """Make the next look of every process on this token read its directory. Raises OSError.

    Any number that nobody has seen will do, so no lock is needed: if another writer comes between, its number is new to us as well. Nor may
    one be taken: POSIX locks, which SoftHSM uses, go with any close of the file in this process. Nothing here needs to be durable.
    """
    fd = os.open(token_directory / "generation", os.O_WRONLY | os.O_CLOEXEC)
    try:
        # 8 bytes, big-endian, never 0; far from the end, because SoftHSM counts up from here.
        os.pwrite(fd, (1 + int.from_bytes(os.urandom(7))).to_bytes(8), 0)
    finally:
        os.close(fd)
