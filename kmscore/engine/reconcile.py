"""Recovery of interrupted work, and the comparison of what the events say with what the custodies hold.

Only explicit intents and recorded destructions lead to a destruction here; an object that no event explains is reported and left alone
(RELIABILITY 0.5: after an older store was restored, "unknown" objects are live keys of customers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kmscore.custody.port import Keeper
from kmscore.domain.by import By
from kmscore.domain.specs import ProtectionLevel
from kmscore.engine.effects import Effects
from kmscore.errors import KmsError
from kmscore.results import ReconcileReport
from kmscore.store.queries import Queries
from kmscore.store.readmodel import ABANDONED, ACTIVE, DESTROYED, DESTRUCTION, MATERIAL


class Reconciler:
    def __init__(self, queries: Queries, effects: Effects, keepers: Mapping[ProtectionLevel, Keeper], by: Callable[[], By]) -> None:
        self._queries = queries
        self._effects = effects
        self._keepers = keepers
        self._by = by

    def recover(self) -> ReconcileReport:
        """Settle every open intent whose process is gone. Quick: looks at open intents only."""
        abandoned: list[str] = []
        finished: list[str] = []
        pending: list[str] = []
        for intent in self._queries.open_intents():
            try:
                settled = self._effects.settle(intent.key_id, self._by, eviction_wait=0)
            except KmsError as error:
                pending.append(f"{intent.key_id}: {error.message}")
                continue
            if settled is not None:
                (abandoned if intent.kind == MATERIAL else finished).append(settled)
        try:
            self._effects.clear_remains()
        except KmsError as error:
            pending.append(f"what was given up: {error.message}")
        return ReconcileReport(abandoned=tuple(abandoned), finished=tuple(finished), pending=tuple(pending))

    def reconcile(self) -> ReconcileReport:
        """Recover, sweep the nameless remains of killed calls, then look at every object of every custody."""
        report = self.recover()
        swept = 0
        removed: list[str] = []
        quarantined: list[str] = []
        missing: list[str] = []
        for level, keeper in self._keepers.items():
            swept += keeper.sweep()
            # The custody first, then the events: what was made in between is known to both.
            inventory = keeper.inventory()
            unexplained = set(inventory.materials)
            absent: set[bytes] = set()
            for material_id, _, its_level, state in self._queries.materials():
                if material_id in unexplained:
                    unexplained.remove(material_id)
                    if state in (ABANDONED, DESTROYED):  # an older copy of the token was restored
                        keeper.destroy(material_id)
                        removed.append(material_id.hex())
                elif its_level == level.value and state == ACTIVE:
                    absent.add(material_id)
            quarantined += [f"{level.value} {material_id.hex()}" for material_id in sorted(unexplained)]
            quarantined += [f"{level.value} {description}" for description in inventory.foreign]
            missing += self._missing(keeper, absent)
        return ReconcileReport(
            abandoned=report.abandoned,
            finished=report.finished,
            removed=tuple(removed),
            swept=swept,
            quarantined=tuple(quarantined),
            missing=tuple(missing),
            pending=report.pending,
        )

    def _missing(self, keeper: Keeper, absent: set[bytes]) -> list[str]:
        """Active materials that the custody does not have: looked at twice, since both sides move on meanwhile."""
        if not absent:
            return []
        absent = absent - keeper.inventory().materials
        being_destroyed = {intent.key_id for intent in self._queries.open_intents() if intent.kind == DESTRUCTION}
        after = {material_id: self._queries.material(material_id) for material_id in absent}
        return sorted(m.hex() for m, (key_id, state) in after.items() if state == ACTIVE and key_id not in being_destroyed)
