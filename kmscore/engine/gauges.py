"""What an open engine says of itself in numbers, at the moment it is asked. How they are called and told is the door's business."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kmscore.clock import Clock
from kmscore.custody.port import Keeper
from kmscore.domain.specs import ProtectionLevel
from kmscore.engine.keyring import KeyRing
from kmscore.results import DueStatus
from kmscore.store.gauges import StoreGauges


class Gauges:
    def __init__(
        self,
        ring: KeyRing,
        keepers: Mapping[ProtectionLevel, Keeper],
        stored: StoreGauges,
        clock: Clock,
        due: Callable[[], DueStatus],
        lease_age: Callable[[], float | None],
    ) -> None:
        """`lease_age`: seconds since this process last knew that its views are fresh; None where there are no leases."""
        self._ring = ring
        self._keepers = keepers
        self._stored = stored
        self._clock = clock
        self._lease_age = lease_age
        self._due = due

    def own(self) -> dict[str, float]:
        """Of this process. Costs microseconds, and does not look at the store."""
        views, loaded = self._ring.held()
        found: dict[str, float] = {"key_views": views, "keys_loaded": loaded}
        for keeper in self._keepers.values():
            found |= keeper.gauges()
        if (age := self._lease_age()) is not None:
            found["lease_age_seconds"] = age
        return found

    def stored(self) -> dict[str, float]:
        """Of the store, the same for every process. Raises KmsError when it cannot be read."""
        intents, oldest = self._stored.open_intents(self._clock.now())
        due = self._due()
        found = {
            "log_position": self._stored.position(),
            "open_intents": intents,
            "open_intent_oldest_seconds": oldest,
            "due_backlog": due.backlog,
            "due_oldest_seconds": due.oldest_due_seconds,
            "due_parked": due.parked,
            "workers_alive": due.workers_alive,
        }
        return found if due.last_sweep_seconds_ago is None else found | {"sweep_age_seconds": due.last_sweep_seconds_ago}
