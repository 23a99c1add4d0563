"""A keeper of level HSM in memory, for tests of the engine: real cryptography that owes nothing to the C core, and a way to fail, stall or
crash at every point of an effect. Runs in microseconds, but for new RSA keys.

A FakeToken is the token itself and outlives "restarts": make a new FakeKeeper on it. It remembers, as SoftHSM does, half-made objects.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import UnsupportedAlgorithm

from kmscore.custody.fake_keys import FakeKey, FakeMacKey, FakePrivateKey, aes_block, generate, public_of, unwrapped
from kmscore.custody.port import Accept, Buffer, Facts, Inventory, Loaded, MaterialRef
from kmscore.custody.public import fits
from kmscore.custody.selftest import self_test
from kmscore.custody.wrapping import fitting, refused, serves
from kmscore.domain.algorithms import WrappingAlgorithm
from kmscore.domain.specs import SPECS, Family, KeySpec, KeyUsage, ProtectionLevel, Suite
from kmscore.errors import KmsError, TokenError, bad_material, invalid


class Crash(BaseException):
    """The process dies here. No `except Exception` clears up after it, as none would after kill -9."""


# Every point of an effect, in order. `generate`: nothing yet / a nameless fragment / an object with its id that is not usable / complete
# and durable but not reported. `unwrap`: nothing yet / complete and durable but not reported; in between it is as `generate`. `destroy`:
# nothing yet / gone but not yet durable or verified / gone but not reported.
POINTS = (
    "generate.before",
    "generate.fragment",
    "generate.half",
    "generate.after",
    "unwrap.before",
    "unwrap.after",
    "destroy.before",
    "destroy.during",
    "destroy.after",
    "load.before",
    "load.after",
    "inventory.before",
    "sweep.before",
)

Action = BaseException | Callable[[], object]


class Faults:
    """What happens at which point. An action is an exception to raise, or a callable (to stall, count or change things meanwhile)."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        """Every point passed so far, for tests that first run through and then crash at each."""
        self._planned: list[tuple[str, int, int, Action]] = []
        self._lock = threading.Lock()

    def at(self, point: str, action: Action, *, skip: int = 0, times: int = 1) -> None:
        """Do `action` at `point` (one of POINTS, or `*` for any), after `skip` passages of it, for `times` passages."""
        if point != "*" and point not in POINTS:
            raise ValueError(f"no such point: {point}")
        with self._lock:
            self._planned.append((point, skip, times, action))

    def crash_at_step(self, number: int) -> None:
        """Crash at the point that is passed as the `number`th from now, counted from 0 over all points."""
        self.at("*", Crash(f"step {number}"), skip=number)

    def clear(self) -> None:
        with self._lock:
            self._planned.clear()
            self.passed.clear()

    def pass_by(self, point: str) -> None:
        due: list[Action] = []
        with self._lock:
            self.passed.append(point)
            remaining = []
            for where, skip, times, action in self._planned:
                if where not in (point, "*"):
                    remaining.append((where, skip, times, action))
                elif skip:
                    remaining.append((where, skip - 1, times, action))
                else:
                    due.append(action)
                    if times > 1:
                        remaining.append((where, 0, times - 1, action))
            self._planned = remaining
        for action in due:
            if isinstance(action, BaseException):
                raise action
            action()


@dataclass(slots=True)
class FakeObject:
    """An object in a FakeToken. Half-made ones have no value."""

    label: str
    value: bytes | None


@dataclass(slots=True)
class FakeToken:
    """The token, with everything durable in it. Shared by all keepers ("processes") of a test, at once or one after the other."""

    serial: str = "fake-0001"
    can_derive: bool = True
    oaep_sha256: bool = True
    """Whether it unwraps RSAES-OAEP with SHA-256, which SoftHSM does not."""
    objects: dict[bytes, FakeObject] = field(default_factory=dict)
    fragments: int = 0
    faults: Faults = field(default_factory=Faults)
    busy: set[bytes] = field(default_factory=set)
    """Material ids whose keys answer False to retire(): a call is in flight for as long as the id is here."""
    lock: threading.RLock = field(default_factory=threading.RLock)


class FakeKeeper:
    """Implements port.Keeper on a FakeToken."""

    level = ProtectionLevel.HSM

    def __init__(self, token: FakeToken, instance_id: str = "test", *, allow_host_unwrap: bool = False) -> None:
        self.fake = token
        self.token_serial = token.serial
        self._prefix = f"kmscore/{instance_id}/"
        self._allow_host_unwrap = allow_host_unwrap
        self._closed = False

    def suite_for(self, spec: KeySpec, usage: KeyUsage) -> Suite:
        if not serves(spec, usage):
            raise invalid("KeySpec", f"The token cannot hold {spec} keys for {usage}.")
        if SPECS[spec].family is not Family.AES:
            return Suite.NONE
        return Suite.XAES_256_GCM if spec is KeySpec.AES_256 and self.fake.can_derive else Suite.AES_GCM

    def wrapping_usage(self, algorithm: WrappingAlgorithm, spec: KeySpec) -> KeyUsage:
        lacks = algorithm.hash == "SHA-256" and not self.fake.oaep_sha256
        if algorithm not in fitting(spec) or (lacks and not self._allow_host_unwrap):
            can = [fit for fit in fitting(spec) if self.fake.oaep_sha256 or fit.hash != "SHA-256"]
            raise refused(algorithm, spec, can, "The token")
        return KeyUsage.ENCRYPT_DECRYPT if lacks else KeyUsage.UNWRAP

    def generate(self, ref: MaterialRef) -> Facts:
        token = self.check_open()
        token.faults.pass_by("generate.before")
        token.fragments += 1
        token.faults.pass_by("generate.fragment")
        token.fragments -= 1
        self._put(ref, None)
        token.faults.pass_by("generate.half")
        value = generate(ref.spec)
        with token.lock:
            token.objects[ref.material_id].value = value
        facts = self._verified(ref, value)
        token.faults.pass_by("generate.after")
        return facts

    def unwrap(self, ref: MaterialRef, pair: MaterialRef, algorithm: WrappingAlgorithm, wrapped: Buffer, accept: Accept) -> Facts:
        token = self.check_open()
        token.faults.pass_by("unwrap.before")
        with token.lock:
            found = token.objects.get(pair.material_id)
        if found is None or found.value is None:
            raise KmsError("Rejected.Unavailable", "The key material is not available in the token.")
        value = unwrapped(found.value, algorithm, bytes(wrapped), SPECS[pair.spec].bytes)
        accept(_check_value(ref.spec, value))
        self._put(ref, value)
        facts = self._verified(ref, value)
        token.faults.pass_by("unwrap.after")
        return {**facts, "unwrapped_in": "token" if pair.usage is KeyUsage.UNWRAP else "host"}

    def destroy(self, material_id: bytes) -> None:
        token = self.check_open()
        token.faults.pass_by("destroy.before")
        with token.lock:
            token.objects.pop(material_id, None)
        token.faults.pass_by("destroy.during")
        token.faults.pass_by("destroy.after")

    def load(self, ref: MaterialRef) -> Loaded:
        token = self.check_open()
        token.faults.pass_by("load.before")
        with token.lock:
            found = token.objects.get(ref.material_id)
        if found is None:
            raise KmsError("Rejected.Unavailable", "The key material is not available in the token.")
        if found.value is None:
            raise TokenError(0x70, "C_DeriveKey", "CKR_MECHANISM_INVALID", "InternalFailure")
        key = self._key(ref, found.value)
        token.faults.pass_by("load.after")
        return key

    def gauges(self) -> Mapping[str, float]:
        return {}

    def inventory(self) -> Inventory:
        token = self.check_open()
        token.faults.pass_by("inventory.before")
        with token.lock:
            ours = {object_id for object_id, thing in token.objects.items() if thing.label == self._prefix + object_id.hex()}
            others = [f"id {object_id.hex()}, label {thing.label!r}" for object_id, thing in token.objects.items() if object_id not in ours]
            return Inventory(frozenset(ours), tuple(sorted(others) + ["fragment"] * token.fragments))

    def sweep(self) -> int:
        token = self.check_open()
        token.faults.pass_by("sweep.before")
        with token.lock:
            swept, token.fragments = token.fragments, 0
        return swept

    def close(self) -> None:
        self._closed = True

    def check_open(self) -> FakeToken:
        if self._closed:
            raise KmsError("ServiceUnavailableTemporary", "the token is closed")
        return self.fake

    def busy(self, material_id: bytes) -> bool:
        return material_id in self.fake.busy

    def _put(self, ref: MaterialRef, value: bytes | None) -> None:
        with self.fake.lock:
            if ref.material_id in self.fake.objects:
                raise KmsError("Rejected.Unavailable", "the token holds 2 objects with the id of one material")
            self.fake.objects[ref.material_id] = FakeObject(self._prefix + ref.material_id.hex(), value)

    def _key(self, ref: MaterialRef, value: bytes) -> Loaded:
        if SPECS[ref.spec].family is Family.AES:
            return FakeKey(self, ref.material_id, value, ref.suite)
        if SPECS[ref.spec].family is Family.HMAC:
            return FakeMacKey(self, ref.material_id, value, ref.spec)
        return FakePrivateKey(self, ref.material_id, value)

    def _verified(self, ref: MaterialRef, value: bytes) -> dict[str, str | int | bool]:
        facts: dict[str, str | int | bool] = {
            "label": self._prefix + ref.material_id.hex(),
            "token_serial": self.fake.serial,
            "sensitive": True,
            "extractable": False,
            "local": not ref.imported,
            "always_sensitive": not ref.imported,
            "never_extractable": not ref.imported,
        }
        if not ref.imported:
            facts["key_gen_mechanism"] = _GENERATED_BY[SPECS[ref.spec].family]
        public = b""
        if SPECS[ref.spec].is_asymmetric:
            public = public_of(value)
            facts["public_key"] = public.hex()
        else:
            facts["value_len"] = len(value)
        if ref.usage is not KeyUsage.UNWRAP:
            key = self._key(ref, value)
            self_test(key, ref, public)
            key.retire()
        return facts


_GENERATED_BY = {
    Family.AES: "CKM_AES_KEY_GEN",
    Family.RSA: "CKM_RSA_PKCS_KEY_PAIR_GEN",
    Family.EC: "CKM_EC_KEY_PAIR_GEN",
    Family.HMAC: "CKM_GENERIC_SECRET_KEY_GEN",
}


def _check_value(spec: KeySpec, value: bytes) -> bytes:
    """Of material that fits `spec`. Raises InvalidKeyMaterial for other."""
    if not SPECS[spec].is_asymmetric:
        if len(value) != SPECS[spec].bytes:
            raise bad_material()
        return aes_block(value, bytes(16))
    try:
        public = public_of(value, known_good=False)
        if fits(public, spec):
            return public
    except (ValueError, TypeError, UnsupportedAlgorithm):
        pass
    raise bad_material()
