"""What strangers say in requests that are HTTP: read in one way, or refused, and the service goes on."""

from __future__ import annotations

import uuid

import pytest
from hostile import FORM, Service, request

from kmscore import signing


def test_wrong_content_types(it: Service) -> None:
    body = b"a=b"
    for kind in ("application/json", "text/plain", "multipart/form-data; boundary=x", "", FORM[:-1]):
        data = it.post({}, content_type=kind).replace(b"content-length: 0", b"content-length: 3") + body
        assert it.refused(data) == "ParseRequestParameterException"


@pytest.mark.parametrize(
    "query",
    ["a=1&a=2", "a=1&%61=2", "a", "=1", "a=%", "a=%0", "a=%zz", "a=%ED%A0%80", "a=%ff", "%ED%B0%80=1", "a=%C0%AF", "&", "a=1&", "a=%u0041"],
)
def test_queries_that_can_be_read_in_two_ways_or_none(it: Service, query: str) -> None:
    _, headers = it.wire.signed("DescribeRegions", {})
    assert it.refused(request(f"/?{query}", headers)) == "ParseRequestParameterException"


def test_a_parameter_in_query_and_body(it: Service) -> None:
    head = {"host": "a", "content-type": FORM, "content-length": "3"}
    assert it.refused(request("/?a=1", head) + b"a=2") == "ParseRequestParameterException"


def test_very_many_parameters(it: Service) -> None:
    target = "/?" + "&".join(f"a{number}=" for number in range(513))
    assert it.refused(request(target, {"host": "a"})) == "ParseRequestParameterException"


@pytest.mark.parametrize("action", ["__init__", "__class__", "Encrypt\x00", "encrypt", "../Encrypt", "Encrypt.x", "close", "rehearse", "é"])
def test_unknown_actions(it: Service, action: str) -> None:
    params = v1(it, action)
    assert it.refused(request(f"/?{signing.canonical_query(params)}", {"host": "a"})) == "InvalidApi.NotFound"


def v1(it: Service, action: str, **more: str) -> dict[str, str]:
    _, headers = it.wire.signed(action if action.isprintable() and action.isascii() else "x", {})
    params = {
        "Action": action,
        "Version": "2016-01-20",
        "AccessKeyId": it.wire.access_key_id,
        "SignatureMethod": "HMAC-SHA1",
        "SignatureVersion": "1.0",
        "SignatureNonce": uuid.uuid4().hex,
        "Timestamp": headers["x-acs-date"],
        **more,
    }
    return params | {"Signature": signing.v1_signature(it.wire.secret, signing.v1_string_to_sign("POST", params))}


def test_get_where_post_was_signed(it: Service) -> None:
    target, headers = it.wire.signed("DescribeRegions", {})
    assert it.refused(request(target, headers, "GET")) == "SignatureDoesNotMatch"
    query = signing.canonical_query(v1(it, "DescribeRegions"))
    assert it.refused(request(f"/?{query}", {"host": "a"}, "GET")) == "SignatureDoesNotMatch"
    assert it.exchange(request(f"/?{query}", {"host": "a"}))[0][0] == 200


@pytest.fixture(scope="module")
def key(hostile: Service) -> str:
    return str(hostile.wire.call("CreateKey", ProtectionLevel="SOFTWARE")["KeyMetadata"]["KeyId"])


BOMBS = {
    "deep array": "[" * 8000,
    "deep object": '{"a":' * 1600,
    "deep and closed": '{"a":' * 1300 + '"b"' + "}" * 1300,
    "long": '{"a":"' + "b" * 8192 + '"}',
    "a name twice": '{"a":"b","a":"c"}',
    "a name twice, escaped": '{"a":"b","\\u0061":"c"}',
    "a lone surrogate": '{"a":"\\ud800"}',
    "a lone surrogate as a name": '{"\\udfff":"a"}',
    "a long number": '{"a":' + "9" * 8000 + "}",
    "not a number": '{"a":NaN}',
    "an array": '["a"]',
    "a number": '{"a":1}',
    "null": "null",
    "no JSON": "{",
    "two": "{}{}",
    "NUL": "\x00",
    "a byte order mark": '\ufeff{"a":"b"}',
}


@pytest.mark.parametrize("context", BOMBS.values(), ids=list(BOMBS))
def test_contexts(it: Service, key: str, context: str) -> None:
    answer = it.wire.ask("Encrypt", KeyId=key, Plaintext="x", EncryptionContext=context)
    assert (answer.status, answer.code) == (400, "InvalidParameter")
    assert "EncryptionContext" in answer.body["Message"]


def test_bombs_in_other_json(it: Service, key: str) -> None:
    deep = "[" * 60_000
    for action, params in (
        ("CreateKey", {"Tags": deep}),
        ("ListKeys", {"Filters": deep}),
        ("UntagResource", {"KeyId": key, "TagKeys": deep}),
        ("EncryptBatch", {"KeyId": key, "Plaintexts": deep}),
        ("SetKeyPolicy", {"KeyId": key, "PolicyName": "default", "Policy": deep[:32_768]}),
    ):
        answer = it.wire.ask(action, **params)
        assert (answer.status, answer.code) == (400, "InvalidParameter"), (action, answer)


@pytest.mark.parametrize("name", ["KeyId", "AliasName", "Description"])
@pytest.mark.parametrize("value", ["\x00", "a\x00b", "\U0010ffff", "\u202e", "'; DROP TABLE events; --", "%s%n{0}${x}", "a" * 100_000])
def test_odd_values(it: Service, name: str, value: str) -> None:
    action, params = {
        "KeyId": ("DescribeKey", {}),
        "AliasName": ("DeleteAlias", {}),
        "Description": ("UpdateKeyDescription", {"KeyId": "none"}),
    }[name]
    answer = it.wire.ask(action, **params, **{name: value})
    assert 400 <= answer.status < 500, answer


@pytest.mark.parametrize("access_key", ["", "\x00", "a/b/c", "é", "a" * 50_000, "' OR 1=1", "../credentials"])
def test_odd_access_keys(it: Service, access_key: str) -> None:
    params = v1(it, "DescribeRegions", AccessKeyId=access_key)
    code = it.refused(request(f"/?{signing.canonical_query(params)}", {"host": "a"}))
    assert code == ("InvalidAccessKeyId.NotFound" if access_key else "IncompleteSignature")


def test_odd_authorization_headers(it: Service) -> None:
    _, headers = it.wire.signed("DescribeRegions", {})
    for value in ("Basic YTpi", "Bearer x", signing.ACS3, f"{signing.ACS3} " + "," * 60_000, "\u20ac", f"{headers['authorization']}x"):
        assert it.refused(request("/", headers | {"authorization": value})) == "IncompleteSignature"
    for name in ("authorization", "host", "x-acs-action", "content-type"):
        twice = request("/", headers | {"content-type": FORM})
        twice = twice.replace(b"\r\n\r\n", f"\r\n{name}: a\r\n\r\n".encode())
        assert it.refused(twice) == "ParseRequestParameterException"
