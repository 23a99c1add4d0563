"""What all operations of an open engine share: its parts, its end, and how keys are named and loaded."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from typing import Self

from kmscore.config import Settings
from kmscore.domain.by import By
from kmscore.domain.key import Key
from kmscore.engine.arguments import key_id_only
from kmscore.engine.gauges import Gauges
from kmscore.engine.services import Services
from kmscore.errors import SetupError, forked


class Engine:
    """An open engine on one home."""

    def __init__(self, services: Services, close: Callable[[], None]) -> None:
        self._services = services
        self._crypto = services.crypto
        self._asymmetric = services.asymmetric
        self._close: Callable[[], None] | None = close
        self._pid = os.getpid()
        atexit.register(self.close)  # before the interpreter takes the module's memory away

    @property
    def _s(self) -> Services:
        if os.getpid() != self._pid:  # encrypt and decrypt do not come by here: the core refuses by itself
            raise forked()
        if self._close is None:
            raise closed()
        return self._services

    @property
    def settings(self) -> Settings:
        return self._services.settings

    @property
    def gauges(self) -> Gauges:
        return self._services.gauges

    def close(self) -> None:
        """Stop the threads, drop every session key, leave the token. Idempotent."""
        atexit.unregister(self.close)
        close, self._close = self._close, None
        self._crypto = self._asymmetric = _Closed()  # type: ignore[assignment]
        if close is not None and os.getpid() == self._pid:
            close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- how -----------------------------------------------------------------------------------------------------------------------

    def _load(self, reference: str) -> Key:
        return self._s.lifecycle.load(self._s.ring.resolve(reference))

    def _change(self, key_id: str, decide: Callable[[Key, By], None]) -> tuple[Key, ...]:
        return self._s.lifecycle.change((self._own_id(key_id),), decide)

    def _own_id(self, reference: str | None) -> str:
        return key_id_only(reference, self._s.place)


class _Closed:
    """In the place of the cryptography of an engine that was closed."""

    def __getattr__(self, name: str) -> None:
        raise closed()


def closed() -> SetupError:
    return SetupError("this engine is closed")
