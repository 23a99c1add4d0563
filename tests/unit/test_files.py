"""File encryption: what a second decoder reads, what is refused, and that nothing is ever left half done. The engine is a stand-in."""

from __future__ import annotations

import errno
import io
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kmscore import files
from kmscore.domain.specs import ContentKind
from kmscore.errors import KmsError, key_not_found, undecryptable
from kmscore.files import decrypt_file, encrypt_file
from kmscore.results import DataKey, Decrypted

SEGMENT = 1 << 20
FIRST = SEGMENT - 40 - 16  # plaintext bytes of the first segment
EDGES = [0, 1, FIRST - 1, FIRST, FIRST + 1, FIRST + SEGMENT - 16, FIRST + SEGMENT - 15, 3 * SEGMENT + 5]


class StandIn:
    """Gives out data keys and knows them again, if the context is the same. `refusal` is raised by every call."""

    def __init__(self) -> None:
        self.refusal: KmsError | None = None
        self.known: dict[bytes, tuple[bytes, dict[str, str]]] = {}

    def generate_data_key(self, key_id: str, *, number_of_bytes: int, encryption_context: Mapping[str, str]) -> DataKey:
        if self.refusal is not None:
            raise self.refusal
        blob, key = secrets.token_bytes(91), secrets.token_bytes(number_of_bytes)
        self.known[blob] = key, dict(encryption_context)
        return DataKey(blob, key_id, "v", key)

    def decrypt(self, ciphertext_blob: bytes, encryption_context: Mapping[str, str]) -> Decrypted:
        if self.refusal is not None:
            raise self.refusal
        key, context = self.known.get(ciphertext_blob, (b"", None))
        if context != encryption_context:
            raise undecryptable()
        return Decrypted(key, "k", "v", ContentKind.RAW)


def independent_decrypt(engine: StandIn, data: bytes) -> bytes:
    """From docs/FILE-FORMAT.md alone."""
    assert data[:8] == b"KMSFILE\0"
    assert data[8] == 1
    size = int.from_bytes(data[9:11], "big")
    header, stream = data[: 11 + size], data[11 + size :]
    data_key, context = engine.known[header[11:]]
    assert context == {"purpose": "kms encrypt-file"}
    assert stream[0] == 40
    salt, prefix = stream[1:33], stream[33:40]
    aead = AESGCM(HKDF(hashes.SHA256(), 32, salt, header).derive(data_key))
    ends = [min(SEGMENT, len(stream))]
    while ends[-1] < len(stream):
        ends.append(min(ends[-1] + SEGMENT, len(stream)))
    content = b""
    for number, (start, end) in enumerate(zip([40, *ends], ends, strict=False)):
        nonce = prefix + number.to_bytes(4, "big") + bytes([end == len(stream)])
        content += aead.decrypt(nonce, stream[start:end], None)
    return content


@pytest.fixture
def engine() -> StandIn:
    return StandIn()


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("size", EDGES)
def test_a_file_comes_back_and_a_second_decoder_reads_it(engine: StandIn, tmp_path: Path, size: int) -> None:
    content = secrets.token_bytes(size)
    encrypt_file(engine, "k", put(tmp_path / "in", content), tmp_path / "sealed")
    assert independent_decrypt(engine, (tmp_path / "sealed").read_bytes()) == content
    decrypt_file(engine, tmp_path / "sealed", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    assert names(tmp_path) == ["back", "in", "sealed"]


def test_the_output_is_the_owners_alone_and_replaces_what_was_there(engine: StandIn, tmp_path: Path) -> None:
    source = put(tmp_path / "in", b"content")
    put(tmp_path / "out", b"old").chmod(0o644)
    (tmp_path / "link").symlink_to("out")
    encrypt_file(engine, "k", source, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "out").stat().st_mode & 0o7777 == 0o600
    assert independent_decrypt(engine, (tmp_path / "out").read_bytes()) == b"content"


def test_progress_hears_of_every_byte(engine: StandIn, tmp_path: Path) -> None:
    heard: list[int] = []
    encrypt_file(engine, "k", put(tmp_path / "in", bytes(1_000_000)), tmp_path / "sealed", heard.append)
    assert sum(heard) == 1_000_000
    heard.clear()
    decrypt_file(engine, tmp_path / "sealed", tmp_path / "back", heard.append)
    assert sum(heard) == 1_000_000


def test_open_streams_do_as_a_source(engine: StandIn, tmp_path: Path) -> None:
    encrypt_file(engine, "k", io.BytesIO(b"piped"), tmp_path / "sealed")
    decrypt_file(engine, io.BytesIO((tmp_path / "sealed").read_bytes()), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"piped"


# --- damage ------------------------------------------------------------------------------------------------------------------------


def damaged(data: bytes) -> dict[str, bytes]:
    def flip(at: int) -> bytes:
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    body = 11 + 91
    return {
        "nothing": b"",
        "only the magic": data[:8],
        "only the header": data[:body],
        "another magic": flip(0),
        "another version": flip(8),
        "another length": flip(10),
        "a length of zero": data[:9] + bytes(2) + data[11:],
        "a huge length": data[:9] + b"\xff\xff" + data[11:],
        "another data key": flip(11),
        "another salt": flip(body + 1),
        "a bit in the first segment": flip(body + 1000),
        "a bit in the last byte": flip(len(data) - 1),
        "one byte short": data[:-1],
        "one segment short": data[: body + SEGMENT],
        "the stream header alone": data[: body + 40],
        "one byte more": data + b"\0",
        "itself once more": data + data,
        "segments swapped": data[: body + SEGMENT]
        + data[body + 2 * SEGMENT : body + 3 * SEGMENT]
        + data[body + SEGMENT : body + 2 * SEGMENT]
        + data[body + 3 * SEGMENT :],
        "plain text": b"hello " * 100,
    }


@pytest.mark.parametrize("how", damaged(bytes(8 * SEGMENT)))
def test_a_damaged_file_is_refused_and_leaves_nothing(engine: StandIn, tmp_path: Path, how: str) -> None:
    encrypt_file(engine, "k", put(tmp_path / "in", secrets.token_bytes(3 * SEGMENT + 100)), tmp_path / "sealed")
    sealed = put(tmp_path / "sealed", damaged((tmp_path / "sealed").read_bytes())[how])
    put(tmp_path / "kept", b"what was there")
    for target in ("back", "kept"):
        with pytest.raises(KmsError) as caught:
            decrypt_file(engine, sealed, tmp_path / target)
        assert (caught.value.code, caught.value.message) == (
            "InvalidParameter",
            f"{sealed} is damaged or is not a file that kms encrypted",
        )
    assert names(tmp_path) == ["in", "kept", "sealed"]
    assert (tmp_path / "kept").read_bytes() == b"what was there"


def test_a_data_key_of_another_purpose_or_size_opens_no_file(engine: StandIn, tmp_path: Path) -> None:
    for context, size in (({}, 32), (files.CONTEXT, 16)):
        key = engine.generate_data_key("k", number_of_bytes=size, encryption_context=context)
        sealed = put(tmp_path / "sealed", files.pack_header(key.ciphertext_blob) + bytes(200))
        with pytest.raises(KmsError, match="is damaged"):
            decrypt_file(engine, sealed, tmp_path / "back")
    assert names(tmp_path) == ["sealed"]


@pytest.mark.parametrize("refusal", [KmsError("Rejected.Disabled", "the key state is Disabled"), key_not_found()])
def test_what_the_engine_refuses_with_comes_through(engine: StandIn, tmp_path: Path, refusal: KmsError) -> None:
    encrypt_file(engine, "k", put(tmp_path / "in", b"x"), tmp_path / "sealed")
    engine.refusal = refusal
    for action in (
        lambda: encrypt_file(engine, "k", tmp_path / "in", tmp_path / "out"),
        lambda: decrypt_file(engine, tmp_path / "sealed", tmp_path / "out"),
    ):
        with pytest.raises(KmsError) as caught:
            action()
        assert caught.value is refusal
    assert names(tmp_path) == ["in", "sealed"]


# --- files that cannot be used -----------------------------------------------------------------------------------------------------


def test_places_that_are_refused(engine: StandIn, tmp_path: Path) -> None:
    source = put(tmp_path / "in", b"x")
    os.link(source, tmp_path / "same")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for target, words in {
        source: "is the file that is read",
        tmp_path / "same": "is the file that is read",
        tmp_path / "folder": "not a regular file",
        tmp_path / "pipe": "not a regular file",
        Path("/dev/null"): "not a regular file",
        tmp_path / "no" / "such": "No such file or directory",
        source / "below": "Not a directory",
    }.items():
        with pytest.raises(KmsError, match=words) as caught:
            encrypt_file(engine, "k", source, target)
        assert caught.value.code == "InvalidParameter"
    for bad in (tmp_path / "nothing", tmp_path / "folder"):
        with pytest.raises(KmsError, match=f"cannot read {bad}"):
            encrypt_file(engine, "k", bad, tmp_path / "out")
    assert names(tmp_path) == ["folder", "in", "pipe", "same"]
    assert source.read_bytes() == b"x"


class Failing(io.RawIOBase):
    """Reads some zeros, then raises."""

    def __init__(self, data: bytes, fault: BaseException) -> None:
        self._data = io.BytesIO(data)
        self._fault = fault

    def read(self, size: int = -1) -> bytes:
        found = self._data.read(size)
        if not found:
            raise self._fault
        return found


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        (OSError(errno.EIO, os.strerror(errno.EIO)), KmsError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(3), SystemExit),
    ],
)
def test_a_source_that_fails_leaves_nothing(engine: StandIn, tmp_path: Path, fault: BaseException, seen: type[BaseException]) -> None:
    encrypt_file(engine, "k", put(tmp_path / "in", bytes(3 * SEGMENT)), tmp_path / "sealed")
    part = (tmp_path / "sealed").read_bytes()[: 2 * SEGMENT]
    with pytest.raises(seen):
        decrypt_file(engine, Failing(part, fault), tmp_path / "out")  # type: ignore[arg-type]
    with pytest.raises(seen):
        encrypt_file(engine, "k", Failing(part, fault), tmp_path / "out")  # type: ignore[arg-type]
    assert names(tmp_path) == ["in", "sealed"]


def test_a_source_that_has_nothing_yet_is_not_at_its_end(engine: StandIn, tmp_path: Path) -> None:
    class Idle(io.RawIOBase):
        def read(self, size: int = -1) -> None:  # type: ignore[override]
            return None

    with pytest.raises(KmsError, match="cannot read the input"):
        encrypt_file(engine, "k", Idle(), tmp_path / "out")  # type: ignore[arg-type]
    assert names(tmp_path) == []


def test_an_interrupt_inside_tink_is_an_interrupt(engine: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal's exception surfaces in whatever Python frame runs first, and C++ in between keeps only its text."""
    from tink.streaming_aead import _file_object_adapter

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    encrypt_file(engine, "k", put(tmp_path / "in", bytes(3 * SEGMENT)), tmp_path / "sealed")
    monkeypatch.setattr(_file_object_adapter.FileObjectAdapter, "read", interrupted)
    monkeypatch.setattr(_file_object_adapter.FileObjectAdapter, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encrypt_file(engine, "k", tmp_path / "in", tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        decrypt_file(engine, tmp_path / "sealed", tmp_path / "out")
    assert names(tmp_path) == ["in", "sealed"]


def test_a_full_disk_leaves_nothing(engine: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encrypt_file(engine, "k", put(tmp_path / "in", bytes(3 * SEGMENT)), tmp_path / "sealed")
    before = names(tmp_path)
    new_file = files._new_file

    class Full(io.FileIO):
        def write(self, data: object) -> int:  # type: ignore[override]
            if self.tell() > SEGMENT:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(memoryview(data)[:1000])  # type: ignore[call-overload]

    def full(temporary: Path) -> tuple[object, bool]:
        file, named = new_file(temporary)
        with file:
            return Full(os.dup(file.fileno()), "wb"), named

    monkeypatch.setattr(files, "_new_file", full)
    for action in (
        lambda: encrypt_file(engine, "k", tmp_path / "in", tmp_path / "out"),
        lambda: decrypt_file(engine, tmp_path / "sealed", tmp_path / "out"),
    ):
        with pytest.raises(KmsError) as caught:
            action()
        assert caught.value.code == "InternalFailure"
        assert "No space left on device" in caught.value.message
    assert names(tmp_path) == before


def test_a_file_system_without_nameless_files(engine: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def refuses(path: object, flags: int, *more: object, **keywords: object) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return opened(path, flags, *more, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuses)
    encrypt_file(engine, "k", put(tmp_path / "in", b"content"), tmp_path / "sealed")
    assert (tmp_path / "sealed").stat().st_mode & 0o7777 == 0o600
    decrypt_file(engine, tmp_path / "sealed", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"content"
    with pytest.raises(KeyboardInterrupt):
        encrypt_file(engine, "k", Failing(bytes(5 * SEGMENT), KeyboardInterrupt()), tmp_path / "out")  # type: ignore[arg-type]
    with pytest.raises(KmsError, match="is damaged"):
        decrypt_file(engine, tmp_path / "in", tmp_path / "out")
    assert names(tmp_path) == ["back", "in", "sealed"]
