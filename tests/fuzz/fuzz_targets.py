"""What must hold of the parsers that strangers reach, for any bytes at all. Each target raises when it does not."""

from __future__ import annotations

import json
from collections.abc import Callable

from kmscore import signing
from kmscore.api.params import MAX_PARAMETERS, decode_params
from kmscore.api.request import make_request
from kmscore.api.signatures import check_time, claim_of
from kmscore.domain import policy
from kmscore.domain.envelope import pack_context, pack_header, parse_header
from kmscore.errors import KmsError
from kmscore.operations import find
from kmscore.operations.parse import arguments

ACCOUNT = "1000000000000001"
STAMP = b"2024-01-02T03:04:05Z"


def params(data: bytes) -> None:
    """The canonicaliser: what is read and written and read again is the same, and is written in one way only."""
    try:
        read = decode_params(data)
    except KmsError as error:
        assert error.code == "ParseRequestParameterException"
        return
    assert len(read) <= MAX_PARAMETERS
    for order in (None, signing.utf16_order):
        text = signing.canonical_query(read, order)
        assert text.isascii()
        assert decode_params(text.encode()) == read
        assert signing.canonical_query(decode_params(text.encode()), order) == text
    string = signing.v1_string_to_sign("POST", read)
    assert decode_params(b"x=" + string.removeprefix("POST&%2F&").encode())["x"] == signing.canonical_query(read)


def authorization(data: bytes) -> None:
    """The headers of a signature, one on a line and Authorization first: nobody is believed who does not know the secret."""
    value, *lines = data.split(b"\n")
    headers = {b"host": b"h", b"x-acs-action": b"A", b"x-acs-content-sha256": signing.EMPTY_SHA256.encode(), b"x-acs-date": STAMP}
    headers |= {b"x-acs-version": b"2016-01-20", b"authorization": value}
    headers |= {name.lower(): text for name, _, text in (line.partition(b":") for line in lines)}
    scope = {"method": "POST", "query_string": b"", "headers": list(headers.items())}
    try:
        request = make_request(scope, b"")
        claim = claim_of(request)
    except KmsError as error:
        assert error.status == 400
        return
    assert claim.by_header
    assert claim.access_key_id
    assert claim.nonce
    assert claim.nonce == claim.nonce.strip()
    listed = request.authorization.partition("SignedHeaders=")[2].partition(",")[0].split(";")
    assert {"host", "x-acs-action", "x-acs-content-sha256", "x-acs-date", "x-acs-version"} <= set(listed)
    assert "x-acs-signature-nonce" in listed or "x-acs-signature-nonce" not in request.headers
    try:
        claim.verify("a secret that was not used", ())
    except KmsError as error:
        assert error.code == "SignatureDoesNotMatch"
    else:
        raise AssertionError("a signature by nobody")
    try:
        check_time(claim.stamp, 1704164645.0)
    except KmsError as error:
        assert error.code.startswith("InvalidTimeStamp.")


def context(data: bytes) -> None:
    """An encryption context as JSON, or as parameters of its own (one on a line): a map of strings, of one canonical form."""
    text = data.decode(errors="surrogateescape")
    given = {"KeyId": "k", "Plaintext": "p"}
    if text.startswith("."):
        given |= {f"EncryptionContext.{name}": value for name, _, value in (line.partition("=") for line in text[1:].split("\n"))}
    else:
        given["EncryptionContext"] = text
    try:
        read = arguments(find("Encrypt"), given).get("encryption_context")
        packed = pack_context(read)
    except KmsError as error:
        assert error.code == "InvalidParameter"
        return
    assert read is None or all(isinstance(name, str) and isinstance(value, str) for name, value in read.items())
    again = json.dumps(dict(reversed((read or {}).items())), ensure_ascii=True)
    if len(again) <= 8192:
        other = arguments(find("Encrypt"), {"KeyId": "k", "Plaintext": "p", "EncryptionContext": again})["encryption_context"]
        assert other == read
        assert pack_context(other) == packed


def blob(data: bytes) -> None:
    """A ciphertext's header: read, it is packed to the bytes that it was."""
    try:
        header = parse_header(data)
    except KmsError as error:
        assert (error.code, "CiphertextBlob" in error.message) == ("InvalidParameter", True)
        return
    assert pack_header(header.suite, header.content, header.version_id) == data[:19]


def policies(data: bytes) -> None:
    """Policies of users and keys: strict, the same when written anew, and never more than what they allow."""
    text = data.decode(errors="surrogateescape")
    for parse in (policy.parse_identity_policy, lambda text: policy.parse_key_policy(text, ACCOUNT)):
        try:
            read = parse(text)
        except KmsError as error:
            assert error.code == "InvalidParameter"
            continue
        assert parse(json.dumps(json.loads(text))) == read
        own, of_key = (read, None) if isinstance(read, policy.IdentityPolicy) else (policy.IdentityPolicy(), read)
        allowed, why = policy.decide(own, "eve", "kms:Encrypt", f"acs:kms:cn-local:{ACCOUNT}:key/k", of_key)
        assert why
        assert not allowed or any(statement.verdict is policy.Verdict.ALLOWED for statement in read.statements)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "params": params,
    "authorization": authorization,
    "context": context,
    "blob": blob,
    "policy": policies,
}
