"""The custodies, as the API calls them: instances. One for each protection level that this home offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from kmscore.clock import Clock
from kmscore.custody.port import Keeper
from kmscore.domain.names import Place
from kmscore.domain.specs import ProtectionLevel
from kmscore.errors import KmsError
from kmscore.results import Instance, InstanceItem
from kmscore.store.queries import Queries


class Instances:
    def __init__(
        self,
        home_id: str,
        made_at: datetime,
        keepers: Mapping[ProtectionLevel, Keeper],
        queries: Queries,
        clock: Clock,
        place: Place,
        about: Mapping[ProtectionLevel, Callable[[], tuple[str, str]]],
    ) -> None:
        """`home_id` is unique to the home, and in every instance id; `about` asks a custody for its name and version,
        and raises KmsError when it does not answer."""
        self._home_id = home_id
        self._made_at = made_at
        self._keepers = keepers
        self._queries = queries
        self._clock = clock
        self._place = place
        self._about = about

    def id_of(self, level: ProtectionLevel) -> str:
        return f"kst-{self._home_id}-{level.value.lower()}"

    def level_of(self, instance_id: str) -> ProtectionLevel:
        """Raises Forbidden.DKMSInstanceNotFound."""
        for level in self.levels():
            if self.id_of(level) == instance_id:
                return level
        raise KmsError("Forbidden.DKMSInstanceNotFound", "The specified KMS instance is not found.")

    def levels(self) -> list[ProtectionLevel]:
        return [level for level in ProtectionLevel if level in self._keepers]

    def items(self) -> list[InstanceItem]:
        return [InstanceItem(self.id_of(level), self._place.arn(f"keystore/{self.id_of(level)}")) for level in self.levels()]

    def describe(self, instance_id: str) -> Instance:
        level = self.level_of(instance_id)
        try:
            (name, version), status = self._about[level](), "Connected"
        except KmsError:
            (name, version), status = ("", ""), "Error"
        _, keys = self._queries.list_keys(self._clock.now(), {"ProtectionLevel": [level.value]}, 1, 0)
        return Instance(instance_id, name, status, self._made_at, level.value, version, keys)
