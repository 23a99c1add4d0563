"""Who asks, when, and by which command: what every event of one decision shares."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class By:
    now: datetime
    actor: str
    command_id: str

    @property
    def fields(self) -> dict[str, Any]:
        return {"timestamp": self.now, "actor": self.actor, "command_id": self.command_id}
