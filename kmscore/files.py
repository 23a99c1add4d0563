"""Envelope encryption of files (docs/FILE-FORMAT.md): a data key from the engine, a Tink streaming AEAD over the content.

Memory is constant, whatever the size. The target appears whole, durable and mode 0600, or not at all; one that existed stays untouched
until then. Knows the engine only by its methods for data keys.
"""

from __future__ import annotations

import errno
import io
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from kmscore.errors import KmsError

if TYPE_CHECKING:
    from tink.streaming_aead import StreamingAead

    from kmscore.results import DataKey, Decrypted

MAGIC = b"KMSFILE\x00"
FORMAT_VERSION = 1
DATA_KEY_BYTES = 32
MAX_BLOB_BYTES = 1024  # an encrypted data key is far shorter
SEGMENT_BYTES = 1 << 20  # Tink's AES256_GCM_HKDF_1MB
CHUNK_BYTES = 1 << 18  # what is read and written at a time
# Binds the data key to this use: a blob made for something else does not open as a file's, nor the other way round.
CONTEXT = {"purpose": "kms encrypt-file"}

Source = Path | BinaryIO
Progress = Callable[[int], object]


class Engine(Protocol):
    def generate_data_key(self, key_id: str, *, number_of_bytes: int, encryption_context: Mapping[str, str]) -> DataKey: ...

    def decrypt(self, ciphertext_blob: bytes, encryption_context: Mapping[str, str]) -> Decrypted: ...


def encrypt_file(kms: Engine, key_id: str, source: Source, target: Path, progress: Progress | None = None) -> None:
    """Encrypt `source`, a path or an open binary file, under a new data key of `key_id`. `progress` hears the bytes of each step.

    Raises KmsError: what the engine refuses with, InvalidParameter for a file that cannot be used, InternalFailure when writing fails.
    """
    with _reading(source) as plain, _replacing(target, plain) as sealed:
        key = kms.generate_data_key(key_id, number_of_bytes=DATA_KEY_BYTES, encryption_context=CONTEXT)
        assert key.plaintext is not None
        if len(key.ciphertext_blob) > MAX_BLOB_BYTES:  # no engine of ours makes one; a service elsewhere may be another
            raise KmsError("InternalFailure", f"the encrypted data key is longer than {MAX_BLOB_BYTES} bytes; no file can hold it")
        header = pack_header(key.ciphertext_blob)
        sealed.write(header)
        with _tink_errors(sealed):
            stream = _primitive(key.plaintext).new_encrypting_stream(sealed, header)
            try:
                while chunk := plain.read(CHUNK_BYTES):
                    stream.write(chunk)
                    if progress is not None:
                        progress(len(chunk))
            except BaseException:
                sealed.given_up = True  # the stream's object would write its end when it goes
                raise
            stream.close()


def decrypt_file(kms: Engine, source: Source, target: Path, progress: Progress | None = None) -> None:
    """Decrypt what `encrypt_file` made. The target appears only when all of it has been authenticated.

    Raises KmsError: InvalidParameter for a file that is damaged, cut short, extended or something else, otherwise as `encrypt_file`.
    """
    with _reading(source) as sealed, _replacing(target, sealed) as plain:
        header, blob = _read_header(sealed)
        with _tink_errors(sealed):
            stream = _primitive(_open_data_key(kms, blob, sealed.name)).new_decrypting_stream(sealed, header)
            while chunk := stream.read(CHUNK_BYTES):
                plain.write(chunk)
                if progress is not None:
                    progress(len(chunk))


def pack_header(blob: bytes) -> bytes:
    return MAGIC + bytes([FORMAT_VERSION]) + len(blob).to_bytes(2) + blob


def _read_header(sealed: _File) -> tuple[bytes, bytes]:
    start = sealed.read_exactly(len(MAGIC) + 3)
    size = int.from_bytes(start[-2:])
    if start[: len(MAGIC)] != MAGIC or start[len(MAGIC)] != FORMAT_VERSION or not 0 < size <= MAX_BLOB_BYTES:
        raise _damaged(sealed.name)
    blob = sealed.read_exactly(size)
    return start + blob, blob


def _open_data_key(kms: Engine, blob: bytes, name: str) -> bytes:
    try:
        key = kms.decrypt(blob, CONTEXT).plaintext
    except KmsError as error:
        if error.code == "InvalidParameter":
            raise _damaged(name) from None
        raise
    if len(key) != DATA_KEY_BYTES:
        raise _damaged(name)
    return key


def _damaged(name: str) -> KmsError:
    return KmsError("InvalidParameter", f"{name} is damaged or is not a file that kms encrypted")


# --- the streaming AEAD ------------------------------------------------------------------------------------------------------------


def _primitive(data_key: bytes) -> StreamingAead:
    """Tink's AES256_GCM_HKDF_1MB with the data key as its input key material."""
    import tink
    from tink import secret_key_access, streaming_aead
    from tink.proto import aes_gcm_hkdf_streaming_pb2, common_pb2, tink_pb2

    streaming_aead.register()
    params = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingParams(
        ciphertext_segment_size=SEGMENT_BYTES, derived_key_size=32, hkdf_hash_type=common_pb2.SHA256
    )
    key = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKey(version=0, params=params, key_value=data_key)
    keyset = tink_pb2.Keyset(primary_key_id=1)
    keyset.key.add(
        key_id=1,
        status=tink_pb2.ENABLED,
        output_prefix_type=tink_pb2.RAW,
        key_data=tink_pb2.KeyData(
            type_url="type.googleapis.com/google.crypto.tink.AesGcmHkdfStreamingKey",
            value=key.SerializeToString(),
            key_material_type=tink_pb2.KeyData.SYMMETRIC,
        ),
    )
    handle = tink.proto_keyset_format.parse(keyset.SerializeToString(), secret_key_access.TOKEN)
    return handle.primitive(streaming_aead.StreamingAead)


@contextmanager
def _tink_errors(file: _File) -> Iterator[None]:
    """Tell apart what Tink makes one: our own errors of reading and writing, an interrupt, and bytes that do not authenticate."""
    import tink

    try:
        yield
    except tink.TinkError as error:
        if file.error is not None:
            raise file.error from None
        # A signal's exception may be raised in Tink's own Python frames, whose C++ callers keep nothing of it but a text.
        if "UNKNOWN: KeyboardInterrupt" in f"{error} {error.__cause__}":
            raise KeyboardInterrupt from None
        raise _damaged(file.name) from None


# --- files -------------------------------------------------------------------------------------------------------------------------


class _File(io.RawIOBase):
    """A file as Tink sees it: it remembers why reading or writing failed, and does not close with the stream."""

    def __init__(self, raw: BinaryIO, name: str) -> None:
        self._raw = raw
        self.name = name
        self.error: BaseException | None = None
        self.given_up = False

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        try:
            data = self._raw.read(size)
            if data is None:  # not the end, which would cut the file short unnoticed
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return data
        except OSError as error:
            self.error = KmsError("InvalidParameter", f"cannot read {self.name}: {error.strerror}")
        except BaseException as error:
            self.error = error
        raise self.error

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """All of `data`; a raw file may take a part of it only."""
        if self.given_up:
            raise ValueError(f"{self.name} was given up")
        try:
            written = 0
            while written < len(data):
                written += self._raw.write(data[written:] if written else data)
            return written
        except OSError as error:
            self.error = _cannot_write(self.name, error)
        except BaseException as error:
            self.error = error
        raise self.error

    def read_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (more := self.read(size - len(data))):
            data += more
        if len(data) < size:
            raise _damaged(self.name)
        return data

    def fileno(self) -> int:
        return self._raw.fileno()

    def close(self) -> None:
        pass


def _cannot_write(name: str, error: OSError) -> KmsError:
    return KmsError("InternalFailure", f"cannot write {name}: {error.strerror}; nothing was left behind")


@contextmanager
def _reading(source: Source) -> Iterator[_File]:
    if not isinstance(source, Path):
        yield _File(source, "the input")
        return
    try:
        file = source.open("rb", buffering=0)
    except OSError as error:
        raise KmsError("InvalidParameter", f"cannot read {source}: {error.strerror}") from None
    with file:
        yield _File(file, str(source))


@contextmanager
def _replacing(target: Path, source: _File) -> Iterator[_File]:
    """A new file of mode 0600 that takes the place of `target`, durably, if the block ends well, and otherwise is gone.

    Where the file system can, it has no name until it is whole, so that not even a kill leaves anything.
    """
    try:
        place = _place(target, source)
        temporary = place.with_name(f".kms-{secrets.token_hex(8)}")
        directory = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise KmsError("InvalidParameter", f"cannot write {target}: {error.strerror}") from None
    try:
        try:
            file, named = _new_file(temporary)
        except OSError as error:
            raise KmsError("InvalidParameter", f"cannot write {target}: {error.strerror}") from None
        with file:
            yield _File(file, str(target))
            try:
                os.fsync(file.fileno())
                if not named:  # a link that is followed needs linkat(2), which Python calls only when it is given a directory
                    os.link(f"/proc/self/fd/{file.fileno()}", temporary, src_dir_fd=directory)
                os.rename(temporary, place)
                os.fsync(directory)
            except OSError as error:
                raise _cannot_write(str(target), error) from None
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    finally:
        os.close(directory)


def _new_file(temporary: Path) -> tuple[BinaryIO, bool]:
    """A file without a name in the directory of `temporary`; or of that name (True), where the file system has no nameless files."""
    flags = os.O_WRONLY | os.O_CLOEXEC
    try:
        fd, named = os.open(temporary.parent, flags | os.O_TMPFILE, 0o600), False
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        fd, named = os.open(temporary, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), True
    return os.fdopen(fd, "wb", buffering=0), named


def _place(target: Path, source: _File) -> Path:
    """Where `target` really lies. Refuses what must not be replaced: a device, a directory, the source itself."""
    place = Path(os.path.realpath(target))
    try:
        facts = place.stat()
    except FileNotFoundError:
        return place
    if not stat.S_ISREG(facts.st_mode):
        raise KmsError("InvalidParameter", f"cannot write {target}: it is not a regular file")
    with suppress(OSError):  # a source without a descriptor is no file of this kind
        if os.path.samestat(facts, os.fstat(source.fileno())):
            raise KmsError("InvalidParameter", f"{target} is the file that is read; name another for the output")
    return place
