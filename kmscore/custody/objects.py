"""The objects of one token: sessions, finding, telling ours from others', destroying, and making what was written durable.

Knows no role, no key state and no cryptography. All that is special about SoftHSM's files is here and in what it imports.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pkcs11 import Attribute, ObjectClass
from pkcs11.exceptions import PKCS11Error
from pkcs11.types import Object, Session

from kmscore.custody import _p11, module, templates
from kmscore.custody.fragments import find_nameless, named_files, sweep_fragments
from kmscore.custody.generation import look_again
from kmscore.custody.locks import token_lock
from kmscore.custody.objectfile import is_whole
from kmscore.custody.port import Inventory
from kmscore.custody.tokenerrors import HANDLE_INVALID, calling, patiently
from kmscore.disk import FREE_SPACE_FLOOR, free_bytes
from kmscore.errors import KmsError, TokenError

T = TypeVar("T")

_RESIDENT = (ObjectClass.SECRET_KEY, ObjectClass.PRIVATE_KEY)
_DESTROY_ROUNDS = 3
_QUIET_LOOKS = 5
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


class TokenObjects:
    """Thread-safe. Sessions of python-pkcs11 are opened without a PIN: the login is the process's, and a session that was opened with one
    would log everybody out when it closes."""

    def __init__(self, opened: OpenToken, instance_id: str, *, hides_survivors: bool) -> None:
        """`hides_survivors`: SoftHSM's own way of failing, see destroy()."""
        self.own = opened.own
        self.lock = opened.library.objects
        """Hold it round whatever makes, destroys or looks for token objects and takes no longer than some milliseconds."""
        self._token = opened.token
        self._library = opened.library
        self._control = opened.library.control_token(opened.slot)
        self._instance_id = instance_id
        self._hides_survivors = hides_survivors
        self._mapper = templates.Mapper()
        self._index_lock = threading.Lock()
        self._handles: dict[bytes, int] | None = None

    # --- sessions and finding --------------------------------------------------------------------------------------------------

    @contextmanager
    def session(self) -> Iterator[Session]:
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

    def find(self, session: Session, material_id: bytes) -> list[Object]:
        with self.lock, calling("C_FindObjects"):
            return list(session.get_objects({Attribute.ID: material_id}))

    def holds(self, material_id: bytes) -> bool:
        """Whether a fresh session finds anything with this id."""
        self.look_again()
        with self.session() as session:
            return bool(self.find(session, material_id))

    def only(self, session: Session, material_id: bytes) -> Object:
        """The one object of a material. Raises Rejected.Unavailable."""
        return self._one(self.find(session, material_id))

    def attributes(self, thing: Object, wanted: Iterable[Attribute]) -> templates.Template:
        """In one call. What the token does not know is left out of the answer, and comparing tells whether it had to know it."""
        with calling("C_GetAttributeValue"):
            return {Attribute(number): value for number, value in thing.get_attributes(list(wanted)).items()}

    def handle(self, material_id: bytes, object_class: ObjectClass, *, fresh: bool) -> int:
        """From the index, filled by one enumeration, since a find costs 27 us for each object of the token (HSM section 6)."""
        if not fresh:
            with self._index_lock:
                if (handle := self.index().get(material_id)) is not None:
                    return handle
        found = self._find_handles(material_id, object_class)
        if not found and self.own is not None:
            self.look_again()
            found = self._find_handles(material_id, object_class)
        handle = self._one(found)
        self.remember(material_id, handle)
        return handle

    def index(self) -> dict[bytes, int]:
        """Handles by material id; what is there twice is left out."""
        if self._handles is None:
            index: dict[bytes, int] = {}
            twice: set[bytes] = set()
            for handle, object_id, _, object_class in self._enumerate():
                if object_class in _RESIDENT and len(object_id) == 16:
                    if object_id in index:
                        twice.add(object_id)
                    index[object_id] = handle
            self._handles = {object_id: handle for object_id, handle in index.items() if object_id not in twice}
        return self._handles

    def remember(self, material_id: bytes, handle: int) -> None:
        with self._index_lock:
            if self._handles is not None:
                self._handles[material_id] = handle

    def forget(self, material_id: bytes) -> None:
        with self._index_lock:
            if self._handles is not None:
                self._handles.pop(material_id, None)

    def look_again(self) -> None:
        """Before a look that must be right: SoftHSM overlooks what another process did just before we did something (generation.py)."""
        if self.own is None:
            return
        try:
            look_again(self.own.directory)
        except OSError as error:
            raise KmsError("ServiceUnavailableTemporary", f"cannot reach the token's files: {error.strerror}") from error

    def inventory(self) -> Inventory:
        """Our materials by id and label; as foreign everything else in a token that is ours, in another's only what bears our label."""
        prefix = templates.label_prefix(self._instance_id)
        materials: set[bytes] = set()
        foreign: list[str] = []
        self.look_again()
        for _, object_id, label, object_class in self._enumerate():
            if len(object_id) == 16 and label == templates.label_for(self._instance_id, object_id):
                materials.add(object_id)
            elif label.startswith(prefix) or (self.own is not None and (object_id or label)):
                foreign.append(f"class {object_class}, id {object_id.hex() or '(none)'}, label {label!r}")
        if self.own is not None:
            # Nameless objects are told by their files: over PKCS#11 the session keys of the hot path are nameless too.
            foreign += [f"object without id and label in {path.name}" for path in find_nameless(self.own.directory)]
        return Inventory(frozenset(materials), tuple(sorted(foreign)))

    # --- making and destroying -------------------------------------------------------------------------------------------------

    def mutation(self) -> AbstractContextManager[None]:
        """Round every change of token objects; shared (locks.py)."""
        return token_lock(self.own.home, shared=True) if self.own is not None else nullcontext()

    def check_space(self) -> None:
        """Before anything is made: SoftHSM does not notice when a write fails (RELIABILITY 1.1 fact 3)."""
        if self.own is not None and free_bytes(self.own.directory) < FREE_SPACE_FLOOR:
            raise KmsError("ServiceUnavailableTemporary", f"the disk of the token is nearly full: {self.own.directory}")

    @contextmanager
    def written_whole(self) -> Iterator[None]:
        """Round the making of an object: its file must be whole afterwards.

        SoftHSM answers from memory whatever became of its writes, so that a write cut short (a file size limit, a quota) would show only
        after a restart. What else appears meanwhile is another's, and is whole as soon as that one is done.
        """
        if self.own is None:
            yield
            return
        before = set(os.listdir(self.own.directory))
        yield
        made = [self.own.directory / name for name in set(os.listdir(self.own.directory)) - before if name.endswith(".object")]
        deadline = time.monotonic() + WHOLE_SECONDS
        while not made or any(not is_whole(path) for path in made):
            if time.monotonic() >= deadline:
                raise KmsError("ServiceUnavailableTemporary", "the token did not write all of the object")
            time.sleep(0.005)

    def barrier(self) -> None:
        """Make what the token wrote durable: SoftHSM never syncs (RELIABILITY 1.1 fact 1). Another token's durability is its own."""
        if self.own is None:
            return
        try:
            _p11.syncfs(str(self.own.directory))
        except OSError as error:
            raise KmsError("ServiceUnavailableTemporary", f"cannot sync the token's files: {error.strerror}") from error

    def destroy(self, material_id: bytes) -> None:
        """Destroy every object with this id, of whatever class, until a fresh session finds none; see port.Keeper.

        SoftHSM drops an object before it removes the file: after a C_DestroyObject that failed, no session of this process finds it any
        more, though it is there and every other process sees it (measured; SoftHSM #903). An empty find proves nothing then, so the id
        is remembered, and called gone only when all that is on the disk is also seen; else by another process, or after a restart.
        """
        failure = self._destroy_seen(material_id)
        self.forget(material_id)
        if self._hides_survivors and material_id in self._library.undead:
            if not self._sees_everything():
                raise failure or KmsError(
                    "ServiceUnavailableTemporary",
                    "an earlier attempt to destroy this object failed, and SoftHSM hides it from this process since: restart kmscore",
                )
            self._library.undead.discard(material_id)
        elif failure is not None:
            raise failure
        self.barrier()

    def sweep(self) -> int:
        """Remove the fragments of killed calls from the own token's directory; 0 at once for a token that is not ours."""
        if self.own is None:
            return 0
        with token_lock(self.own.home, shared=False):
            return sweep_fragments(self.own.directory)

    # --- inside ----------------------------------------------------------------------------------------------------------------

    def _destroy_seen(self, material_id: bytes) -> KmsError | None:
        failure: KmsError | None = None
        with self.mutation():
            for _ in range(_DESTROY_ROUNDS):
                with self.session() as session:
                    self.look_again()
                    found = self.find(session, material_id)
                    for thing in found:
                        try:
                            with self.lock, calling("C_DestroyObject"):
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

        Then nothing is hidden, and of two handles with one id one is a phantom. (A thread that uses a token object while another is making
        one can list the new one twice, when another process changed the directory just before; measured at 2 processes that did little
        but make RSA pairs and AES keys in 5 threads each: 18 of 2,290 generations.)
        """
        if self.own is None:
            return False
        for _ in range(_QUIET_LOOKS):
            if (answer := self._quiet_look(self.own.directory)) is not None:
                return answer
        # It may take seconds to get this, and holds others up meanwhile: an RSA pair is made under the shared lock.
        with token_lock(self.own.home, shared=False):
            return bool(self._quiet_look(self.own.directory))

    def _quiet_look(self, directory: Path) -> bool | None:
        """As _sees_everything, without a lock; None when something changed meanwhile. What two looks saw had a file all the time between
        them: each of their ids has one of its own."""
        files, looks = named_files(directory), []
        for _ in range(2):
            self.look_again()
            looks.append({(object_class, object_id) for _, object_id, _, object_class in self._enumerate() if object_id})
            if named_files(directory) != files:
                return None
        return len(looks[0]) >= len(files) if looks[0] == looks[1] else None

    def _one(self, found: Sequence[T]) -> T:
        if not found:
            raise KmsError("Rejected.Unavailable", "The key material is not available in the token.")
        if len(found) > 1 and not self._sees_everything():
            raise KmsError("Rejected.Unavailable", f"the token holds {len(found)} objects with the id of one material")
        return found[0]

    def _find_handles(self, material_id: bytes, object_class: ObjectClass) -> list[int]:
        with self.lock:
            return patiently(lambda: self._token.find(material_id, int(object_class)))

    def _enumerate(self) -> list[tuple[int, bytes, str, int]]:
        with self.lock:
            return patiently(self._token.object_ids)
