"""Encrypt, Decrypt, ReEncrypt, data keys: from the key ring through one call of the core to a blob.

No event, no aggregate, and but for counting suite 2 no lock of ours.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from kmscore.custody.port import AeadKey, Buffer, Secret
from kmscore.domain.envelope import NO_CONTEXT, pack_context
from kmscore.domain.specs import HEADER_BYTES, MAX_PLAINTEXT_BYTES, MAX_TEXT_BYTES, ContentKind, Suite
from kmscore.engine.arguments import buffer, whole
from kmscore.engine.keyring import KeyRing
from kmscore.engine.views import VersionUse
from kmscore.errors import KmsError, invalid, missing
from kmscore.results import DataKey, Decrypted, Encrypted

log = logging.getLogger("kmscore")

Context = Mapping[str, str] | None
Answer = TypeVar("Answer")
Found = TypeVar("Found")

_MAX_BYTES = (MAX_PLAINTEXT_BYTES, MAX_TEXT_BYTES)  # by content kind
_BYTES = (bytes, bytearray, memoryview)
DATA_KEY_BYTES = {"AES_256": 32, "AES_128": 16}
MAX_DATA_KEY_BYTES = 1024

UNAVAILABLE = "Rejected.Unavailable"
ATTEMPTS = 2  # before the last one, when material is dropped at the very moment of its use


@dataclass(frozen=True, slots=True)
class UseLimits:
    """Uses of one suite-2 key version: SP 800-38D section 8.3 allows 2^32 random 96-bit nonces under a key."""

    block: int = 1 << 16  # reserved durably before they are used
    warn_at: int = 1 << 30
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
        _check_plaintext(plaintext, content)
        tail = pack_context(context) if context else NO_CONTEXT
        use = self._ring.to_encrypt(reference)
        try:
            return self._seal(use, plaintext, tail, content)
        except KmsError as error:
            self._look_again(error, use)
            return self._encrypt(reference, plaintext, tail, content)

    def encrypt_batch(self, reference: str, plaintexts: Sequence[Buffer], context: Context) -> list[bytes | KmsError]:
        """A blob for each plaintext, in order, or the KmsError of the item that failed; the others are not spoiled by it."""
        tail = pack_context(context)
        wrong: dict[int, KmsError] = {}
        for index, plaintext in enumerate(plaintexts):
            try:
                _check_plaintext(plaintext, ContentKind.RAW)
            except KmsError as error:
                wrong[index] = error
        good = [p for i, p in enumerate(plaintexts) if i not in wrong] if wrong else plaintexts
        if not good:
            return list(wrong.values())

        def run(use: VersionUse) -> list[bytes | KmsError]:
            if use.ref.suite is Suite.AES_GCM:
                self._count(use, len(good))
            header = use.header[ContentKind.RAW]
            return _none_dropped(_loaded(use).encrypt_batch(header, header + tail, good))

        blobs = self._patiently(lambda: self._ring.to_encrypt(reference), run)
        if not wrong:
            return blobs
        rest = iter(blobs)
        return [wrong[i] if i in wrong else next(rest) for i in range(len(plaintexts))]

    # --- decrypt -----------------------------------------------------------------------------------------------------------------

    def decrypt(self, blob: Buffer, context: Context) -> Decrypted:
        """The plaintext of a blob. Raises Forbidden.KeyNotFound for an unknown version, the key's state, or the one opaque error."""
        header = _header(blob)
        use, content = self._ring.to_decrypt(header, blob)
        aad = header + pack_context(context) if context else use.aad[content]
        try:
            plaintext = _loaded(use).decrypt(HEADER_BYTES, aad, blob)
        except KmsError as error:
            self._look_again(error, use)
            plaintext, use, content = self._open(header, blob, aad, lambda aead: aead.decrypt(HEADER_BYTES, aad, blob))
        return Decrypted(plaintext, use.key_id, use.version_id, content)

    def decrypt_batch(self, blobs: Sequence[Buffer], context: Context) -> list[bytes | KmsError]:
        """The plaintext of each blob, in order, or the KmsError of the item that failed. Blobs of several keys may be mixed."""
        tail = pack_context(context)
        answers: list[bytes | KmsError] = [b""] * len(blobs)
        groups: dict[bytes, list[int]] = {}
        for index, blob in enumerate(blobs):
            try:
                groups.setdefault(_header(blob), []).append(index)
            except KmsError as error:
                answers[index] = error
        for header, indexes in groups.items():
            chosen = [blobs[i] for i in indexes] if len(groups) > 1 else blobs
            aad = header + tail
            opened: list[bytes | KmsError]
            try:
                # One of them stands for all in what the header says; the core looks at the size of each.
                opened, _, _ = self._open(header, chosen[0], aad, lambda aead: _open_all(aead, aad, chosen))  # noqa: B023
            except KmsError as error:
                opened = [error] * len(indexes)
            for index, item in zip(indexes, opened, strict=True):
                answers[index] = item
        return answers

    # --- what is made of the two -------------------------------------------------------------------------------------------------

    def re_encrypt(self, blob: Buffer, destination: str, source_context: Context, destination_context: Context) -> Encrypted:
        """Under another key or a newer version, without the plaintext ever being a Python object. Answers the source key (DECISIONS 29)."""
        header = _header(blob)
        aad = header + pack_context(source_context)
        tail = pack_context(destination_context)
        self._ring.to_encrypt(destination)  # refuse before anything is decrypted
        secret, source, content = self._open(header, blob, aad, lambda aead: aead.decrypt_secret(HEADER_BYTES, aad, blob))
        try:
            sealed = self._encrypt(destination, secret, tail, content)
        finally:
            secret.close()
        return Encrypted(sealed.ciphertext_blob, source.key_id, source.version_id)

    def data_key(self, reference: str, key_spec: str | None, number_of_bytes: int | None, context: Context, reveal: bool) -> DataKey:
        """A random data key and its blob. `number_of_bytes` 1 to 1,024 wins over `key_spec`; 32 bytes when neither is given."""
        size = data_key_bytes(key_spec, number_of_bytes)
        tail = pack_context(context)
        self._ring.to_encrypt(reference)  # refuse before anything is drawn
        if reveal:
            plaintext = secrets.token_bytes(size)
            sealed = self._encrypt(reference, plaintext, tail, ContentKind.RAW)
            return DataKey(sealed.ciphertext_blob, sealed.key_id, sealed.key_version_id, plaintext)
        secret = self._random_secret(size)
        try:
            sealed = self._encrypt(reference, secret, tail, ContentKind.RAW)
        finally:
            secret.close()
        return DataKey(sealed.ciphertext_blob, sealed.key_id, sealed.key_version_id)

    def encrypt_secret(self, reference: str, secret: Secret, context: Context, content: ContentKind = ContentKind.RAW) -> Encrypted:
        """A blob of bytes that only the core sees; the caller closes them."""
        return self._encrypt(reference, secret, pack_context(context), content)

    def decrypt_secret(self, blob: Buffer, context: Context) -> tuple[Secret, VersionUse]:
        """What a blob holds, for the core only; the caller closes it."""
        header = _header(blob)
        aad = header + pack_context(context)
        secret, use, _ = self._open(header, blob, aad, lambda aead: aead.decrypt_secret(HEADER_BYTES, aad, blob))
        return secret, use

    # --- how -----------------------------------------------------------------------------------------------------------------------

    def _seal(self, use: VersionUse, plaintext: Buffer | Secret, tail: bytes, content: ContentKind) -> Encrypted:
        if use.ref.suite is Suite.AES_GCM:
            self._count(use, 1)
        header = use.header[content]
        return Encrypted(_loaded(use).encrypt(header, header + tail, plaintext), use.key_id, use.version_id)

    def _encrypt(self, reference: str, plaintext: Buffer | Secret, tail: bytes, content: ContentKind) -> Encrypted:
        return self._patiently(lambda: self._ring.to_encrypt(reference), lambda use: self._seal(use, plaintext, tail, content))

    def _open(self, header: bytes, blob: Buffer, aad: bytes, run: Callable[[AeadKey], Answer]) -> tuple[Answer, VersionUse, ContentKind]:
        def opened(found: tuple[VersionUse, ContentKind]) -> tuple[Answer, VersionUse, ContentKind]:
            use, content = found
            try:
                return run(_loaded(use)), use, content
            except KmsError as error:
                self._look_again(error, use)
                raise

        return self._patiently(lambda: self._ring.to_decrypt(header, blob), opened)

    def _patiently(self, find: Callable[[], Found], run: Callable[[Found], Answer]) -> Answer:
        """Find, and run; once more when what was found was dropped at the same moment (it was idle, or its key changed), or its object
        moved. The key's state is looked at anew each time."""
        for _ in range(ATTEMPTS):
            found = find()
            try:
                return run(found)
            except KmsError as error:
                if isinstance(found, VersionUse):
                    self._look_again(error, found)
                elif error.code != UNAVAILABLE:
                    raise
        return run(find())

    def _look_again(self, error: KmsError, use: VersionUse) -> None:
        """Load the material anew at the next use if it was dropped; any other error is the answer."""
        if error.code != UNAVAILABLE:
            raise error
        self._ring.reload(use)

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
        if reserved >= self._limits.warn_at:
            log.warning(
                "version %s of key %s has been used up to %d times; AES-GCM allows %d", use.version_id, use.key_id, reserved, 1 << 32
            )
        if reserved >= self._limits.rotate_at:
            self._rotate(use.key_id)


def data_key_bytes(key_spec: str | None, number_of_bytes: int | None) -> int:
    """SEMANTICS section 9. 0 bytes are as good as not given (DECISIONS 20)."""
    if number_of_bytes:
        return whole(number_of_bytes, "NumberOfBytes", 1, MAX_DATA_KEY_BYTES)
    if key_spec and not (isinstance(key_spec, str) and key_spec in DATA_KEY_BYTES):
        raise invalid("KeySpec", f"It is one of {', '.join(DATA_KEY_BYTES)}.")
    return DATA_KEY_BYTES[key_spec or "AES_256"]


def _header(blob: Buffer) -> bytes:
    """The first 19 bytes. Raises KmsError MissingParameter for nothing, InvalidParameter for what is not bytes."""
    if type(blob) is bytes and blob:
        return blob[:HEADER_BYTES]
    return buffer(blob, "CiphertextBlob")[:HEADER_BYTES]


def _check_plaintext(plaintext: Buffer, content: ContentKind) -> None:
    if not isinstance(plaintext, _BYTES):
        raise invalid("Plaintext", "It is bytes.")
    if isinstance(plaintext, memoryview):
        if not plaintext.c_contiguous:
            raise invalid("Plaintext", "It is bytes that lie side by side.")
        size = plaintext.nbytes
    else:
        size = len(plaintext)
    if size == 0:
        raise missing("Plaintext")
    if size > _MAX_BYTES[content]:
        raise invalid("Plaintext", f"It is at most {_MAX_BYTES[content]} bytes; use a data key for more.")


def _loaded(use: VersionUse) -> AeadKey:
    loaded = use.loaded
    if loaded is None:
        raise KmsError(UNAVAILABLE, "the material was dropped at the same moment")
    return loaded  # type: ignore[return-value]  # only AES versions have a header, and to_encrypt and to_decrypt answer no others


def _open_all(aead: AeadKey, aad: bytes, blobs: Sequence[Buffer]) -> list[bytes | KmsError]:
    return _none_dropped(aead.decrypt_batch(HEADER_BYTES, aad, blobs))


def _none_dropped(items: list[Any]) -> list[bytes | KmsError]:
    """The items, unless the key was dropped in the midst of them: the batch is done again then."""
    for item in items:
        if type(item) is not bytes and item.code == UNAVAILABLE:
            raise item
    return items
