"""The keeper of level SOFTWARE: material in the store, wrapped under a root key, in clear only in the core's locked memory.

The root key lives in the token (an HsmKeeper's key) or, where there is none, in a file of the home. Layout: docs/FORMAT.md,
"Software material at rest". Knows no event and no key state; the table is injected.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from kmscore.custody import _p11
from kmscore.custody.files import require_private, write_file
from kmscore.custody.port import AeadKey, Inventory, MaterialRef, MaterialTable
from kmscore.custody.selftest import FORMAT_VERSION, self_test
from kmscore.domain.specs import HEADER_BYTES, SPECS, ContentKind, KeySpec, ProtectionLevel, Suite
from kmscore.errors import KmsError, SetupError, invalid

ROOT_KEY_BYTES = 32
# The version id in the header of what a root key file wraps.
FILE_ROOT_VERSION = bytes(16)
_PURPOSE = b"kmscore software material"


class SoftwareKeeper:
    """Keys of level SOFTWARE. Thread-safe as far as `table` is. The root key belongs to the caller, who retires it after close."""

    level = ProtectionLevel.SOFTWARE

    def __init__(self, table: MaterialTable, root: AeadKey, root_version: bytes = FILE_ROOT_VERSION) -> None:
        """`root_version` is the 16-byte id of the root key's version; every header carries it, so that the root can be rotated one day."""
        if len(root_version) != 16:
            raise ValueError("a root version id is 16 bytes")
        self._table = table
        self._root = root
        self._header = bytes((FORMAT_VERSION, root.suite, ContentKind.MATERIAL)) + root_version

    def suite_for(self, spec: KeySpec) -> Suite:
        """Suite 1 for 256-bit keys, suite 2 for shorter ones. Raises InvalidParameter (KeySpec)."""
        if spec not in SPECS:
            raise invalid("KeySpec", f"Level SOFTWARE cannot hold {spec} keys.")
        return Suite.XAES_256_GCM if spec is KeySpec.AES_256 else Suite.AES_GCM

    def generate(self, ref: MaterialRef) -> Mapping[str, str | int | bool]:
        """Random material, wrapped, put into the table, read back, unwrapped and self-tested; see port.Keeper."""
        size = SPECS[ref.spec].material_bytes
        if self._table.get(ref.material_id) is not None:
            raise KmsError("Rejected.Unavailable", "the store has material with this id already")
        material = _p11.Secret.random(size)
        try:
            wrapped = self._root.encrypt(self._header, self._aad(ref.material_id), material)
        finally:
            material.close()
        self._table.put(ref.material_id, wrapped)
        key = self.load(ref)
        try:
            self_test(key, ref.material_id)
        finally:
            key.retire()
        return {"wrapped_bytes": len(wrapped), "value_len": size, "root_suite": self._root.suite, "root_version": self._header[3:].hex()}

    def destroy(self, material_id: bytes) -> None:
        """Remove the wrapped material; see MaterialTable.remove for what is left on the disk, and port.Keeper."""
        self._table.remove(material_id)
        if self._table.get(material_id) is not None:
            raise KmsError("ServiceUnavailableTemporary", "the store still has material after its removal")

    def load(self, ref: MaterialRef) -> AeadKey:
        """Unwrap into the core's memory; see port.Keeper.

        Raises Rejected.Unavailable when the table has nothing under this id, or nothing that this root key wrapped for it.
        """
        wrapped = self._table.get(ref.material_id)
        if wrapped is None:
            raise KmsError("Rejected.Unavailable", "The key material is not available.")
        if wrapped[:HEADER_BYTES] != self._header:
            raise KmsError("Rejected.Unavailable", "The key material is wrapped under another root key.")
        try:
            material = self._root.decrypt_secret(HEADER_BYTES, self._aad(ref.material_id), wrapped)
        except KmsError as error:
            if error.code != "InvalidParameter":
                raise
            raise KmsError("Rejected.Unavailable", "The key material cannot be unwrapped: it was changed.") from None
        if material.size != SPECS[ref.spec].material_bytes:
            material.close()
            raise KmsError("Rejected.Unavailable", "The key material has the wrong size for its key.")
        return cast(AeadKey, _p11.soft_key(cast(_p11.Secret, material), ref.suite))

    def inventory(self) -> Inventory:
        return Inventory(frozenset(self._table.ids()), ())

    def sweep(self) -> int:
        return 0

    def close(self) -> None:
        """Nothing is held: each loaded key owns its material."""

    def _aad(self, material_id: bytes) -> bytes:
        return self._header + _PURPOSE + material_id


def load_or_create_root_file(path: Path, *, may_create: bool) -> AeadKey:
    """The root key of a home without a token: 32 random bytes in a file of mode 0600, made here when `may_create`.

    `may_create` must be False when the store knows material of level SOFTWARE: a new root key would not open it. Call it under the home
    lock. Raises SetupError when the file is missing, reachable by others, or not a root key.
    """
    if not path.exists():
        if not may_create:
            raise SetupError(f"the root key is missing, but the store knows keys wrapped under it: restore {path} from backup")
        fresh = _p11.Secret.random(ROOT_KEY_BYTES)
        try:
            # The one moment this key is a Python object. The newline is the one that Secret.from_file drops, whatever the key ends with.
            write_file(path, fresh.reveal() + b"\n")
        finally:
            fresh.close()
    require_private(path)
    secret = _p11.Secret.from_file(str(path))
    if secret.size != ROOT_KEY_BYTES:
        secret.close()
        raise SetupError(f"{path} is not a root key of kmscore: restore it from backup")
    return cast(AeadKey, _p11.soft_key(secret, Suite.XAES_256_GCM))
