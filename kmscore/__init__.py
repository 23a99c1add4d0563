"""kmscore: a key management service, embedded.

    import kmscore

    with kmscore.open_kms(home="var") as kms:
        key = kms.create_key(protection_level="HSM", description="orders")
        sealed = kms.encrypt(key.key_id, b"4111 1111 1111 1111", {"table": "orders"})
        assert kms.decrypt(sealed.ciphertext_blob, {"table": "orders"}).plaintext == b"4111 1111 1111 1111"

Keys of level HSM are generated in a PKCS#11 token and never leave it; keys of level SOFTWARE are wrapped under a key in it. An open
engine is thread-safe, may be open in several processes at once, and must be opened after a fork, in each child anew. Every refusal is
a `KmsError` with the wire's `code`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from kmscore.clock import Clock, FixedClock, SystemClock
from kmscore.domain.specs import ContentKind, KeySpec, KeyUsage, Origin, ProtectionLevel
from kmscore.errors import KmsError, SetupError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kmscore.engine.kms import Kms
    from kmscore.results import Finding, Moved

__version__ = "0.1.0"

__all__ = [
    "Clock",
    "ContentKind",
    "FixedClock",
    "KeySpec",
    "KeyUsage",
    "KmsError",
    "Origin",
    "ProtectionLevel",
    "SetupError",
    "SystemClock",
    "doctor",
    "migrate",
    "open_kms",
    "protect_process",
]


def open_kms(home: str | os.PathLike[str] | None = None, *, clock: Clock | None = None, ticker: bool = True, **settings: Any) -> Kms:
    """Open an engine on `home` (default: KMS_HOME, else `./var`), and make what a first start needs.

    Further settings are those of kms.toml and win over it. A ticker thread rotates and destroys on time, unless `ticker` is False or
    the clock is injected: call `run_due` then. Use it as a context manager, or close it. Raises SetupError, whose message says what
    to do.
    """
    from kmscore import bootstrap  # so that `import kmscore` needs no token library

    return bootstrap.open_kms(home, clock=clock, ticker=ticker, **settings)


def doctor(home: str | os.PathLike[str] | None = None, **settings: Any) -> list[Finding]:
    """Examine a home, also one that does not open: what is as it must be, what is not, and what to do about it."""
    from kmscore import bootstrap

    return bootstrap.doctor(home, **settings)


def migrate(
    home: str | os.PathLike[str] | None = None, *, to: str, progress: Callable[[str, int, int], None] = lambda *_: None, **settings: Any
) -> Moved:
    """Move the events of a home into PostgreSQL (`to`: "postgresql", which KMS_DATABASE_URL names, or a URL) or back (`to`: "sqlite").

    Raises SetupError, and nothing was moved, while a process has the home open, and where source or target are not as they must be.
    The same call again finishes a move that was interrupted. `progress` is called with what is done, events done, and events in all.
    """
    from kmscore import bootstrap

    return bootstrap.migrate(home, to=to, progress=progress, **settings)


def protect_process() -> dict[str, bool]:
    """No core dumps of this process, and no other process of the user may read its memory; answers which of the two took effect."""
    from kmscore.custody._p11 import protect_process as protect

    return protect()
