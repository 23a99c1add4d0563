"""The bytes of a blob and of the associated data, against literal expectations written from docs/FORMAT.md."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmscore.domain.envelope import NO_CONTEXT, pack_context, pack_header, parse_header
from kmscore.domain.specs import ContentKind, Suite
from kmscore.errors import KmsError

VERSION = "00112233-4455-6677-8899-aabbccddeeff"
RAW = "00112233445566778899aabbccddeeff"


def test_header_bytes() -> None:
    assert pack_header(Suite.XAES_256_GCM, ContentKind.RAW, VERSION).hex() == "010100" + RAW
    assert pack_header(Suite.AES_GCM, ContentKind.TEXT, VERSION).hex() == "010201" + RAW


def test_parse() -> None:
    header = parse_header(bytes.fromhex("010101" + RAW) + bytes(24 + 5 + 16))
    assert (header.suite, header.content, header.version_id) == (Suite.XAES_256_GCM, ContentKind.TEXT, str(UUID(RAW)))


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"\1",
        bytes.fromhex("010100" + RAW),
        bytes.fromhex("010100" + RAW) + bytes(24 + 15),  # shorter than nonce and tag
        bytes.fromhex("010200" + RAW) + bytes(12 + 15),
        bytes.fromhex("000100" + RAW) + bytes(60),  # format version
        bytes.fromhex("020100" + RAW) + bytes(60),
        bytes.fromhex("010000" + RAW) + bytes(60),  # suite
        bytes.fromhex("010300" + RAW) + bytes(60),
        bytes.fromhex("010102" + RAW) + bytes(60),  # content kind: material is for no API
        bytes.fromhex("0101ff" + RAW) + bytes(60),
        bytes.fromhex("010100" + RAW) + bytes(24 + 8193 + 16),  # longer than any plaintext
    ],
)
def test_malformed_blobs_are_the_one_opaque_error(blob: bytes) -> None:
    with pytest.raises(KmsError) as refused:
        parse_header(blob)
    assert str(refused.value) == 'InvalidParameter: The specified parameter "CiphertextBlob" is not valid.'


@given(st.binary(max_size=120))
def test_any_bytes_parse_or_are_refused(blob: bytes) -> None:
    try:
        header = parse_header(blob)
    except KmsError as error:
        assert error.code == "InvalidParameter"
    else:
        assert blob[:19] == pack_header(header.suite, header.content, header.version_id)


def test_context_bytes() -> None:
    assert pack_context(None) == pack_context({}) == NO_CONTEXT == b"\0\0\0\0"
    assert pack_context({"a": "bc"}).hex() == "00000001" + "00000001" + "61" + "00000002" + "6263"
    assert pack_context({"b": "1", "a": ""}).hex() == "00000002" + "0000000161" + "00000000" + "0000000162" + "0000000131"
    assert pack_context({"a": "bc"}) != pack_context({"ab": "c"})
    # Ordered by UTF-8 bytes: U+FFFD before U+10000, though UTF-16 code units would say otherwise.
    packed = pack_context({"\U00010000": "2", "\ufffd": "1"})
    assert packed.index("\ufffd".encode()) < packed.index("\U00010000".encode())
    assert pack_context({"é": "x"}) != pack_context({"e\u0301": "x"})


@pytest.mark.parametrize("context", [{"a": 1}, {1: "a"}, {"a": None}, {"a": {"b": "c"}}, ["a"], "a", {"a": "\ud800"}, {"a": "x" * 8193}])
def test_bad_contexts(context: object) -> None:
    with pytest.raises(KmsError) as refused:
        pack_context(context)  # type: ignore[arg-type]
    assert refused.value.code == "InvalidParameter"
    assert "EncryptionContext" in refused.value.message


contexts = st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4)


@given(contexts, contexts)
def test_the_canonical_form_is_injective(one: dict[str, str], other: dict[str, str]) -> None:
    assert (pack_context(one) == pack_context(other)) == (one == other)


@given(contexts)
def test_order_does_not_matter(context: dict[str, str]) -> None:
    assert pack_context(dict(reversed(context.items()))) == pack_context(context)
