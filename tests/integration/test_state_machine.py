"""A hypothesis state machine drives the engine against a small model with an injected clock: on the fake token and on a real one.

The model knows the documented rules only: states, dates, which ciphertext must open and which must be refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, consumes, invariant, rule
from machines import START, Machine, run

DAY = timedelta(days=1)


@dataclass
class Model:
    key_id: str
    level: str
    created: datetime
    enabled: bool = True
    delete_at: datetime | None = None
    versions: int = 1
    interval: timedelta | None = None
    rotated: datetime = START
    tags: dict[str, str] = field(default_factory=dict)

    def state(self) -> str:
        return "PendingDeletion" if self.delete_at else "Enabled" if self.enabled else "Disabled"


USE = {"Enabled": None, "Disabled": "Rejected.Disabled", "PendingDeletion": "Rejected.PendingDeletion"}


class EngineMachine(Machine):
    keys = Machine.keys
    blobs = Bundle("blobs")

    def use_code(self, model: Model) -> str | None:
        return "Forbidden.KeyNotFound" if self.gone(model) else USE[model.state()]

    def switch_code(self, model: Model) -> str | None:
        if self.gone(model):
            return "Forbidden.KeyNotFound"
        return "Rejected.StateModifiedFailed" if model.delete_at else None

    # --- rules -------------------------------------------------------------------------------------------------------------------

    @rule(
        target=keys,
        level=st.sampled_from(["HSM", "SOFTWARE"]),
        spec=st.sampled_from(["Aliyun_AES_256", "Aliyun_AES_256", "Aliyun_AES_128"]),
    )
    def create(self, level: str, spec: str) -> Model:
        made = self.kms.create_key(protection_level=level, key_spec=spec, description="made")
        assert made.key_state == "Enabled"
        model = Model(made.key_id, level, self.now(), rotated=self.now())
        self.models[model.key_id] = model
        return model

    @rule(model=keys)
    def rotate(self, model: Model) -> None:
        if self.expect(self.use_code(model), lambda: self.kms.rotate_key(model.key_id)):
            model.versions += 1
            model.rotated = self.now()

    @rule(model=keys, days=st.sampled_from([7, 20]))
    def rotate_automatically(self, model: Model, days: int) -> None:
        code = self.use_code(model)
        call = lambda: self.kms.update_rotation_policy(  # noqa: E731
            model.key_id, enable_automatic_rotation=True, rotation_interval=f"{days}d"
        )
        self.expect(code, call)
        if code is None:
            model.interval = days * DAY
            if self.now() >= model.rotated + model.interval:  # over already: immediate, for every key that is due
                self.due()

    @rule(model=keys)
    def tag(self, model: Model) -> None:
        code = self.use_code(model) if model.delete_at else None
        self.expect(code, lambda: self.kms.tag_resource(model.key_id, tags={"n": str(model.versions)}))
        if code is None:
            model.tags = {"n": str(model.versions)}

    @rule(target=blobs, model=keys, text=st.binary(min_size=1, max_size=40), context=st.sampled_from([None, {}, {"a": "bc"}, {"ab": "c"}]))
    def encrypt(self, model: Model, text: bytes, context: dict[str, str] | None) -> tuple[Model, bytes, bytes, dict[str, str]] | None:
        made = self.expect(self.use_code(model), lambda: self.kms.encrypt(model.key_id, text, context))
        return (model, made.ciphertext_blob, text, context or {}) if made else None

    @rule(made=blobs, context=st.sampled_from([None, {}, {"a": "bc"}, {"ab": "c"}]))
    def decrypt(self, made: tuple[Model, bytes, bytes, dict[str, str]] | None, context: dict[str, str] | None) -> None:
        if made is None:
            return
        model, blob, text, bound = made
        code = self.use_code(model) or (None if (context or {}) == bound else "InvalidParameter")
        opened = self.expect(code, lambda: self.kms.decrypt(blob, context))
        if code is None:
            assert opened.plaintext == text
            assert opened.key_id == model.key_id

    @rule(made=consumes(blobs), target_model=keys)
    def re_encrypt(self, made: tuple[Model, bytes, bytes, dict[str, str]] | None, target_model: Model) -> None:
        if made is None:
            return
        model, blob, text, bound = made
        code = self.use_code(target_model) or self.use_code(model)
        moved = self.expect(
            code, lambda: self.kms.re_encrypt(blob, destination_key_id=target_model.key_id, source_encryption_context=bound)
        )
        if moved:
            assert self.kms.decrypt(moved.ciphertext_blob).plaintext == text

    @rule(hours=st.sampled_from([1, 24, 24 * 7, 24 * 30]))
    def time_passes(self, hours: int) -> None:
        self.clock.advance(timedelta(hours=hours))

    @rule()
    def due(self) -> None:
        self.kms.run_due()
        now = self.now()
        for model in list(self.models.values()):
            if self.gone(model):
                del self.models[model.key_id]
            elif model.interval and model.state() == "Enabled" and now >= model.rotated + model.interval:
                model.versions += 1
                model.rotated = now

    @rule()
    def reconcile(self) -> None:
        report = self.kms.reconcile()
        assert report.quarantined == report.missing == report.removed == report.pending == report.abandoned == ()

    # --- what must hold after each step ------------------------------------------------------------------------------------------

    @invariant()
    def lists_agree(self) -> None:
        visible = {m.key_id for m in self.models.values() if not self.gone(m)}
        found: set[str] = set()
        number = 1
        while page := self.kms.list_keys(page_number=number, page_size=100).items:
            found |= {item.key_id for item in page}
            number += 1
        assert found == visible

    @invariant()
    def descriptions_agree(self) -> None:
        for model in list(self.models.values())[-3:]:
            if self.gone(model):
                self.expect("Forbidden.KeyNotFound", lambda model=model: self.kms.describe_key(model.key_id))
                continue
            told = self.kms.describe_key(model.key_id)
            assert told.key_state == model.state()
            assert told.protection_level == model.level
            assert told.last_rotation_date == model.rotated
            assert told.delete_date == model.delete_at
            assert self.kms.list_key_versions(model.key_id).total_count == model.versions
            assert {tag.tag_key: tag.tag_value for tag in self.kms.list_resource_tags(model.key_id)} == model.tags


class OnARealToken(EngineMachine):
    fake = False


def test_on_the_fake_token() -> None:
    run(EngineMachine, examples=30, steps=50)


def test_on_a_real_token() -> None:
    run(OnARealToken, examples=10, steps=40)


@pytest.mark.slow
def test_on_the_fake_token_at_length() -> None:
    run(EngineMachine, examples=200, steps=80)


@pytest.mark.slow
def test_on_a_real_token_at_length() -> None:
    run(OnARealToken, examples=40, steps=80)
