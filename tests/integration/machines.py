"""What the hypothesis state machines share: one engine on a home of its own, an injected clock, and calls that must be refused."""

from __future__ import annotations

import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from kmscore import FixedClock, KmsError
from kmscore.bootstrap import open_kms
from kmscore.custody.fake import FakeKeeper, FakeToken

START = datetime(2030, 1, 1, tzinfo=UTC)


class Machine(RuleBasedStateMachine):
    fake = True

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="kms-machine-"))
        self.clock = FixedClock(START)
        self.token = FakeToken()
        self.open()

    def open(self) -> None:
        hsm = FakeKeeper(self.token) if self.fake else None
        self.kms = open_kms(self.home, clock=self.clock, hsm=hsm, import_failure_seconds=0.0001)

    def teardown(self) -> None:
        self.kms.close()
        shutil.rmtree(self.home)

    def expect(self, code: str | None, call: Any) -> Any:
        """Call; the answer when `code` is None, else the call must be refused with it."""
        if code is None:
            return call()
        with pytest.raises(KmsError) as refused:
            call()
        assert refused.value.code == code, refused.value
        return None

    def now(self) -> datetime:
        return self.clock.now()


def run(machine: type[Machine], examples: int, steps: int) -> None:
    """The same examples in every run."""
    chosen = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(machine, settings=chosen)
