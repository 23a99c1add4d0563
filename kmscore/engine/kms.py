"""Kms: one method for each operation of the API. Checks what the caller passed, resolves names, and hands over to the rooms that work."""

from __future__ import annotations

from typing import Any

from kmscore.engine.kms_access import AccessOperations
from kmscore.engine.kms_crypto import CryptoOperations
from kmscore.engine.kms_due import DueOperations
from kmscore.engine.kms_keys import KeyOperations
from kmscore.engine.kms_service import ServiceOperations
from kmscore.errors import KmsError, key_not_found
from kmscore.results import Finding, ReconcileReport


class Kms(KeyOperations, CryptoOperations, AccessOperations, ServiceOperations, DueOperations):
    """An open engine on one home. Made by `kmscore.open_kms`; thread-safe; not usable in a forked child."""

    # --- beyond the wire ---------------------------------------------------------------------------------------------------------

    @property
    def position(self) -> int:
        """How far in the log this engine is, its own last change included: what `be_at` of another engine on the same store takes."""
        return max(self._s.ring.position, self._s.store.position)

    def be_at(self, position: int) -> None:
        """Take in whatever was committed up to a position, so that what is asked next is answered as of then or later.

        Raises KmsError ServiceUnavailableTemporary when the log does not reach so far.
        """
        if self._s.ring.position < position and self._s.ring.refresh().position < position:
            raise KmsError("ServiceUnavailableTemporary", "this node has not yet seen what the request refers to; try again")

    def reconcile(self) -> ReconcileReport:
        """Finish or give up interrupted work, and compare every object of every custody with the events."""
        return self._s.reconciler.reconcile()

    def doctor(self) -> list[Finding]:
        """What is as it must be, what is not, and what to do about it."""
        return self._s.examine()

    def history(self, key_id: str) -> list[dict[str, Any]]:
        """Every event of a key, oldest first, also of one that is destroyed: `event`, `time`, `actor`, `request_id`, its own `facts`."""
        named = self._own_id(key_id)
        key = self._s.store.key(named)
        if key is None or key.system:
            raise key_not_found()
        events = []
        for event in self._s.store.events(named):
            facts = dict(vars(event))
            for name in ("originator_id", "originator_topic"):
                facts.pop(name, None)
            events.append(
                {
                    "version": facts.pop("originator_version"),
                    "time": facts.pop("timestamp"),
                    "event": type(event).__name__,
                    "actor": facts.pop("actor"),
                    "request_id": facts.pop("command_id"),
                    "facts": facts,
                }
            )
        return events
