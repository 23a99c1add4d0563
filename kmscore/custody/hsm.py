"""The keeper of level HSM: material that is made in a PKCS#11 token and never leaves it. Knows no event, no store, no key state.

The control plane (generation, look-up, attributes, destruction) goes through python-pkcs11, enumeration, login and all cryptography
through the core; both share the one initialisation in module.py. python-pkcs11 sessions are opened without a PIN: the login is the
process's, and a session of python-pkcs11 that was opened with one would log everybody out when it closes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from pkcs11 import Attribute, KeyType, Mechanism
from pkcs11.exceptions import PKCS11Error
from pkcs11.types import Object, Session

from kmscore.custody import _p11, module, templates
from kmscore.custody.files import FREE_SPACE_FLOOR, free_bytes
from kmscore.custody.fragments import count_named, find_nameless, sweep_fragments
from kmscore.custody.generation import look_again
from kmscore.custody.locks import token_lock
from kmscore.custody.objectfile import is_whole
from kmscore.custody.port import AeadKey, Inventory, MaterialRef
from kmscore.custody.selftest import self_test
from kmscore.custody.tokenerrors import HANDLE_INVALID, calling, patiently
from kmscore.domain.specs import SPECS, KeySpec, ProtectionLevel, Suite
from kmscore.errors import KmsError, TokenError, invalid

T = TypeVar("T")

_CKF_DERIVE = 0x80000
_CKO_SECRET_KEY = 4
_DESTROY_ROUNDS = 3
WHOLE_SECONDS = 2.0  # a C_GenerateKey of another process takes some 20 ms


@dataclass(frozen=True, slots=True)
class OwnToken:
    """What is special about the home's own SoftHSM token: where its files are, to guard, sweep and sync them."""

    home: Path
    directory: Path


@dataclass(frozen=True, slots=True)
class OpenToken:
    """A token that is logged in. Whoever has it gives `library` back with module.release."""

    library: module.Library
    slot: int
    token: _p11.Token
    own: OwnToken | None
    """None for a token that kmscore did not make."""


class HsmKeeper:
    """Keys of level HSM in one token. Thread-safe; one per open home. Made by token.open_hsm."""

    level = ProtectionLevel.HSM

    def __init__(self, opened: OpenToken, instance_id: str) -> None:
        """Takes `opened` over; close() gives it back."""
        library, slot = opened.library, opened.slot
        info = library.core.token_info(slot)
        self.token = opened.token
        """For what the engine does with the token itself: random bytes, gauges (`derivations`, `live_sessions`), `derived_limit`."""
        self.token_serial = str(info["serial"])
        self.token_facts = {name: str(info[name]) for name in ("label", "manufacturer", "model", "serial", "firmware", "hardware")}
        self.module_facts = {"path": library.path, **library.core.info()}
        self.owns_token = opened.own is not None
        mechanisms = library.core.mechanisms(slot)
        self.mechanisms = frozenset(mechanisms)
        self._derives = bool(mechanisms.get(int(Mechanism.AES_ECB_ENCRYPT_DATA), (0, 0, 0))[2] & _CKF_DERIVE)
        # SoftHSM's own way of failing, see destroy(); it may also be a SoftHSM token that an operator made.
        self._hides_survivors = "softhsm" in f"{info['manufacturer']} {info['model']}".lower()
        self._library = library
        self._objects = library.objects
        self._control = library.control_token(slot)
        self._instance_id = instance_id
        self._own = opened.own
        self._mapper = templates.mapper()
        self._lock = threading.Lock()
        self._handles: dict[bytes, int] | None = None
        self._closed = False

    # --- what the token can do -------------------------------------------------------------------------------------------------

    def suite_for(self, spec: KeySpec) -> Suite:
        """Suite 1 for 256-bit keys where the token derives, else suite 2. Raises InvalidParameter (KeySpec) naming what is missing."""
        can = self.mechanisms
        if spec in SPECS and {Mechanism.AES_KEY_GEN, Mechanism.AES_GCM} <= can:
            return Suite.XAES_256_GCM if spec is KeySpec.AES_256 and self._derives else Suite.AES_GCM
        names = ", ".join(sorted(templates.mechanism_name(number) for number in can))
        raise invalid("KeySpec", f"The token {self.token_facts['label']!r} cannot hold {spec} keys; it offers {names}.")

    # --- effects ---------------------------------------------------------------------------------------------------------------

    def generate(self, ref: MaterialRef) -> Mapping[str, str | int | bool]:
        """C_GenerateKey, a fresh look, a self-test, the durability barrier; see port.Keeper.

        Answers the attributes read back: sensitive, extractable, local, always_sensitive, never_extractable, key_gen_mechanism, usage,
        allowed_mechanisms, value_len, check_value, label, role, token_serial, ...
        """
        template = templates.template_for(ref, self._instance_id)
        if self._own is not None and free_bytes(self._own.directory) < FREE_SPACE_FLOOR:
            # SoftHSM does not notice when a write fails (RELIABILITY 1.1 fact 3).
            raise KmsError("ServiceUnavailableTemporary", f"the disk of the token is nearly full: {self._own.directory}")
        with self._mutation(), self._session() as session, self._objects, self._written_whole(), calling("C_GenerateKey"):
            session.generate_key(
                KeyType(int(template[Attribute.KEY_TYPE])),  # type: ignore[arg-type]
                8 * SPECS[ref.spec].material_bytes,
                mechanism=templates.ROLES[templates.ROLE_OF_SUITE[ref.suite]].generated_by,
                template=template,
            )
        facts = self._verified(ref)
        self._barrier()
        return facts

    def destroy(self, material_id: bytes) -> None:
        """Destroy every object with this id, of whatever class, until a fresh session finds none; see port.Keeper.

        SoftHSM drops an object before it removes the file: after a C_DestroyObject that failed, no session of this process finds it any
        more, though it is there and every other process sees it (measured; SoftHSM #903). An empty find proves nothing then, so the id
        is remembered, and called gone only when all that is on the disk is also seen; else by another process, or after a restart.
        """
        failure = self._destroy_seen(material_id)
        self._forget(material_id)
        if self._hides_survivors and material_id in self._library.undead:
            if not self._sees_everything():
                raise failure or KmsError(
                    "ServiceUnavailableTemporary",
                    "an earlier attempt to destroy this object failed, and SoftHSM hides it from this process since: restart kmscore",
                )
            self._library.undead.discard(material_id)
        elif failure is not None:
            raise failure
        self._barrier()

    def sweep(self) -> int:
        """Remove the fragments of killed calls from the own token's directory; 0 at once for a token that is not ours."""
        if self._own is None:
            return 0
        with token_lock(self._own.home, shared=False):
            return sweep_fragments(self._own.directory)

    # --- use -------------------------------------------------------------------------------------------------------------------

    def load(self, ref: MaterialRef) -> AeadKey:
        """The key, ready for use. A handle that went stale is looked up once more; see port.Keeper."""
        for fresh in (False, True):
            handle = self._handle(ref.material_id, fresh=fresh)
            try:
                key = self._key(ref, handle)
                if ref.suite is Suite.AES_GCM and not fresh:
                    # The core does not ask the token about a suite 2 key before its first use; one use, so that a stale handle shows here.
                    key.encrypt(b"", b"", b"")
                return key
            except TokenError as error:
                self._forget(ref.material_id)
                if fresh or error.rv not in HANDLE_INVALID:
                    raise
        raise _absent()

    def inventory(self) -> Inventory:
        """Our materials by id and label; as foreign everything else in a token that is ours, in another's only what bears our label."""
        prefix = templates.label_prefix(self._instance_id)
        materials: set[bytes] = set()
        foreign: list[str] = []
        self._look_again()
        for _, object_id, label, object_class in self._enumerate():
            if len(object_id) == 16 and label == templates.label_for(self._instance_id, object_id):
                materials.add(object_id)
            elif label.startswith(prefix) or (self._own is not None and (object_id or label)):
                foreign.append(f"class {object_class}, id {object_id.hex() or '(none)'}, label {label!r}")
        if self._own is not None:
            # Nameless objects are told by their files: over PKCS#11 the session keys of the hot path are nameless too.
            foreign += [f"object without id and label in {path.name}" for path in find_nameless(self._own.directory)]
        return Inventory(frozenset(materials), tuple(sorted(foreign)))

    def attributes(self, ref: MaterialRef) -> dict[Attribute, templates.Value]:
        """What the token says of the object now, for attestation and fsck. Raises Rejected.Unavailable unless there is exactly one."""
        self._look_again()
        with self._session() as session:
            return self._attributes(self._only(session, ref.material_id), ref)

    def close(self) -> None:
        """Give the token back; the last one of this process logs out and finalises. Keys that were loaded are dead then."""
        if not self._closed:
            self._closed = True
            module.release(self._library)

    # --- inside ----------------------------------------------------------------------------------------------------------------

    def _mutation(self) -> AbstractContextManager[None]:
        return token_lock(self._own.home, shared=True) if self._own is not None else nullcontext()

    @contextmanager
    def _session(self) -> Iterator[Session]:
        """A new read-write session of its own: whatever goes wrong in it ends with it (RELIABILITY R-2)."""

        def opened() -> Session:
            with calling("C_OpenSession"):
                return self._control.open(rw=True, attribute_mapper=self._mapper)

        with self._library.in_use():
            session = patiently(opened)
            try:
                yield session
            finally:
                # When this fails the session is gone already, and nothing of ours can be left in it.
                with suppress(PKCS11Error):
                    session.close()

    def _destroy_seen(self, material_id: bytes) -> KmsError | None:
        failure: KmsError | None = None
        with self._mutation():
            for _ in range(_DESTROY_ROUNDS):
                with self._session() as session:
                    self._look_again()
                    found = self._find(session, material_id)
                    for thing in found:
                        try:
                            with self._objects, calling("C_DestroyObject"):
                                thing.destroy()
                        except TokenError as error:
                            if error.rv not in HANDLE_INVALID:  # else somebody destroyed it first
                                failure = error
                                self._library.undead.add(material_id)
                if not found:
                    return failure
        return failure or KmsError("ServiceUnavailableTemporary", "the token still shows an object after its destruction")

    def _sees_everything(self) -> bool:
        """Whether each object on the disk that has an id is seen by this process, under an id of its own. False where that cannot be said.

        With nobody changing the token: then nothing is hidden, and of two handles with one id one is a phantom. (A thread that uses a
        token object while another is making one can list the new one twice, when another process changed the directory just before;
        measured at 3 processes of 6 threads that did little else: 9 of 1,500 generations.)
        """
        if self._own is None:
            return False
        with token_lock(self._own.home, shared=False):
            before = count_named(self._own.directory)
            self._look_again()
            seen = {(object_class, object_id) for _, object_id, _, object_class in self._enumerate() if object_id}
            return len(seen) >= max(before, count_named(self._own.directory))

    def _find(self, session: Session, material_id: bytes) -> list[Object]:
        with self._objects, calling("C_FindObjects"):
            return list(session.get_objects({Attribute.ID: material_id}))

    def _only(self, session: Session, material_id: bytes) -> Object:
        return self._one(self._find(session, material_id))

    def _one(self, found: Sequence[T]) -> T:
        if not found:
            raise _absent()
        if len(found) > 1 and not self._sees_everything():
            raise KmsError("Rejected.Unavailable", f"the token holds {len(found)} objects with the id of one material")
        return found[0]

    def _attributes(self, thing: Object, ref: MaterialRef) -> dict[Attribute, templates.Value]:
        # One call; attributes that the token does not know are left out of the answer, and comparing tells whether it had to know them.
        wanted = [*templates.expected_of(ref, self._instance_id), Attribute.CHECK_VALUE]
        with calling("C_GetAttributeValue"):
            return {Attribute(number): value for number, value in thing.get_attributes(wanted).items()}

    def _verified(self, ref: MaterialRef) -> dict[str, str | int | bool]:
        self._look_again()
        with self._session() as session:
            thing = self._only(session, ref.material_id)
            found = self._attributes(thing, ref)
            wrong = templates.differences(found, templates.expected_of(ref, self._instance_id))
            if wrong:
                raise KmsError("InternalFailure", f"the token made an object that is not as asked for: {', '.join(wrong)}")
            handle = int(thing.handle or 0)
        key = self._key(ref, handle)
        try:
            self_test(key, ref.material_id)
        finally:
            key.retire()
        with self._lock:
            if self._handles is not None:
                self._handles[ref.material_id] = handle
        return {**templates.facts_of(ref, found), "token_serial": self.token_serial}

    def _key(self, ref: MaterialRef, handle: int) -> AeadKey:
        make = self.token.xaes_key if ref.suite is Suite.XAES_256_GCM else self.token.gcm_key
        return cast(AeadKey, patiently(lambda: make(handle)))

    def _handle(self, material_id: bytes, *, fresh: bool) -> int:
        """From the index, filled by one enumeration, since a find costs 27 us for each object of the token (HSM section 6)."""
        if not fresh:
            with self._lock:
                if (handle := self._index_now().get(material_id)) is not None:
                    return handle
        found = self._find_key(material_id)
        if not found and self._own is not None:
            self._look_again()
            found = self._find_key(material_id)
        handle = self._one(found)
        with self._lock:
            if self._handles is not None:
                self._handles[material_id] = handle
        return handle

    def _find_key(self, material_id: bytes) -> list[int]:
        with self._objects:
            return patiently(lambda: self.token.find(material_id, _CKO_SECRET_KEY))

    def _look_again(self) -> None:
        """Before a look that must be right: SoftHSM overlooks what another process did just before we did something (generation.py)."""
        if self._own is None:
            return
        try:
            look_again(self._own.directory)
        except OSError as error:
            raise KmsError("ServiceUnavailableTemporary", f"cannot reach the token's files: {error.strerror}") from error

    def _enumerate(self) -> list[tuple[int, bytes, str, int]]:
        with self._objects:
            return patiently(self.token.object_ids)

    def _index_now(self) -> dict[bytes, int]:
        if self._handles is None:
            self._handles = self._index()
        return self._handles

    def _index(self) -> dict[bytes, int]:
        index: dict[bytes, int] = {}
        twice: set[bytes] = set()
        for handle, object_id, _, object_class in self._enumerate():
            if object_class == _CKO_SECRET_KEY and len(object_id) == 16:
                if object_id in index:
                    twice.add(object_id)
                index[object_id] = handle
        return {object_id: handle for object_id, handle in index.items() if object_id not in twice}

    def _forget(self, material_id: bytes) -> None:
        with self._lock:
            if self._handles is not None:
                self._handles.pop(material_id, None)

    @contextmanager
    def _written_whole(self) -> Iterator[None]:
        """Round the making of an object: its file must be whole afterwards.

        SoftHSM answers from memory whatever became of its writes, so that a write cut short (a file size limit, a quota) would show only
        after a restart. What else appears meanwhile is another process's, and is whole as soon as that one is done.
        """
        if self._own is None:
            yield
            return
        before = set(os.listdir(self._own.directory))
        yield
        made = [self._own.directory / name for name in set(os.listdir(self._own.directory)) - before if name.endswith(".object")]
        deadline = time.monotonic() + WHOLE_SECONDS
        while not made or any(not is_whole(path) for path in made):
            if time.monotonic() >= deadline:
                raise KmsError("ServiceUnavailableTemporary", "the token did not write all of the object")
            time.sleep(0.005)

    def _barrier(self) -> None:
        """Make what the token wrote durable: SoftHSM never syncs (RELIABILITY 1.1 fact 1). Another token's durability is its own."""
        if self._own is None:
            return
        try:
            _p11.syncfs(str(self._own.directory))
        except OSError as error:
            raise KmsError("ServiceUnavailableTemporary", f"cannot sync the token's files: {error.strerror}") from error


def _absent() -> KmsError:
    return KmsError("Rejected.Unavailable", "The key material is not available in the token.")
