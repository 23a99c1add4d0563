"""How a fault of ours is logged: where it came from and what kind it is, never its text, which may hold what must not be shown."""

from __future__ import annotations

import logging
import traceback

from kmscore.errors import KmsError

log = logging.getLogger("kmscore")


def log_fault(what: str, error: BaseException) -> None:
    """A KmsError says only what may be read; of any other, the lines of code it passed."""
    if isinstance(error, KmsError):
        log.warning("%s: %s", what, error)
        return
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s: unexpected %s\n%s", what, type(error).__name__, where)
