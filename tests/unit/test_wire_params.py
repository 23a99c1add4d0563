"""Query strings, form bodies, headers and bodies: read in one way, or refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_helpers import FORM, acs, made

from kmscore.api.params import decode_params, merge
from kmscore.api.request import MAX_BODY_BYTES, MAX_DROPPED_BYTES, has_body, read_body
from kmscore.errors import KmsError
from kmscore.signing import EMPTY_SHA256, canonical_query

UNREADABLE = "ParseRequestParameterException"


def refusal(error: pytest.ExceptionInfo[KmsError]) -> tuple[str, str]:
    return error.value.code, error.value.message


@pytest.mark.parametrize(
    ("text", "params"),
    [
        (b"", {}),
        (b"a=", {"a": ""}),
        (b"a=b=c", {"a": "b=c"}),
        (b"a=1&b=2", {"a": "1", "b": "2"}),
        (b"a+b=c+d", {"a b": "c d"}),
        (b"a=%2B%2b", {"a": "++"}),
        (b"%C3%A9=\xc3\xa9", {"é": "é"}),
        (b"a=%00", {"a": "\x00"}),
        (b"a=%F0%9F%98%80", {"a": "\U0001f600"}),
        (b"a=%25%32%35", {"a": "%25"}),  # decoded once
        (b"a=1;b=2", {"a": "1;b=2"}),  # only & divides
        (b"a=?#/~*'()!", {"a": "?#/~*'()!"}),
        (b"a=1&A=2", {"a": "1", "A": "2"}),
        (b"&".join(b"%d=" % n for n in range(512)), {str(n): "" for n in range(512)}),
    ],
)
def test_decoded(text: bytes, params: dict[str, str]) -> None:
    assert decode_params(text) == params


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"a", "no '='"),
        (b"=a", "no name"),
        (b"=", "no name"),
        (b"&", "no name"),
        (b"a=1&", "no name"),
        (b"a=1&&b=2", "no name"),
        (b"a=1&a=1", "twice"),
        (b"a=1&%61=2", "twice"),
        (b"a+=1&a%20=2", "twice"),
        (b"a=%", "hexadecimal"),
        (b"a=%4", "hexadecimal"),
        (b"a=%4g", "hexadecimal"),
        (b"a=%%41", "hexadecimal"),
        (b"%=a", "hexadecimal"),
        (b"a=%ff", "UTF-8"),
        (b"a=\xff", "UTF-8"),
        (b"a=%C0%80", "UTF-8"),  # overlong
        (b"a=%ED%A0%80", "UTF-8"),  # a lone surrogate
        (b"a=%F4%90%80%80", "UTF-8"),  # beyond Unicode
        (b"a=%C3", "UTF-8"),
        (b"&".join(b"%d=" % n for n in range(513)), "512"),
    ],
)
def test_not_decoded(text: bytes, why: str) -> None:
    with pytest.raises(KmsError, match=why) as error:
        decode_params(text)
    assert error.value.code == UNREADABLE


@given(st.dictionaries(st.text(min_size=1), st.text(), max_size=20))
def test_what_is_written_canonically_is_read_back(params: dict[str, str]) -> None:
    try:
        text = canonical_query(params).encode()
    except UnicodeEncodeError:
        return
    assert decode_params(text) == params


def test_query_and_form_are_one() -> None:
    assert merge({"a": "1"}, {"b": "2"}) == {"a": "1", "b": "2"}
    assert merge({"a": "1"}, {}) == {"a": "1"}
    with pytest.raises(KmsError, match="twice"):
        merge({"a": "1"}, {"a": "1"})


# --- requests ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["PUT", "HEAD", "DELETE", "OPTIONS", "post", ""])
def test_methods(method: str) -> None:
    with pytest.raises(KmsError) as error:
        made(method=method)
    assert error.value.code == "UnsupportedHTTPMethod"


@pytest.mark.parametrize("kind", [FORM, FORM.upper(), f"{FORM}; charset=UTF-8", f" {FORM} ;x"])
def test_a_form_body(kind: str) -> None:
    request = made("a=1", [("content-type", kind)], b"b=2")
    assert (request.query, request.params) == ({"a": "1"}, {"a": "1", "b": "2"})
    assert request.body_sha256 != EMPTY_SHA256


@pytest.mark.parametrize("kind", ["", "application/json", f"{FORM}x", "multipart/form-data; boundary=a", f"text/plain;{FORM}"])
def test_any_other_body(kind: str) -> None:
    with pytest.raises(KmsError) as error:
        made("", [("content-type", kind)], b"b=2")
    assert error.value.code == UNREADABLE
    assert made("", [("content-type", kind)]).body_sha256 == EMPTY_SHA256  # without a body it does not matter


def test_get_has_no_body() -> None:
    with pytest.raises(KmsError, match="GET"):
        made("", [("content-type", FORM)], b"a=1", "GET")
    assert made("a=1", method="GET").params == {"a": "1"}


@pytest.mark.parametrize("name", ["host", "authorization", "content-type", "content-length", "x-acs-action", "x-acs-anything"])
def test_headers_that_stand_once(name: str) -> None:
    with pytest.raises(KmsError, match="twice") as error:
        made("", [(name, "a"), (name, "a")])
    assert error.value.code == UNREADABLE


def test_other_headers_that_are_repeated_are_joined() -> None:
    """None of the values is passed over: a signature of one does not fit both."""
    assert made("", [("accept", "a"), ("via", "x"), ("accept", "b")]).headers == {"accept": "a, b", "via": "x"}


@pytest.mark.parametrize("value", ["v", " v", "v ", "\tv \t", "\xa0v", "v\u3000", "v\x85"])
def test_headers_are_read_as_they_are_signed(value: str) -> None:
    assert made("", [("x-acs-signature-nonce", value)]).headers == {"x-acs-signature-nonce": "v"}


def test_action_and_version() -> None:
    by_parameter = made("Action=A&Version=2016-01-20")
    assert by_parameter.action(by_header=False) == "A"
    query, headers = acs()
    assert made(query, headers).action(by_header=True) == "Encrypt"
    assert made(query + "&Action=Encrypt" if query else "Action=Encrypt", headers).action(by_header=True) == "Encrypt"


@pytest.mark.parametrize(
    ("query", "changed", "code"),
    [
        ("", {"x_acs_action": None}, "MissingParameter"),
        ("", {"x_acs_action": ""}, "MissingParameter"),
        ("", {"x_acs_version": None}, "MissingParameter"),
        ("", {"x_acs_version": "2016-01-21"}, "InvalidParameter"),
        ("Action=Decrypt", {}, UNREADABLE),
        ("Version=2016-01-21", {}, UNREADABLE),
        ("Action=", {}, UNREADABLE),
    ],
)
def test_actions_of_headers_that_are_refused(query: str, changed: dict[str, Any], code: str) -> None:
    _, headers = acs(**changed)
    with pytest.raises(KmsError) as error:
        made(query, headers).action(by_header=True)
    assert error.value.code == code


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("Version=2016-01-20", "MissingParameter"),
        ("Action=&Version=2016-01-20", "MissingParameter"),
        ("Action=A", "MissingParameter"),
        ("Action=A&Version=1", "InvalidParameter"),
    ],
)
def test_actions_of_parameters_that_are_refused(query: str, code: str) -> None:
    with pytest.raises(KmsError) as error:
        made(query, [("x-acs-action", "A"), ("x-acs-version", "2016-01-20")]).action(by_header=False)  # headers do not stand in
    assert error.value.code == code


def test_what_the_operation_sees() -> None:
    query = "Action=A&Version=1&Format=JSON&AccessKeyId=i&SignatureMethod=m&SignatureVersion=1&SignatureNonce=n&SignatureType=&Timestamp=t"
    request = made(query + "&Signature=s&SecurityToken=x&RegionId=r&KeyId=k&action=b")
    assert request.business(region_wanted=False) == {"KeyId": "k", "action": "b"}
    assert request.business(region_wanted=True) == {"KeyId": "k", "action": "b", "RegionId": "r"}


# --- bodies ------------------------------------------------------------------------------------------------------------------------


def read(parts: Iterable[dict[str, Any]]) -> bytes:
    messages = iter(parts)

    async def receive() -> dict[str, Any]:
        return next(messages)

    return asyncio.run(read_body(receive))


def chunk(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_in_parts() -> None:
    assert read([chunk(b"a="), chunk(b""), chunk(b"1"), {"type": "http.request"}]) == b"a=1"
    assert len(read([chunk(bytes(MAX_BODY_BYTES), False)])) == MAX_BODY_BYTES


def test_a_body_whose_sender_goes_away() -> None:
    with pytest.raises(KmsError, match="went away"):
        read([chunk(b"a="), {"type": "http.disconnect"}])


def test_a_large_body_is_read_to_its_end_and_dropped() -> None:
    seen = []

    def parts() -> Iterable[dict[str, Any]]:
        for number in range(3):
            seen.append(number)
            yield chunk(bytes(MAX_BODY_BYTES), number < 2)

    with pytest.raises(KmsError, match="larger") as error:
        read(parts())
    assert refusal(error)[0] == UNREADABLE
    assert seen == [0, 1, 2]


def test_a_huge_body_is_not_read_to_its_end() -> None:
    seen = []

    def parts() -> Iterable[dict[str, Any]]:
        while True:
            seen.append(1)
            yield chunk(bytes(MAX_BODY_BYTES))

    with pytest.raises(KmsError, match="larger"):
        read(parts())
    assert len(seen) == MAX_DROPPED_BYTES // MAX_BODY_BYTES + 1


@pytest.mark.parametrize(
    ("headers", "answer"),
    [
        ([], False),
        ([(b"content-length", b"0")], False),
        ([(b"content-length", b"00 ")], False),
        ([(b"content-length", b"1")], True),
        ([(b"transfer-encoding", b"chunked")], True),
        ([(b"content-length", str(MAX_DROPPED_BYTES).encode())], True),
    ],
)
def test_whether_there_is_a_body(headers: list[tuple[bytes, bytes]], answer: bool) -> None:
    assert has_body({"headers": headers}) is answer


@pytest.mark.parametrize("size", [MAX_DROPPED_BYTES + 1, 10**40])
def test_a_body_that_says_it_is_huge(size: int) -> None:
    with pytest.raises(KmsError, match="larger"):
        has_body({"headers": [(b"content-length", str(size).encode())]})
