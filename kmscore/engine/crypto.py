"""Encrypt, Decrypt, ReEncrypt, data keys: from the key ring through one call of the core to a blob.

No event, no aggregate, and but for counting suite 2 no lock of ours.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from kmscore.custody.port import AeadKey, Buffer, Secret
from kmscore.domain.envelope import Header, pack_context, parse_header
from kmscore.domain.specs import HEADER_BYTES, MAX_PLAINTEXT_BYTES, MAX_TEXT_BYTES, ContentKind, Suite
from kmscore.engine.keyring import KeyRing, VersionUse
from kmscore.errors import KmsError, invalid, missing
from kmscore.results import DataKey, Decrypted, Encrypted

Context = Mapping[str, str] | None
Answer = TypeVar("Answer")

_MAX_BYTES = (MAX_PLAINTEXT_BYTES, MAX_TEXT_BYTES)  # by content kind
_BYTES = (bytes, bytearray, memoryview)
DATA_KEY_BYTES = {"AES_256": 32, "AES_128": 16}
MAX_DATA_KEY_BYTES = 1024


@dataclass(frozen=True, slots=True)
class UseLimits:
    """Uses of one suite-2 key version: SP 800-38D section 8.3 allows 2^32 random 96-bit nonces under a key."""

    block: int = 1 << 16  # reserved durably before they are used
    rotate_at: int = 1 << 31
    refuse_at: int = 1 << 32


class Reserve(Protocol):
    def reserve(self, version_id: str, block: int) -> int: ...


class Crypto:
    def __init__(
        self,
        ring: KeyRing,
        uses: Reserve,
        rotate: Callable[[str], object],
        random_secret: Callable[[int], Secret],
        limits: UseLimits | None = None,
    ) -> None:
        """`rotate` is asked, once a limit is near, to rotate a key; `random_secret` draws bytes that Python never sees."""
        self._ring = ring
        self._uses = uses
        self._rotate = rotate
        self._random_secret = random_secret
        self._limits = limits or UseLimits()
        self._lock = threading.Lock()

    # --- encrypt -----------------------------------------------------------------------------------------------------------------

    def encrypt(self, reference: str, plaintext: Buffer, context: Context, content: ContentKind) -> Encrypted:
        """One blob under the primary version. Raises MissingParameter for an empty plaintext, InvalidParameter for one too long."""
        if not isinstance(plaintext, _BYTES):
            raise invalid("Plaintext", "It is bytes.")
        size = plaintext.nbytes if isinstance(plaintext, memoryview) else len(plaintext)
        if not 0 < size <= _MAX_BYTES[content]:
            raise _plaintext_size(size, content)
        use = self._ring.to_encrypt(reference)
        tail = pack_context(context) if context else None
        try:
            return self._encrypt(use, plaintext, tail, content)
        except KmsError as error:
            use = self._second_look(error, use, reference)
            return self._encrypt(use, plaintext, tail, content)

    def _encrypt(self, use: VersionUse, plaintext: Buffer | Secret, tail: bytes | None, content: int) -> Encrypted:
        aead = use.aead
        if aead is None:
            raise _dropped()
        if use.ref.suite is Suite.AES_GCM:
            self._count(use, 1)
        header = use.header[content]
        blob = aead.encrypt(header, use.aad[content] if tail is None else header + tail, plaintext)
        return Encrypted(blob, use.key_id, use.version_id)

    def encrypt_batch(self, reference: str, plaintexts: Sequence[Buffer], context: Context) -> list[bytes | KmsError]:
        """A blob for each plaintext, in order, or the KmsError of the item that failed; the others are not spoiled by it."""
        tail = pack_context(context)
        wrong = {}
        for index, plaintext in enumerate(plaintexts):
            if not isinstance(plaintext, _BYTES):
                wrong[index] = invalid("Plaintext", "It is bytes.")
                continue
            size = plaintext.nbytes if isinstance(plaintext, memoryview) else len(plaintext)
            if not 0 < size <= MAX_PLAINTEXT_BYTES:
                wrong[index] = _plaintext_size(size, ContentKind.RAW)
        good = [p for i, p in enumerate(plaintexts) if i not in wrong] if wrong else plaintexts
        blobs: list[bytes | KmsError] = self._batch(reference, good, tail) if good else []
        if wrong:
            rest = iter(blobs)
            return [wrong[i] if i in wrong else next(rest) for i in range(len(plaintexts))]
        return blobs

    def _batch(self, reference: str, plaintexts: Sequence[Buffer], tail: bytes) -> list[bytes | KmsError]:
        use = self._ring.to_encrypt(reference)

        def run(use: VersionUse) -> list[bytes | KmsError]:
            aead = use.aead
            if aead is None:
                raise _dropped()
            if use.ref.suite is Suite.AES_GCM:
                self._count(use, len(plaintexts))
            header = use.header[ContentKind.RAW]
            return aead.encrypt_batch(header, header + tail, plaintexts)  # type: ignore[return-value]

        try:
            return run(use)
        except KmsError as error:
            return run(self._second_look(error, use, reference))

    # --- decrypt -----------------------------------------------------------------------------------------------------------------

    def decrypt(self, blob: Buffer, context: Context) -> Decrypted:
        """The plaintext of a blob. Raises Forbidden.KeyNotFound for an unknown version, the key's state, or the one opaque error."""
        header = _parse(blob)
        plaintext, use = self._open(header, blob, context, lambda aead, aad: aead.decrypt(HEADER_BYTES, aad, blob))
        return Decrypted(plaintext, use.key_id, use.version_id, header.content)

    def decrypt_batch(self, blobs: Sequence[Buffer], context: Context) -> list[bytes | KmsError]:
        """The plaintext of each blob, in order, or the KmsError of the item that failed. Blobs of several keys may be mixed."""
        groups: dict[tuple[str, ContentKind], list[int]] = {}
        answers: list[bytes | KmsError] = [b""] * len(blobs)
        headers = {}
        for index, blob in enumerate(blobs):
            try:
                header = headers[index] = _parse(blob)
            except KmsError as error:
                answers[index] = error
            else:
                groups.setdefault((header.version_id, header.content), []).append(index)
        for indexes in groups.values():
            chosen = [blobs[i] for i in indexes]
            try:
                opened, _ = self._open(
                    headers[indexes[0]],
                    chosen[0],
                    context,
                    lambda aead, aad, chosen=chosen: aead.decrypt_batch(HEADER_BYTES, aad, chosen),  # type: ignore[misc]
                )
            except KmsError as error:
                opened = [error] * len(indexes)
            for index, item in zip(indexes, opened, strict=True):
                answers[index] = item
        return answers

    def _open(self, header: Header, blob: Buffer, context: Context, run: Callable[[AeadKey, bytes], Answer]) -> tuple[Answer, VersionUse]:
        use = self._ring.to_decrypt(header.version_id)
        if header.suite is not use.ref.suite:
            raise invalid("CiphertextBlob")
        own = use.header[header.content]
        aad = own + pack_context(context) if context else use.aad[header.content]
        try:
            aead = use.aead
            if aead is None:
                raise _dropped()
            return run(aead, aad), use
        except KmsError as error:
            if error.code != "Rejected.Unavailable":
                raise
            self._ring.reload(use)
            use = self._ring.to_decrypt(header.version_id)
            assert use.aead is not None
            return run(use.aead, aad), use

    # --- what is made of the two -------------------------------------------------------------------------------------------------

    def re_encrypt(self, blob: Buffer, destination: str, source_context: Context, destination_context: Context) -> Encrypted:
        """Under another key or a newer version, without the plaintext ever being a Python object. Answers the source key (DECISIONS 29)."""
        header = _parse(blob)
        tail = pack_context(destination_context)
        target = self._ring.to_encrypt(destination)  # refuse before anything is decrypted
        secret, source = self._open(header, blob, source_context, lambda aead, aad: aead.decrypt_secret(HEADER_BYTES, aad, blob))
        try:
            sealed = self._seal(target, destination, secret, tail, header.content)
        finally:
            secret.close()
        return Encrypted(sealed.ciphertext_blob, source.key_id, source.version_id)

    def data_key(self, reference: str, key_spec: str | None, number_of_bytes: int | None, context: Context, reveal: bool) -> DataKey:
        """A random data key and its blob. `number_of_bytes` 1 to 1,024 wins over `key_spec`; 32 bytes when neither is given."""
        size = data_key_bytes(key_spec, number_of_bytes)
        tail = pack_context(context)
        use = self._ring.to_encrypt(reference)
        if reveal:
            plaintext = secrets.token_bytes(size)
            sealed = self._seal(use, reference, plaintext, tail, ContentKind.RAW)
            return DataKey(sealed.ciphertext_blob, sealed.key_id, sealed.key_version_id, plaintext)
        secret = self._random_secret(size)
        try:
            sealed = self._seal(use, reference, secret, tail, ContentKind.RAW)
        finally:
            secret.close()
        return DataKey(sealed.ciphertext_blob, sealed.key_id, sealed.key_version_id)

    def _seal(self, use: VersionUse, reference: str, plaintext: Buffer | Secret, tail: bytes, content: ContentKind) -> Encrypted:
        try:
            return self._encrypt(use, plaintext, tail, content)
        except KmsError as error:
            return self._encrypt(self._second_look(error, use, reference), plaintext, tail, content)

    # --- how -----------------------------------------------------------------------------------------------------------------------

    def _second_look(self, error: KmsError, use: VersionUse, reference: str) -> VersionUse:
        """What was loaded was dropped at the same moment, or its object moved: load it once more. Anything else is the answer."""
        if error.code != "Rejected.Unavailable":
            raise error
        self._ring.reload(use)
        return self._ring.to_encrypt(reference)

    def _count(self, use: VersionUse, number: int) -> None:
        with self._lock:
            if use.left >= number:
                use.left -= number
                return
            block = max(self._limits.block, number)
            reserved = self._uses.reserve(use.version_id, block)
            if reserved > self._limits.refuse_at:
                raise KmsError("Rejected.LimitExceeded", "this key version has been used as often as AES-GCM allows; rotate the key")
            use.left += block - number
        if reserved >= self._limits.rotate_at:
            self._rotate(use.key_id)


def data_key_bytes(key_spec: str | None, number_of_bytes: int | None) -> int:
    """SEMANTICS section 9. 0 bytes are as good as not given (DECISIONS 20)."""
    if number_of_bytes:
        if not isinstance(number_of_bytes, int) or not 1 <= number_of_bytes <= MAX_DATA_KEY_BYTES:
            raise invalid("NumberOfBytes", "It must be from 1 to 1024.")
        return number_of_bytes
    if key_spec and key_spec not in DATA_KEY_BYTES:
        raise invalid("KeySpec")
    return DATA_KEY_BYTES[key_spec or "AES_256"]


def _parse(blob: Buffer) -> Header:
    if not isinstance(blob, _BYTES):
        raise invalid("CiphertextBlob", "It is bytes.")
    if not len(blob):
        raise missing("CiphertextBlob")
    return parse_header(blob)


def _plaintext_size(size: int, content: ContentKind) -> KmsError:
    if size == 0:
        return missing("Plaintext")
    return invalid("Plaintext", f"It is at most {_MAX_BYTES[content]} bytes; use a data key for more.")


def _dropped() -> KmsError:
    return KmsError("Rejected.Unavailable", "the material was dropped at the same moment")
