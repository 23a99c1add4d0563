"""The custody port: what the engine may ask of a place where key material lives. Knows no event, no store, no key state.

Effects are asked for by material id, chosen at random before the call. `generate` returns only when the material is durable and
verified by a fresh look; `destroy` only when a fresh look finds nothing. Both may be repeated after any interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from kmscore.domain.algorithms import AlgorithmFacts, WrappingAlgorithm
from kmscore.domain.specs import KeySpec, KeyUsage, ProtectionLevel, Suite
from kmscore.errors import KmsError

Buffer = bytes | bytearray | memoryview
Facts = Mapping[str, str | int | bool]
"""What a custody states of material, for the outcome event. Asymmetric keys have `public_key`: SubjectPublicKeyInfo, DER in hexadecimal."""


@dataclass(frozen=True, slots=True)
class MaterialRef:
    """Names one attempt at key material: `material_id` is 16 random bytes (CKA_ID in a token).

    `suite` is Suite.NONE but for AES. `imported` material came from outside. `public_key` (SubjectPublicKeyInfo, DER) is known of
    asymmetric material once it is there.
    """

    material_id: bytes
    spec: KeySpec
    suite: Suite
    usage: KeyUsage = KeyUsage.ENCRYPT_DECRYPT
    imported: bool = False
    public_key: bytes = b""

    def __post_init__(self) -> None:
        if len(self.material_id) != 16:
            raise ValueError("a material id is 16 bytes")


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a fresh look at the whole custody found."""

    materials: frozenset[bytes]
    """Material ids that this instance of kmscore may have made."""
    foreign: tuple[str, ...]
    """Objects without an id of ours, each described for a report."""


class AeadKey(Protocol):
    """The hot path of one key version; see custody/_p11.pyi, which the C core implements, for the exact rules."""

    @property
    def suite(self) -> int: ...
    @property
    def live(self) -> int: ...
    def encrypt(self, header: bytes, aad: bytes, plaintext: Buffer | Secret) -> bytes: ...
    def encrypt_batch(self, header: bytes, aad: bytes, plaintexts: Sequence[Buffer | Secret]) -> list[bytes | Exception]: ...
    def decrypt(self, header_size: int, aad: bytes, blob: Buffer) -> bytes: ...
    def decrypt_secret(self, header_size: int, aad: bytes, blob: Buffer) -> Secret: ...
    def decrypt_batch(self, header_size: int, aad: bytes, blobs: Sequence[Buffer]) -> list[bytes | Exception]: ...
    def retire(self) -> bool: ...


class PrivateKey(Protocol):
    """The private half of one version of an asymmetric key, ready for use."""

    def sign(self, facts: AlgorithmFacts, digest: bytes) -> bytes:
        """Sign a digest as long as the hash of `facts`; ECDSA signatures are DER (SEC 1 appendix C.8)."""
        ...

    def decrypt_secret(self, facts: AlgorithmFacts, ciphertext: Buffer) -> Secret:
        """RSAES-OAEP. Raises the one opaque error for every ciphertext that does not decrypt."""
        ...

    def retire(self) -> bool: ...


class MacKey(Protocol):
    """One MAC key, ready for use."""

    def mac(self, message: Buffer) -> bytes: ...
    def retire(self) -> bool: ...


Loaded = AeadKey | PrivateKey | MacKey


class PublicKeys(Protocol):
    """What needs no private key and no custody. `public_key` is SubjectPublicKeyInfo in DER."""

    def verify(self, public_key: bytes, facts: AlgorithmFacts, digest: bytes, signature: bytes) -> bool: ...
    def encrypt(self, public_key: bytes, facts: AlgorithmFacts, plaintext: Buffer | Secret) -> bytes:
        """RSAES-OAEP of at most `max_oaep_bytes`."""
        ...

    def rsa_bits(self, public_key: bytes) -> int:
        """Modulus bits of a caller's RSA key; 0 for bytes that are no RSA public key of 2,048 to 4,096 bits."""
        ...

    def pem(self, public_key: bytes) -> str: ...


class AlreadyHeld(Exception):
    """Said by `accept` in Keeper.unwrap: the very material is in the custody already, and is not wanted twice."""


Accept = Callable[[bytes], None]


class Secret(Protocol):
    """Bytes that only the C core may see; see custody/_p11.pyi."""

    @property
    def size(self) -> int: ...
    def reveal(self) -> bytes: ...
    def close(self) -> None: ...


class MaterialTable(Protocol):
    """Where the software keeper puts wrapped material; the store implements it. Each call is one durable transaction."""

    def put(self, material_id: bytes, wrapped: bytes) -> None: ...
    def get(self, material_id: bytes) -> bytes | None: ...
    def remove(self, material_id: bytes) -> None:
        """Delete and leave no copy in the file or its write-ahead log. Absent is success."""
        ...

    def ids(self) -> Iterable[bytes]: ...


class Keeper(Protocol):
    """A custody at one protection level."""

    level: ProtectionLevel

    def suite_for(self, spec: KeySpec, usage: KeyUsage) -> Suite:
        """The suite that this custody gives to keys of `spec` (Suite.NONE but for AES).

        Raises KmsError InvalidParameter (KeySpec) when it cannot hold them, or not for this usage.
        """
        ...

    def wrapping_usage(self, algorithm: WrappingAlgorithm, spec: KeySpec) -> KeyUsage:
        """The usage of a pair for the import of `spec` material wrapped with `algorithm`.

        Raises KmsError InvalidParameter (WrappingAlgorithm) naming what can be done, when this cannot.
        """
        ...

    def unwrap(self, ref: MaterialRef, pair: MaterialRef, algorithm: WrappingAlgorithm, wrapped: Buffer, accept: Accept) -> Facts:
        """Unwrap material under the private key of `pair`; durable, compared and self-tested on return, as with `generate`.

        `accept` is given a check value of the material, bytes that equal material gives again, before anything durable is made of it; it
        may refuse by raising. Raises KmsError InvalidKeyMaterial for all that the wrapped bytes can cause: no padding, wrong length,
        another kind of key. Nothing durable was made then.
        """
        ...

    def generate(self, ref: MaterialRef) -> Facts:
        """Make the material; durable and self-tested on return. Answers what the custody states of it, for the outcome event.

        Raises KmsError; something may have been left behind then: `destroy` it before another attempt under a new id.
        """
        ...

    def destroy(self, material_id: bytes) -> None:
        """Make the material be gone, durably, verified by a fresh look. Absent is success. Raises KmsError when that cannot be said."""
        ...

    def load(self, ref: MaterialRef) -> Loaded:
        """The material, ready for use. Raises KmsError Rejected.Unavailable when the custody does not have it."""
        ...

    def inventory(self) -> Inventory:
        """A fresh look at everything."""
        ...

    def sweep(self) -> int:
        """Clear away the nameless remains of killed calls, where there are such; answers how many. Never touches a named object."""
        ...

    def gauges(self) -> Mapping[str, float]:
        """What it says of its sessions, by names of kmscore/api/metrics.py; nothing where it has none. Quick, and never raises."""
        ...

    def close(self) -> None: ...


def keeper_at(keepers: Mapping[ProtectionLevel, Keeper], level: ProtectionLevel) -> Keeper:
    """The keeper of a level. Raises KmsError Unsupported.ProtectionLevel where there is none: level HSM without a token."""
    keeper = keepers.get(level)
    if keeper is None:
        raise KmsError("Unsupported.ProtectionLevel", "Level HSM needs a token, and none is configured.")
    return keeper
