"""The keeper of level SOFTWARE: material in the store, wrapped under a root key, in clear only in the core's locked memory.

The root key lives in the token (an HsmKeeper's key) or, where there is none, in a file of the home. Layout: docs/FORMAT.md,
"Software material at rest". Knows no event and no key state; the table is injected.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from kmscore.custody import _p11
from kmscore.custody.port import Accept, AeadKey, Buffer, Facts, Inventory, Loaded, MaterialRef, MaterialTable
from kmscore.custody.selftest import FORMAT_VERSION, self_test
from kmscore.custody.wrapping import fitting, refused, serves
from kmscore.disk import require_private, write_file
from kmscore.domain.algorithms import AlgorithmFacts, WrappingAlgorithm, mac_hash
from kmscore.domain.specs import HEADER_BYTES, SPECS, ContentKind, Family, KeySpec, KeyUsage, ProtectionLevel, Suite
from kmscore.errors import KmsError, SetupError, bad_material, invalid

ROOT_KEY_BYTES = 32
# The version id in the header of what a root key file wraps.
FILE_ROOT_VERSION = bytes(16)
_PURPOSE = b"kmscore software material"
_CHECK = b"kmscore check value"
_IMPORTED_BYTES = 32  # of AES material: only AES_256 can be imported


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

    def suite_for(self, spec: KeySpec, usage: KeyUsage) -> Suite:
        """Suite 1 for 256-bit keys, suite 2 for shorter ones; see port.Keeper."""
        if not serves(spec, usage):
            raise invalid("KeySpec", f"Level SOFTWARE cannot hold {spec} keys for {usage}.")
        if SPECS[spec].family is not Family.AES:
            return Suite.NONE
        return Suite.XAES_256_GCM if spec is KeySpec.AES_256 else Suite.AES_GCM

    def wrapping_usage(self, algorithm: WrappingAlgorithm, spec: KeySpec) -> KeyUsage:
        """UNWRAP, for each algorithm that fits the material; see port.Keeper."""
        if algorithm not in fitting(spec):
            raise refused(algorithm, spec, fitting(spec), "Level SOFTWARE")
        return KeyUsage.UNWRAP

    def generate(self, ref: MaterialRef) -> Facts:
        """Made in the core, wrapped, put into the table, read back, unwrapped and self-tested; see port.Keeper."""
        self._check_new(ref)
        public = b""
        if SPECS[ref.spec].is_asymmetric:
            material, public = _p11.soft_generate_pair(ref.spec.value)
        else:
            material = _p11.Secret.random(SPECS[ref.spec].bytes)
        try:
            wrapped = self._seal(ref, material)
        finally:
            material.close()
        return self._keep(ref, wrapped, public)

    def unwrap(self, ref: MaterialRef, pair: MaterialRef, algorithm: WrappingAlgorithm, wrapped: Buffer, accept: Accept) -> Facts:
        """All in the core's memory; what is kept is wrapped before it is accepted. See port.Keeper."""
        self._check_new(ref)
        key = _p11.soft_private_key(self._material(pair), known_good=True)
        try:
            material = _opened(key, algorithm, memoryview(wrapped), SPECS[pair.spec].bytes)
        finally:
            key.retire()
        try:
            sealed = self._seal(ref, material)
            check_value, public = _proved(ref.spec, material)
        finally:
            material.close()
        accept(check_value)
        return self._keep(ref, sealed, public)

    def destroy(self, material_id: bytes) -> None:
        """Remove the wrapped material; see MaterialTable.remove for what is left on the disk, and port.Keeper."""
        self._table.remove(material_id)
        if self._table.get(material_id) is not None:
            raise KmsError("ServiceUnavailableTemporary", "the store still has material after its removal")

    def load(self, ref: MaterialRef) -> Loaded:
        """Unwrap into the core's memory; see port.Keeper.

        Raises Rejected.Unavailable when the table has nothing under this id, or nothing that this root key wrapped for it.
        """
        material = self._material(ref)
        try:
            if SPECS[ref.spec].is_asymmetric:
                key = _p11.soft_private_key(material, known_good=True)
                if key.kind == ref.spec.value:
                    return SoftwarePrivateKey(key)
                key.retire()
            elif material.size == SPECS[ref.spec].bytes:
                if SPECS[ref.spec].family is Family.HMAC:
                    return _p11.soft_mac_key(material, mac_hash(ref.spec))
                return cast(AeadKey, _p11.soft_key(material, ref.suite))
        except ValueError:
            pass
        finally:
            material.close()
        raise KmsError("Rejected.Unavailable", "The key material is of another kind than its key.")

    def gauges(self) -> Mapping[str, float]:
        return {}

    def inventory(self) -> Inventory:
        return Inventory(frozenset(self._table.ids()), ())

    def sweep(self) -> int:
        return 0

    def close(self) -> None:
        """Nothing is held: each loaded key owns its material."""

    def _check_new(self, ref: MaterialRef) -> None:
        if self._table.get(ref.material_id) is not None:
            raise KmsError("Rejected.Unavailable", "the store has material with this id already")

    def _seal(self, ref: MaterialRef, material: _p11.Secret) -> bytes:
        return self._root.encrypt(self._header, self._aad(ref.material_id), material)

    def _keep(self, ref: MaterialRef, wrapped: bytes, public: bytes) -> Facts:
        self._table.put(ref.material_id, wrapped)
        key = self.load(ref)
        try:
            self_test(key, ref, public)
        finally:
            key.retire()
        told: Facts = {"public_key": public.hex()} if public else {"value_len": SPECS[ref.spec].bytes}
        return {"wrapped_bytes": len(wrapped), "root_suite": self._root.suite, "root_version": self._header[3:].hex(), **told}

    def _material(self, ref: MaterialRef) -> _p11.Secret:
        wrapped = self._table.get(ref.material_id)
        if wrapped is None:
            raise KmsError("Rejected.Unavailable", "The key material is not available.")
        if wrapped[:HEADER_BYTES] != self._header:
            raise KmsError("Rejected.Unavailable", "The key material is wrapped under another root key.")
        try:
            return cast(_p11.Secret, self._root.decrypt_secret(HEADER_BYTES, self._aad(ref.material_id), wrapped))
        except KmsError as error:
            if error.code != "InvalidParameter":
                raise
            raise KmsError("Rejected.Unavailable", "The key material cannot be unwrapped: it was changed.") from None

    def _aad(self, material_id: bytes) -> bytes:
        return self._header + _PURPOSE + material_id


class SoftwarePrivateKey:
    """Implements port.PrivateKey on the core's."""

    def __init__(self, key: _p11.SoftPrivateKey) -> None:
        self._key = key

    def sign(self, facts: AlgorithmFacts, digest: bytes) -> bytes:
        return self._key.sign(facts.scheme, digest)

    def decrypt_secret(self, facts: AlgorithmFacts, ciphertext: Buffer) -> _p11.Secret:
        return self._key.decrypt(facts.hash, ciphertext)

    def retire(self) -> bool:
        return self._key.retire()


def _opened(key: _p11.SoftPrivateKey, algorithm: WrappingAlgorithm, wrapped: memoryview, modulus_bytes: int) -> _p11.Secret:
    """What came wrapped under the public half of `key`. Raises InvalidKeyMaterial."""
    try:
        if not algorithm.hash:
            return key.decrypt_pkcs1(wrapped, _IMPORTED_BYTES)
        if not algorithm.two_step:
            return key.decrypt(algorithm.hash, wrapped)
        kek = key.decrypt(algorithm.hash, wrapped[:modulus_bytes])
        try:
            return _p11.kwp_unwrap(kek, wrapped[modulus_bytes:])
        finally:
            kek.close()
    except KmsError as error:
        raise bad_material() if error.code == "InvalidParameter" else error from None
    except ValueError:  # no AES key
        raise bad_material() from None


def _proved(spec: KeySpec, material: _p11.Secret) -> tuple[bytes, bytes]:
    """Check value and public half of material that is of `spec`; uses the Secret up. Raises InvalidKeyMaterial for other material."""
    if not SPECS[spec].is_asymmetric:
        if material.size != SPECS[spec].bytes:
            raise bad_material()
        return _p11.soft_mac_key(material, "SHA-256").mac(_CHECK)[:16], b""
    try:
        key = _p11.soft_private_key(material)
    except ValueError:
        raise bad_material() from None
    if key.kind != spec.value:
        raise bad_material()
    return key.public_key, key.public_key


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
