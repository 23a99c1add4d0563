"""A hypothesis state machine over keys whose material is imported, against a small model with an injected clock, on the fake token.

The model knows the documented rules only: which material belongs to which version, when it ends, when the next takes over, and in which
state a key is then. Every ciphertext is also opened with the material itself, by the decoder of tests/vectors/independent.py.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import peers
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, initialize, invariant, precondition, rule
from independent import decode
from machines import Machine, run

from kmscore.results import ImportParameters

MATERIALS = [os.urandom(32) for _ in range(3)]
ALGORITHM = "RSAES_OAEP_SHA_1"


@dataclass
class Held:
    """A version as the model sees it."""

    material: int
    primary_at: datetime
    expires_at: datetime | None
    there: bool = True

    def in_time(self, now: datetime) -> bool:
        return self.expires_at is None or now < self.expires_at

    def usable(self, now: datetime) -> bool:
        return self.there and self.in_time(now)


@dataclass
class Model:
    key_id: str
    enabled: bool = True
    delete_at: datetime | None = None
    versions: list[Held] = field(default_factory=list)
    offer: ImportParameters | None = None

    def primary(self, now: datetime) -> Held | None:
        return next((v for v in reversed(self.versions) if v.primary_at <= now), None)

    def state(self, now: datetime) -> str:
        if self.delete_at:
            return "PendingDeletion"
        primary = self.primary(now)
        if primary is None or not primary.usable(now):
            return "PendingImport"
        return "Enabled" if self.enabled else "Disabled"


class ImportMachine(Machine):
    keys = Machine.keys
    blobs = Bundle("blobs")

    def offer(self, model: Model) -> ImportParameters:
        if model.offer is None or self.now() >= model.offer.token_expire_time:
            model.offer = self.kms.get_parameters_for_import(model.key_id, wrapping_algorithm=ALGORITHM, wrapping_key_spec="RSA_2048")
        return model.offer

    # --- rules -------------------------------------------------------------------------------------------------------------------

    @initialize(target=keys, level=st.sampled_from(["HSM", "SOFTWARE"]), hours=st.sampled_from([None, 2, 30]))
    def begin(self, level: str, hours: int | None) -> Model:
        model = self.create(level)
        self.bring(model, 0, hours)
        return model

    @precondition(lambda self: len(self.models) < 3)
    @rule(target=keys, level=st.sampled_from(["HSM", "SOFTWARE"]))
    def create(self, level: str) -> Model:
        model = Model(self.kms.create_key(protection_level=level, origin="EXTERNAL").key_id)
        self.models[model.key_id] = model
        return model

    @rule(model=keys, number=st.sampled_from([0, 0, 1, 2]), hours=st.sampled_from([None, 2, 30]))
    def bring(self, model: Model, number: int, hours: int | None) -> None:
        now = self.now()
        if self.gone(model):
            return
        offer = self.offer(model)
        expires = None if hours is None else now + timedelta(hours=hours)
        same = next((v for v in model.versions if v.material == number), None)
        code = None
        if model.delete_at:
            code = "Rejected.StateModifiedFailed"
        elif same is None and model.versions:
            code = "InvalidKeyMaterial"
        waited = model.state(now) == "PendingImport"
        wrapped = peers.wrap(offer.public_key, ALGORITHM, MATERIALS[number])
        more = {} if expires is None else {"key_material_expire_unix": int(expires.timestamp())}
        failed = self.failures(model)
        if code == "InvalidKeyMaterial" and failed >= 7:
            return  # the last attempt of a token is another test's
        self.expect(
            code,
            lambda: self.kms.import_key_material(model.key_id, encrypted_key_material=wrapped, import_token=offer.import_token, **more),
        )
        if code is None:
            if same is None:
                model.versions.append(Held(number, now, expires))
            else:
                same.there, same.expires_at = True, expires
            model.enabled = model.enabled or waited

    @rule(model=keys, number=st.sampled_from([0, 1, 2]), hours=st.sampled_from([None, 5, 40]))
    def bring_next(self, model: Model, number: int, hours: int | None) -> None:
        now = self.now()
        if self.gone(model) or self.failures(model) >= 7:
            return
        offer = self.offer(model)
        primary_at = now if hours is None else now + timedelta(hours=hours)
        state = model.state(now)
        code = None
        if state == "PendingDeletion":
            code = "Rejected.StateModifiedFailed"
        elif state == "PendingImport":
            code = "Rejected.PendingImport"
        elif any(primary_at < v.primary_at for v in model.versions):
            code = "InvalidParameter"
        elif any(v.material == number for v in model.versions):
            code = "InvalidKeyMaterial"
        wrapped = peers.wrap(offer.public_key, ALGORITHM, MATERIALS[number])
        more = {} if hours is None else {"key_material_activate_unix": int(primary_at.timestamp())}
        self.expect(
            code,
            lambda: self.kms.import_next_key_material(
                model.key_id, encrypted_key_material=wrapped, import_token=offer.import_token, **more
            ),
        )
        if code is None:
            model.versions.append(Held(number, primary_at, None))

    def failures(self, model: Model) -> int:
        key = self.kms._s.store.key(model.key_id)
        return max(key.failed_imports.values(), default=0) if key is not None else 0

    @rule(model=keys)
    def delete_material(self, model: Model) -> None:
        self.expect("Forbidden.KeyNotFound" if self.gone(model) else None, lambda: self.kms.delete_key_material(model.key_id))
        if not self.gone(model):
            for version in model.versions:
                version.there = False

    def switch_code(self, model: Model) -> str | None:
        if self.gone(model):
            return "Forbidden.KeyNotFound"
        return "Rejected.StateModifiedFailed" if model.state(self.now()) in ("PendingDeletion", "PendingImport") else None

    def use_code(self, model: Model, version: Held | None) -> str | None:
        if self.gone(model):
            return "Forbidden.KeyNotFound"
        state = model.state(self.now())
        if state != "Enabled":
            return f"Rejected.{state}"
        return None if version is not None and version.usable(self.now()) else "Rejected.PendingImport"

    @rule(target=blobs, model=keys, text=st.binary(min_size=1, max_size=20))
    def encrypt(self, model: Model, text: bytes) -> tuple[Model, Held, bytes, bytes] | None:
        version = model.primary(self.now())
        made = self.expect(self.use_code(model, version), lambda: self.kms.encrypt(model.key_id, text))
        if made is None:
            return None
        assert version is not None
        assert decode(made.ciphertext_blob, MATERIALS[version.material], bytes(4)) == text
        return model, version, made.ciphertext_blob, text

    @rule(made=blobs)
    def decrypt(self, made: tuple[Model, Held, bytes, bytes] | None) -> None:
        if made is not None:
            model, version, blob, text = made
            opened = self.expect(self.use_code(model, version), lambda: self.kms.decrypt(blob))
            assert opened is None or opened.plaintext == text

    @rule(hours=st.sampled_from([1, 4, 25, 40]))
    def time_passes(self, hours: int) -> None:
        self.clock.advance(timedelta(hours=hours))

    @rule()
    def due(self) -> None:
        assert self.kms.run_due().failed == ()
        for model in self.models.values():
            for version in model.versions:
                version.there = version.there and version.usable(self.now())

    @rule()
    def reconcile(self) -> None:
        report = self.kms.reconcile()
        assert report == type(report)()

    # --- what must hold after each step ------------------------------------------------------------------------------------------

    @invariant()
    def descriptions_and_lists_agree(self) -> None:
        now = self.now()
        states: dict[str, set[str]] = {}
        for model in self.models.values():
            if self.gone(model):
                continue
            told = self.kms.describe_key(model.key_id)
            primary = model.primary(now)
            assert told.key_state == model.state(now)
            shown = primary is not None and (primary.there or not primary.in_time(now))
            assert told.material_expire_time == (primary.expires_at if primary and shown else None)
            assert self.kms.list_key_versions(model.key_id).total_count == len(model.versions)
            states.setdefault(told.key_state, set()).add(model.key_id)
        for state in ("Enabled", "Disabled", "PendingDeletion", "PendingImport"):
            found = {item.key_id for item in self.kms.list_keys(filters={"KeyState": [state]}, page_size=100).items}
            assert found == states.get(state, set())


def test_imports_on_the_fake_token() -> None:
    run(ImportMachine, examples=25, steps=40)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_imports_on_the_fake_token_at_length() -> None:
    run(ImportMachine, examples=120, steps=60)
