"""What the hypothesis state machines share: one engine on a home of its own, an injected clock, and calls that must be refused."""

from __future__ import annotations

import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, rule, run_state_machine_as_test

from kmscore import FixedClock, KmsError
from kmscore.bootstrap import open_kms
from kmscore.custody.fake import FakeKeeper, FakeToken

START = datetime(2030, 1, 1, tzinfo=UTC)


class Lifecycle(Protocol):
    """What every model of a key has."""

    key_id: str
    enabled: bool
    delete_at: datetime | None


class Machine(RuleBasedStateMachine):
    """The rules that hold for keys of every origin; a subclass says when a key may be switched."""

    fake = True
    keys = Bundle("keys")

    def __init__(self) -> None:
        super().__init__()
        self.models: dict[str, Any] = {}
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

    def gone(self, model: Lifecycle) -> bool:
        return model.delete_at is not None and self.now() >= model.delete_at

    def switch_code(self, model: Any) -> str | None:
        """The code that EnableKey and DisableKey must answer with, None if they must succeed."""
        raise NotImplementedError

    @rule(model=keys)
    def disable(self, model: Lifecycle) -> None:
        code = self.switch_code(model)
        self.expect(code, lambda: self.kms.disable_key(model.key_id))
        if code is None:
            model.enabled = False

    @rule(model=keys)
    def enable(self, model: Lifecycle) -> None:
        code = self.switch_code(model)
        self.expect(code, lambda: self.kms.enable_key(model.key_id))
        if code is None:
            model.enabled = True

    @rule(model=keys, days=st.sampled_from([7, 8, 30, 366]))
    def schedule(self, model: Lifecycle, days: int) -> None:
        code = "Forbidden.KeyNotFound" if self.gone(model) else "Rejected.StateModifiedFailed" if model.delete_at else None
        self.expect(code, lambda: self.kms.schedule_key_deletion(model.key_id, pending_window_in_days=days))
        if code is None:
            model.delete_at = self.now() + timedelta(days=days)

    @rule(model=keys)
    def cancel(self, model: Lifecycle) -> None:
        code = "Forbidden.KeyNotFound" if self.gone(model) else None if model.delete_at else "Rejected.StateModifiedFailed"
        self.expect(code, lambda: self.kms.cancel_key_deletion(model.key_id))
        if code is None:
            model.delete_at, model.enabled = None, True

    @rule()
    def restart(self) -> None:
        self.kms.close()
        self.open()


def run(machine: type[Machine], examples: int, steps: int) -> None:
    """The same examples in every run."""
    chosen = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(machine, settings=chosen)
