"""Who signed a request, and whether they did; each way in which a request is not signed as it must be."""

from __future__ import annotations

import time
from typing import Any

import pytest
from wire_helpers import NONCE, SECRET, STAMP, acs, made, v1

from kmscore import signing
from kmscore.api.signatures import HIDDEN, check_time, claim_of
from kmscore.errors import KmsError

NOW = 1704164645.0  # STAMP
OLD_SDK = "Specified signature is not matched with our calculation. server string to sign is:"


def code(call: Any, *arguments: Any) -> str:
    with pytest.raises(KmsError) as error:
        call(*arguments)
    return error.value.code


def v1_request(params: dict[str, str], method: str = "POST") -> Any:
    return made(signing.canonical_query(params), method=method)


def verify(request: Any, hidden: tuple[str, ...] = ()) -> Any:
    claim = claim_of(request)
    claim.verify(SECRET, hidden)
    return claim


# --- V1 ----------------------------------------------------------------------------------------------------------------------------


def test_v1() -> None:
    claim = verify(v1_request(v1({"KeyId": "k é"})))
    assert (claim.access_key_id, claim.by_header, claim.stamp, claim.nonce) == ("testid", False, STAMP, NONCE)


@pytest.mark.parametrize("name", ["AccessKeyId", "SignatureMethod", "SignatureVersion", "Timestamp", "Signature"])
@pytest.mark.parametrize("value", [None, ""])
def test_v1_parts_that_are_missing(name: str, value: str | None) -> None:
    params = v1()
    del params[name]
    if value is not None:
        params[name] = value
    assert code(claim_of, v1_request(params)) == "IncompleteSignature"


@pytest.mark.parametrize("nonce", [None, ""])
def test_v1_without_a_nonce_is_known_by_its_signature(nonce: str | None) -> None:
    params = v1(SignatureNonce=nonce)
    assert verify(v1_request(params)).nonce == params["Signature"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SignatureMethod", "HMAC-SHA256"),
        ("SignatureMethod", "none"),
        ("SignatureVersion", "2.0"),
        ("SignatureVersion", "1"),
        ("SignatureType", "BEARERTOKEN"),
    ],
)
def test_v1_of_another_kind(name: str, value: str) -> None:
    assert code(claim_of, v1_request(v1(**{name: value}))) == "InvalidSignatureMethod"


def test_v1_of_the_old_sdk() -> None:
    """It sends an empty SignatureType, and signs it."""
    verify(v1_request(v1(SignatureType="", RegionId="cn-hangzhou", SignatureMethod="hmac-sha1")))


def test_v1_signs_the_method_and_all_parameters() -> None:
    params = v1({"KeyId": "k"})
    assert code(verify, v1_request(params, "GET")) == "SignatureDoesNotMatch"
    assert code(verify, v1_request(params | {"More": ""})) == "SignatureDoesNotMatch"
    verify(v1_request(v1({"KeyId": "k"}, method="GET"), "GET"))
    verify(made(signing.canonical_query({"KeyId": "k"}), [("content-type", "application/x-www-form-urlencoded")], _form(params)))


def _form(params: dict[str, str]) -> bytes:
    return signing.canonical_query({name: value for name, value in params.items() if name != "KeyId"}).encode()


@pytest.mark.parametrize("signature", ["a", "A" * 28, "é", "\x00", "=" * 28])
def test_v1_a_signature_that_is_none(signature: str) -> None:
    assert code(verify, v1_request(v1() | {"Signature": signature})) == "SignatureDoesNotMatch"


def test_v1_names_in_the_order_of_javascript() -> None:
    params = v1({"\uff5e": "1", "\U0001f600": "2"})
    verify(v1_request(params))
    del params["Signature"]
    other = signing.v1_signature(SECRET, signing.v1_string_to_sign("POST", params, signing.utf16_order))
    verify(v1_request(params | {"Signature": other}))
    assert code(verify, v1_request(params | {"Signature": other[::-1]})) == "SignatureDoesNotMatch"


def test_v1_the_refusal_is_one_that_the_old_sdk_can_take_apart() -> None:
    params = v1({"KeyId": "k:1"})
    with pytest.raises(KmsError) as error:
        claim_of(v1_request(params)).verify("other", ())
    del params["Signature"]
    assert error.value.message == OLD_SDK + signing.v1_string_to_sign("POST", params)
    assert error.value.message.split(":", 1)[1] == signing.v1_string_to_sign("POST", params)


def test_v1_the_refusal_does_not_say_secrets_back() -> None:
    params = v1({"Plaintext": "c2VjcmV0", "Plaintexts": "[]", "Plaintext.1": "hidden", "plaintext ": "hidden", "KeyId": "k"})
    with pytest.raises(KmsError) as error:
        claim_of(v1_request(params)).verify("other", ("Plaintext",))
    shown = {**params, "Plaintext": HIDDEN, "Plaintext.1": HIDDEN, "plaintext ": HIDDEN}
    del shown["Signature"]
    assert error.value.message == OLD_SDK + signing.v1_string_to_sign("POST", shown)
    assert "c2VjcmV0" not in error.value.message
    assert "hidden" not in error.value.message


# --- ACS3, ACS4 --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [signing.ACS3, signing.ACS4])
def test_acs(scheme: str) -> None:
    query, headers = acs({"KeyId": "k é"}, b"Plaintext=a", scheme=scheme)
    claim = verify(made(query, headers, b"Plaintext=a"))
    assert (claim.access_key_id, claim.by_header, claim.stamp, claim.nonce) == ("testid", True, STAMP, NONCE)


@pytest.mark.parametrize("name", ["host", "x-acs-action", "x-acs-content-sha256", "x-acs-date", "x-acs-version", "x-acs-signature-nonce"])
def test_acs_headers_that_must_be_signed(name: str) -> None:
    query, headers = acs(unsigned=[name])
    assert code(claim_of, made(query, headers)) == "IncompleteSignature"
    query, headers = acs()  # signed, and not there
    assert code(claim_of, made(query, [item for item in headers if item[0] != name])) == "IncompleteSignature"


def test_acs_without_a_nonce_is_known_by_its_signature() -> None:
    query, headers = acs(x_acs_signature_nonce=None)
    assert verify(made(query, headers)).nonce == headers[-1][1].rpartition("=")[2]
    added = [*headers, ("x-acs-signature-nonce", "of another's")]
    assert code(claim_of, made(query, added)) == "IncompleteSignature"


@pytest.mark.parametrize(
    "listed",
    [
        "x-acs-version;x-acs-signature-nonce;x-acs-date;x-acs-content-sha256;x-acs-action;host",
        "host;host;x-acs-action;x-acs-content-sha256;x-acs-date;x-acs-signature-nonce;x-acs-version",
        "host;x-acs-action;x-acs-content-sha256;x-acs-date;x-acs-signature-nonce;x-acs-version;",
        ";host;x-acs-action;x-acs-content-sha256;x-acs-date;x-acs-signature-nonce;x-acs-version",
        "Host;x-acs-action;x-acs-content-sha256;x-acs-date;x-acs-signature-nonce;x-acs-version",
        "",
    ],
)
def test_acs_signed_headers_that_are_not_in_order(listed: str) -> None:
    query, headers = acs(listed=listed)
    assert code(claim_of, made(query, headers)) == "IncompleteSignature"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("ACS3", "ACS5"),
        lambda text: text.replace("ACS3-HMAC-SHA256", "ACS3-HMAC-SM3"),
        lambda text: text.replace("ACS3-HMAC-SHA256 ", "ACS3-HMAC-SHA256  "),
        lambda text: text.replace("Credential=testid", "Credential="),
        lambda text: text.replace("Credential=testid", "Credential=a b"),
        lambda text: text[:-1],
        lambda text: f"{text}0",
        lambda text: f"{text},",
        lambda text: text.replace("Signature=", "Signature=0x"),
        lambda text: text[: text.index("Signature=")],
        lambda text: text.rpartition("=")[0] + "=" + "A" * 64,
        lambda text: f"x{text}",
        lambda text: "Basic YTpi",
    ],
)
def test_acs_other_forms_of_the_header(change: Any) -> None:
    query, headers = acs()
    headers[-1] = ("authorization", change(headers[-1][1]))
    assert code(claim_of, made(query, headers)) == "IncompleteSignature"


def test_acs_a_space_behind_the_commas_is_allowed() -> None:
    query, headers = acs()
    headers[-1] = ("authorization", headers[-1][1].replace(",", ", "))
    verify(made(query, headers))


def test_acs_the_hash_is_that_of_the_body() -> None:
    query, headers = acs({}, b"Plaintext=a")
    assert code(verify, made(query, headers, b"Plaintext=b")) == "SignatureDoesNotMatch"
    assert code(verify, made(query, headers)) == "SignatureDoesNotMatch"
    query, headers = acs(x_acs_content_sha256="UNSIGNED-PAYLOAD")
    assert code(verify, made(query, headers)) == "SignatureDoesNotMatch"
    query, headers = acs(x_acs_content_sha256=signing.EMPTY_SHA256.upper())
    assert code(verify, made(query, headers)) == "SignatureDoesNotMatch"
    query, headers = acs(x_acs_content_sha256="é")
    assert code(verify, made(query, headers)) == "SignatureDoesNotMatch"


def test_acs_the_refusal_has_a_colon_and_no_parameter() -> None:
    query, headers = acs({"Plaintext": "c2VjcmV0"})
    with pytest.raises(KmsError) as error:
        claim_of(made(query, headers)).verify("other", ())
    assert error.value.message.startswith(f"{OLD_SDK}{signing.ACS3}\n")
    assert len(error.value.message) == len(OLD_SDK) + len(signing.ACS3) + 1 + 64


def test_acs_names_in_the_order_of_javascript() -> None:
    query, headers = acs({"\uff5e": "1", "\U0001f600": "2"})
    verify(made(query, headers))
    signed = sorted(headers[:-1])
    text = signing.canonical_request(
        "POST", signing.canonical_query({"\uff5e": "1", "\U0001f600": "2"}, signing.utf16_order), signed, signing.EMPTY_SHA256
    )
    signature = signing.acs_signature(SECRET.encode(), signing.acs_string_to_sign(signing.ACS3, text))
    headers[-1] = ("authorization", headers[-1][1].rpartition("=")[0] + f"={signature}")
    verify(made(query, headers))


@pytest.mark.parametrize(
    "scope",
    [
        "20240103/cn-hangzhou/Kms/aliyun_v4_request",
        "20240102/cn-hangzhou/Ecs/aliyun_v4_request",
        "20240102/cn-hangzhou/Kms/aliyun_v3_request",
        "2024012/cn-hangzhou/Kms/aliyun_v4_request",
        "20240102/cn/hangzhou/Kms/aliyun_v4_request",
    ],
)
def test_acs4_other_scopes(scope: str) -> None:
    query, headers = acs(scheme=signing.ACS4, scope=scope)
    assert code(claim_of, made(query, headers)) == "IncompleteSignature"


def test_acs4_the_scope_is_signed() -> None:
    query, headers = acs(scheme=signing.ACS4)
    headers[-1] = ("authorization", headers[-1][1].replace("cn-hangzhou", "cn-beijing"))
    assert code(verify, made(query, headers)) == "SignatureDoesNotMatch"
    query, headers = acs(scheme=signing.ACS4)
    headers[-1] = ("authorization", headers[-1][1].replace("/Kms/", "/kms/"))
    assert code(verify, made(query, headers)) == "SignatureDoesNotMatch"


def test_a_scheme_is_not_another() -> None:
    query, headers = acs()
    headers[-1] = ("authorization", headers[-1][1].replace("ACS3", "ACS4"))
    assert code(claim_of, made(query, headers)) == "IncompleteSignature"
    query, headers = acs(scheme=signing.ACS4)
    headers[-1] = ("authorization", headers[-1][1].replace("ACS4", "ACS3"))
    assert claim_of(made(query, headers)).access_key_id == "testid/20240102/cn-hangzhou/Kms/aliyun_v4_request"  # whom nobody knows


# --- neither, or both --------------------------------------------------------------------------------------------------------------


def test_not_signed() -> None:
    assert code(claim_of, made()) == "IncompleteSignature"
    assert code(claim_of, made("Action=Encrypt", [("authorization", "")])) == "IncompleteSignature"


def test_signed_in_two_ways() -> None:
    query, headers = acs(v1())
    assert code(claim_of, made(query, headers)) == "IncompleteSignature"
    query, headers = acs({"Signature": ""})
    assert code(claim_of, made(query, headers)) == "IncompleteSignature"


def test_temporary_credentials() -> None:
    for name in ("x_acs_security_token", "x_acs_bearer_token"):
        query, headers = acs(**{name: "a"})
        assert code(claim_of, made(query, headers)) == "UnsupportedOperation"
    assert code(claim_of, v1_request(v1(SecurityToken="a"))) == "UnsupportedOperation"


# --- time --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [-900, -899.5, 0, 899.5, 900])
def test_times_within_the_window(offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    up(monkeypatch, 1e6)
    check_time(STAMP, NOW + offset)


@pytest.mark.parametrize("offset", [-900.5, -1e6, 900.5, 1e9])
def test_times_outside_the_window(offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    up(monkeypatch, 1e10)
    assert code(check_time, STAMP, NOW + offset) == "InvalidTimeStamp.Expired"


def test_stamps_from_before_the_machine_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was seen then is not known any more."""
    up(monkeypatch, 60)
    check_time(STAMP, NOW + 60)
    assert code(check_time, STAMP, NOW + 60.5) == "InvalidTimeStamp.Expired"


def up(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(time, "clock_gettime", lambda clock: seconds if clock == time.CLOCK_BOOTTIME else 1 / 0)


@pytest.mark.parametrize(
    "stamp",
    [
        "",
        "now",
        "2024-01-02 03:04:05Z",
        "2024-01-02T03:04:05",
        "2024-01-02T03:04:05+00:00",
        "2024-01-02T03:04:05.0Z",
        "2024-01-02T03:04:05Z\n",
        "2024-01-02T03:04:60Z",
        "2024-02-30T03:04:05Z",
        "0000-01-02T03:04:05Z",
        "２024-01-02T03:04:05Z",
        "20240102T030405Z",
        "1704164645",
    ],
)
def test_stamps_of_another_form(stamp: str) -> None:
    assert code(check_time, stamp, NOW) == "InvalidTimeStamp.Format"
