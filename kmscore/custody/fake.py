"""A keeper of level HSM in memory, for tests of the engine: real AES by `cryptography`, a written-out XAES that owes nothing to the C core,
and a way to fail, stall or crash at every point of an effect. Runs in microseconds.

A FakeToken is the token itself and outlives "restarts": make a new FakeKeeper on it. It remembers, as SoftHSM does, half-made objects.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kmscore.custody.port import AeadKey, Buffer, Inventory, MaterialRef, Secret
from kmscore.custody.selftest import self_test
from kmscore.domain.specs import NONCE_BYTES, SPECS, TAG_BYTES, KeySpec, ProtectionLevel, Suite
from kmscore.errors import KmsError, TokenError, invalid, undecryptable


class Crash(BaseException):
    """The process dies here. No `except Exception` clears up after it, as none would after kill -9."""


# Every point of an effect, in order. `generate`: nothing yet / a nameless fragment / an object with its id that is not usable / complete
# and durable but not reported. `destroy`: nothing yet / gone but not yet durable or verified / gone but not reported.
POINTS = (
    "generate.before",
    "generate.fragment",
    "generate.half",
    "generate.after",
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
    objects: dict[bytes, FakeObject] = field(default_factory=dict)
    fragments: int = 0
    faults: Faults = field(default_factory=Faults)
    busy: set[bytes] = field(default_factory=set)
    """Material ids whose keys answer False to retire(): a call is in flight for as long as the id is here."""
    lock: threading.RLock = field(default_factory=threading.RLock)


class FakeKeeper:
    """Implements port.Keeper on a FakeToken."""

    level = ProtectionLevel.HSM

    def __init__(self, token: FakeToken, instance_id: str = "test") -> None:
        self.fake = token
        self.token_serial = token.serial
        self._prefix = f"kmscore/{instance_id}/"
        self._closed = False

    def suite_for(self, spec: KeySpec) -> Suite:
        if spec not in SPECS:
            raise invalid("KeySpec", f"The token cannot hold {spec} keys.")
        return Suite.XAES_256_GCM if spec is KeySpec.AES_256 and self.fake.can_derive else Suite.AES_GCM

    def generate(self, ref: MaterialRef) -> Mapping[str, str | int | bool]:
        token = self._open()
        token.faults.pass_by("generate.before")
        token.fragments += 1
        token.faults.pass_by("generate.fragment")
        token.fragments -= 1
        with token.lock:
            if ref.material_id in token.objects:
                raise KmsError("Rejected.Unavailable", "the token holds 2 objects with the id of one material")
            token.objects[ref.material_id] = FakeObject(self._prefix + ref.material_id.hex(), None)
        token.faults.pass_by("generate.half")
        with token.lock:
            value = os.urandom(SPECS[ref.spec].material_bytes)
            token.objects[ref.material_id].value = value
        key = FakeKey(self, ref, value)
        self_test(key, ref.material_id)
        key.retire()
        token.faults.pass_by("generate.after")
        return {
            "label": self._prefix + ref.material_id.hex(),
            "token_serial": token.serial,
            "sensitive": True,
            "extractable": False,
            "local": True,
            "always_sensitive": True,
            "never_extractable": True,
            "key_gen_mechanism": "CKM_AES_KEY_GEN",
            "value_len": len(value),
        }

    def destroy(self, material_id: bytes) -> None:
        token = self._open()
        token.faults.pass_by("destroy.before")
        with token.lock:
            token.objects.pop(material_id, None)
        token.faults.pass_by("destroy.during")
        token.faults.pass_by("destroy.after")

    def load(self, ref: MaterialRef) -> AeadKey:
        token = self._open()
        token.faults.pass_by("load.before")
        with token.lock:
            found = token.objects.get(ref.material_id)
        if found is None:
            raise KmsError("Rejected.Unavailable", "The key material is not available in the token.")
        if found.value is None:
            raise TokenError(0x70, "C_DeriveKey", "CKR_MECHANISM_INVALID", "InternalFailure")
        key = FakeKey(self, ref, found.value)
        token.faults.pass_by("load.after")
        return key

    def inventory(self) -> Inventory:
        token = self._open()
        token.faults.pass_by("inventory.before")
        with token.lock:
            ours = {object_id for object_id, thing in token.objects.items() if thing.label == self._prefix + object_id.hex()}
            others = [f"id {object_id.hex()}, label {thing.label!r}" for object_id, thing in token.objects.items() if object_id not in ours]
            return Inventory(frozenset(ours), tuple(sorted(others) + ["fragment"] * token.fragments))

    def sweep(self) -> int:
        token = self._open()
        token.faults.pass_by("sweep.before")
        with token.lock:
            swept, token.fragments = token.fragments, 0
        return swept

    def close(self) -> None:
        self._closed = True

    def _open(self) -> FakeToken:
        if self._closed:
            raise KmsError("ServiceUnavailableTemporary", "the token is closed")
        return self.fake


class FakeKey:
    """Implements port.AeadKey. Usable until retire(), or until its keeper is closed."""

    def __init__(self, keeper: FakeKeeper, ref: MaterialRef, value: bytes) -> None:
        self.suite: int = ref.suite
        self._keeper = keeper
        self._id = ref.material_id
        self._value: bytes | None = value
        self._derived: set[bytes] = set()

    @property
    def live(self) -> int:
        return len(self._derived)

    def encrypt(self, header: bytes, aad: bytes, plaintext: Buffer | Secret) -> bytes:
        nonce = os.urandom(NONCE_BYTES[Suite(self.suite)])
        data = bytes(plaintext) if isinstance(plaintext, bytes | bytearray | memoryview) else plaintext.reveal()
        return header + nonce + self._aead(nonce).encrypt(nonce[-12:], data, aad)

    def encrypt_batch(self, header: bytes, aad: bytes, plaintexts: Sequence[Buffer | Secret]) -> list[bytes | Exception]:
        return [self.encrypt(header, aad, plaintext) for plaintext in plaintexts]

    def decrypt(self, header_size: int, aad: bytes, blob: Buffer) -> bytes:
        data = bytes(blob)
        start = header_size + NONCE_BYTES[Suite(self.suite)]
        if len(data) < start + TAG_BYTES:
            raise undecryptable()
        nonce = data[header_size:start]
        try:
            return self._aead(nonce).decrypt(nonce[-12:], data[start:], aad)
        except InvalidTag:
            raise undecryptable() from None

    def decrypt_secret(self, header_size: int, aad: bytes, blob: Buffer) -> Secret:
        from kmscore.custody import _p11  # only here, so that the fake works without the compiled core

        return _p11.Secret.copy_of(self.decrypt(header_size, aad, blob))

    def decrypt_batch(self, header_size: int, aad: bytes, blobs: Sequence[Buffer]) -> list[bytes | Exception]:
        results: list[bytes | Exception] = []
        for blob in blobs:
            try:
                results.append(self.decrypt(header_size, aad, blob))
            except KmsError as error:
                results.append(error)
        return results

    def retire(self) -> bool:
        self._value = None
        if self._id in self._keeper.fake.busy:
            return False
        self._derived.clear()
        return True

    def _aead(self, nonce: bytes) -> AESGCM:
        self._keeper._open()
        if self._value is None:
            raise KmsError("Rejected.Unavailable", "The key material is no longer available here.")
        if self.suite == Suite.AES_GCM:
            return AESGCM(self._value)
        self._derived.add(nonce[:12])
        return AESGCM(xaes_subkey(self._value, nonce))


def xaes_subkey(key: bytes, nonce: bytes) -> bytes:
    """Kx of C2SP XAES-256-GCM for a 32-byte key and a 24-byte nonce; the message is then sealed under nonce[12:24]."""
    ecb = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - blocks of a KDF, no message
    top = int.from_bytes(ecb.update(bytes(16)))
    k1 = ((top << 1) & ((1 << 128) - 1)) ^ (0x87 if top >> 127 else 0)
    blocks = (int.from_bytes(bytes((0, counter, 0x58, 0)) + nonce[:12]) ^ k1 for counter in (1, 2))
    return ecb.update(b"".join(block.to_bytes(16) for block in blocks))
