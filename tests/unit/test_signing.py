"""The signatures of the wire against published and measured vectors (WIRE.md section 7)."""

from __future__ import annotations

import hashlib

import pytest

from kmscore import signing
from kmscore.domain.specs import KeyUsage, ProtectionLevel

SECRET = "testsecret"
ENCRYPT = {"EncryptionContext": '{"K1":"v 1*~","K2":"é"}', "KeyId": "alias/demo key", "Plaintext": "SGVsbG8+/w=="}
DATE = "2024-01-02T03:04:05Z"
NONCE = "0123456789abcdef0123456789abcdef"
FORM = "application/x-www-form-urlencoded"
SECRET_DATA = b"SecretData=p%40ss+w%2B%C3%A9"


def acs_headers(action: str, body: bytes = b"", **more: str) -> list[tuple[str, str]]:
    headers = {
        "host": "127.0.0.1:18080",
        "x-acs-action": action,
        "x-acs-content-sha256": hashlib.sha256(body).hexdigest(),
        "x-acs-date": DATE,
        "x-acs-signature-nonce": NONCE,
        "x-acs-version": "2016-01-20",
        **({"content-type": FORM} if body else {}),
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    return sorted(headers.items())


def test_v1_a_the_sample_of_the_documentation() -> None:
    params = {
        "AccessKeyId": "testid",
        "Action": "CreateKey",
        "Format": "json",
        "SignatureMethod": "HMAC-SHA1",
        "SignatureVersion": "1.0",
        "Timestamp": "2016-03-28T03:13:08Z",
        "Version": "2016-01-20",
    }
    string = signing.v1_string_to_sign("GET", params)
    assert string.endswith("Timestamp%3D2016-03-28T03%253A13%253A08Z%26Version%3D2016-01-20")
    assert signing.v1_signature(SECRET, string) == "41wk2SSX1GJh7fwnc5eqOfiJPFg="


def test_v1_b_encrypt() -> None:
    params = ENCRYPT | {
        "AccessKeyId": "testid",
        "Action": "Encrypt",
        "Format": "json",
        "SignatureMethod": "HMAC-SHA1",
        "SignatureNonce": NONCE,
        "SignatureVersion": "1.0",
        "Timestamp": DATE,
        "Version": "2016-01-20",
    }
    string = signing.v1_string_to_sign("POST", params)
    assert "K1%2522%253A%2522v%25201%252A~%2522%252C%2522K2%2522%253A%2522%25C3%25A9" in string
    assert signing.v1_signature(SECRET, string) == "/MukNE8mS8Alwl6TK8gTIANN4bM="


@pytest.mark.parametrize(
    ("more", "hashed", "signature"),
    [
        pytest.param(
            {},
            "eff098ad650226177be2aaf076a476f454e3dc1ef53d9abe80522f4f1e39bb88",
            "6f8e71c49a5ca630792ecc15e1432e8eedf6a0e79d551ad8d2727fba7b849dbe",
            id="V3-A",
        ),
        pytest.param(
            {"accept": "application/json", "user_agent": "kms-test/1.0", "x_acs_credentials_provider": "static_ak"},
            "47b6abbc8018f6e49963b80a4807806119db83203d8cb9f01fdda48b6b34de62",
            "5caf73358e58226754d36e0670f6e703b99dd28b1e95393b61cf0f1852241159",
            id="V3-B",
        ),
    ],
)
def test_acs3_encrypt(more: dict[str, str], hashed: str, signature: str) -> None:
    headers = acs_headers("Encrypt", **more)
    request = signing.canonical_request("POST", signing.canonical_query(ENCRYPT), headers, signing.EMPTY_SHA256)
    string = signing.acs_string_to_sign(signing.ACS3, request)
    assert string == f"ACS3-HMAC-SHA256\n{hashed}"
    assert signing.acs_signature(SECRET.encode(), string) == signature


def put_secret_value(algorithm: str, **more: str) -> str:
    query = signing.canonical_query({"SecretName": "n", "VersionId": "v1"})
    headers = acs_headers("PutSecretValue", SECRET_DATA, **more)
    return signing.acs_string_to_sign(algorithm, signing.canonical_request("POST", query, headers, hashlib.sha256(SECRET_DATA).hexdigest()))


def test_acs3_with_a_form_body() -> None:
    assert hashlib.sha256(SECRET_DATA).hexdigest() == "12af3337192db69cba45c652441bf2c6f5757e0c6557c55adefb194030b552e2"
    signature = signing.acs_signature(SECRET.encode(), put_secret_value(signing.ACS3))
    assert signature == "fc3db0682aa4ed185d01e61e5c23dd2dbe287f23522b8ae5ee9b142a52dda605"
    full = put_secret_value(signing.ACS3, accept="application/json", user_agent="kms-test/1.0", x_acs_credentials_provider="static_ak")
    assert signing.acs_signature(SECRET.encode(), full) == "6fc6f4ae0ae6d8f45bbf5e38612fc9c6e82ff86323eb3763cfc0831f62f68602"


def test_acs3_d_the_published_example() -> None:
    headers = [
        ("host", "ecs.cn-shanghai.aliyuncs.com"),
        ("x-acs-action", "RunInstances"),
        ("x-acs-content-sha256", signing.EMPTY_SHA256),
        ("x-acs-date", "2023-10-26T10:22:32Z"),
        ("x-acs-signature-nonce", "3156853299f313e23d1673dc12e1703d"),
        ("x-acs-version", "2014-05-26"),
    ]
    query = signing.canonical_query({"ImageId": "win2019_1809_x64_dtc_zh-cn_40G_alibase_20230811.vhd", "RegionId": "cn-shanghai"})
    string = signing.acs_string_to_sign(signing.ACS3, signing.canonical_request("POST", query, headers, signing.EMPTY_SHA256))
    assert string.endswith("7ea06492da5221eba5297e897ce16e55f964061054b7695beedaac1145b1e259")
    signature = signing.acs_signature(b"YourAccessKeySecret", string)
    assert signature == "06563a9e1b43f5dfe96b81484da74bceab24a1d853912eee15083a6f0f3283c0"


def test_acs4_a() -> None:
    key = signing.acs4_key(SECRET, "20240102", "cn-hangzhou", "Kms")
    assert signing.acs4_scope("20240102", "cn-hangzhou", "Kms") == "20240102/cn-hangzhou/Kms/aliyun_v4_request"
    assert key.hex() == "a91ab2ed8fa61534daba1dc1fe7907e9d82c64b6737f2bf671e05af833da9a85"
    query = signing.canonical_query(ENCRYPT)
    for more, signature in (
        ({}, "408efabc58d033cf37c7d5d35c73e50bba3284ef13ed3d1475ca32c44074c375"),
        ({"x_acs_credentials_provider": "static_ak"}, "b1ee93369e922735f75c119bfcae94461451eb93ca6d91b1f4f85bde4611b943"),
    ):
        request = signing.canonical_request("POST", query, acs_headers("Encrypt", **more), signing.EMPTY_SHA256)
        assert signing.acs_signature(key, signing.acs_string_to_sign(signing.ACS4, request)) == signature
    put = put_secret_value(signing.ACS4, x_acs_credentials_provider="static_ak")
    assert signing.acs_signature(key, put) == "0c1a96742675b3e2492748715f50a6164b27016e5574be1358d21131f88c623e"


@pytest.mark.parametrize(
    ("text", "encoded"),
    [("", ""), ("aZ09-_.~", "aZ09-_.~"), (" +*/=&?", "%20%2B%2A%2F%3D%26%3F"), ("é\U0001f600\n\x00", "%C3%A9%F0%9F%98%80%0A%00")],
)
def test_percent(text: str, encoded: str) -> None:
    assert signing.percent(text) == encoded


def test_an_enumeration_is_text_too() -> None:
    assert signing.percent(KeyUsage.SIGN_VERIFY) == "SIGN%2FVERIFY"
    assert type(signing.percent(ProtectionLevel.HSM)) is str
    for wrong in (b"HSM", None, 1):
        with pytest.raises(TypeError):
            signing.percent(wrong)  # type: ignore[arg-type]


def test_a_lone_surrogate_has_no_canonical_form() -> None:
    with pytest.raises(UnicodeEncodeError):
        signing.canonical_query({"a": "\ud800"})


def test_the_order_of_names_is_that_of_the_client() -> None:
    names = {"\uff5e": "1", "\U0001f600": "2"}
    assert signing.canonical_query(names).startswith("%EF%BD%9E")
    assert signing.canonical_query(names, signing.utf16_order).startswith("%F0%9F%98%80")
