"""Parameters as strings -> arguments of the engine's methods: literal expectations, and every refusal by code and parameter."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmscore.domain.specs import ContentKind
from kmscore.errors import KmsError
from kmscore.operations import OPERATIONS, Kind, find, invoke
from kmscore.operations.parse import arguments

MINIMAL = {"ResourceType": "key", "RegionId": "cn-local"}


def parsed(operation: str, **params: str) -> dict[str, Any]:
    return arguments(OPERATIONS[operation], params)


def refused(operation: str, params: dict[str, str]) -> tuple[str, str]:
    with pytest.raises(KmsError) as caught:
        arguments(OPERATIONS[operation], params)
    return caught.value.code, caught.value.message


def test_a_whole_create_key() -> None:
    assert parsed(
        "CreateKey",
        Description="orders",
        ProtectionLevel="HSM",
        KeySpec="Aliyun_AES_256",
        KeyUsage="ENCRYPT/DECRYPT",
        Origin="Aliyun_KMS",
        EnableAutomaticRotation="True",
        RotationInterval="30d",
        Tags='[{"TagKey":"team","TagValue":"a"},{"TagKey":"empty"}]',
        DKMSInstanceId="x",
    ) == {
        "description": "orders",
        "protection_level": "HSM",
        "key_spec": "Aliyun_AES_256",
        "key_usage": "ENCRYPT/DECRYPT",
        "origin": "Aliyun_KMS",
        "enable_automatic_rotation": True,
        "rotation_interval": "30d",
        "tags": {"team": "a", "empty": ""},
        "dkms_instance_id": "x",
    }


def test_an_empty_optional_value_is_as_if_absent() -> None:
    assert parsed("CreateKey", Description="", KeySpec="", EnableAutomaticRotation="", Tags="", Policy="") == {}
    assert parsed("ListKeys", PageNumber="", PageSize="", Filters="") == {}


def test_an_empty_required_value_is_missing_unless_it_may_be_empty() -> None:
    assert refused("DescribeKey", {"KeyId": ""}) == ("MissingParameter", 'The parameter "KeyId" is needed but not provided.')
    assert parsed("UpdateKeyDescription", KeyId="k", Description="") == {"key_id": "k", "description": ""}
    assert refused("UpdateKeyDescription", {"KeyId": "k"})[0] == "MissingParameter"


@pytest.mark.parametrize(
    ("operation", "name"),
    [(o.name, p.name) for o in OPERATIONS.values() for p in o.params if p.required],
)
def test_every_required_parameter_is_missed_by_its_name(operation: str, name: str) -> None:
    full = {p.name: "x" for p in OPERATIONS[operation].params if p.required and p.kind not in (Kind.NUMBERED, Kind.NUMBERED_TAGS)}
    full |= {"ResourceId.1": "k", "Tag.1.Key": "a"} if operation == "TagResources" else {}
    full |= {"ResourceId.1": "k"} if operation == "UntagResources" else {}
    given = {key: value for key, value in full.items() if key.split(".")[0] != name}
    assert refused(operation, given) == ("MissingParameter", f'The parameter "{name}" is needed but not provided.')


@pytest.mark.parametrize("name", ["Nope", "keyid", "KeyId.1", "KeyId.1.Key", "ResourceId.1", "Tag.1.Key", "Tag", "\ud800"])
def test_an_unknown_parameter_is_refused_by_its_name(name: str) -> None:
    code, message = refused("DescribeKey", {"KeyId": "k", name: "x"})
    assert code == "InvalidParameter"
    assert name.encode(errors="replace").decode() in message


@pytest.mark.parametrize(
    "name", ["ResourceId", "ResourceId.0", "ResourceId.01", "ResourceId.1.Key", "Tag.1", "Tag.1.Name", "ResourceId.-1"]
)
def test_a_number_that_is_none_is_refused(name: str) -> None:
    assert refused("TagResources", {**MINIMAL, "ResourceId.1": "k", "Tag.1.Key": "a", name: "x"})[0] == "InvalidParameter"


@pytest.mark.parametrize(
    ("operation", "params", "code"),
    [
        ("Decrypt", {"CiphertextBlob": "QQ==", "Recipient": "{}"}, "UnsupportedOperation"),
        ("CreateKey", {"KeyStorageMechanism": "HsmEncryptedDatabase"}, "UnsupportedOperation"),
        ("TagResource", {"KeyId": "k", "Tags": "[]", "SecretName": "s"}, "MissingParameter"),
        ("TagResource", {"KeyId": "k", "Tags": '[{"TagKey":"a"}]', "SecretName": "s"}, "UnsupportedOperation"),
    ],
)
def test_what_is_known_but_not_offered_is_refused_rather_than_ignored(operation: str, params: dict[str, str], code: str) -> None:
    assert refused(operation, params)[0] == code


def test_what_is_not_offered_may_say_what_is_so_anyway() -> None:
    assert parsed("CreateKey", KeyStorageMechanism="HsmInternal") == {}
    assert parsed("Decrypt", CiphertextBlob="QQ==", DryRun="False") == {"ciphertext_blob": b"A"}


@pytest.mark.parametrize("value", ["true", "True", "TRUE"])
def test_booleans_in_any_case(value: str) -> None:
    assert parsed("CreateKey", EnableAutomaticRotation=value) == {"enable_automatic_rotation": True}
    assert parsed("CreateKey", EnableAutomaticRotation="fAlse") == {"enable_automatic_rotation": False}


@pytest.mark.parametrize("value", ["1", "yes", "true ", "tru"])
def test_other_booleans_are_refused(value: str) -> None:
    code, message = refused("CreateKey", {"EnableAutomaticRotation": value})
    assert (code, '"EnableAutomaticRotation"' in message) == ("InvalidParameter", True)


@pytest.mark.parametrize("value", ["1.0", " 1", "1_0", "0x1", "\u0661", "x", "+1", "-1", "0", "101", "9" * 40])
def test_integers_are_decimal_and_in_range(value: str) -> None:
    assert refused("ListKeys", {"PageSize": value})[0] == "InvalidParameter"


def test_integers() -> None:
    assert parsed("ListKeys", PageNumber="2", PageSize="100") == {"page_number": 2, "page_size": 100}
    assert parsed("GenerateDataKey", KeyId="k", NumberOfBytes="0")["number_of_bytes"] == 0
    for days in ("6", "367"):
        assert refused("ScheduleKeyDeletion", {"KeyId": "k", "PendingWindowInDays": days})[0] == "InvalidParameter"


def test_choices_are_exact() -> None:
    assert refused("CreateKey", {"ProtectionLevel": "hsm"})[0] == "InvalidParameter"
    assert refused("CreateKey", {"Origin": "aliyun_kms"})[0] == "InvalidParameter"


def test_strings_have_a_length() -> None:
    assert parsed("CreateKey", Description="é" * 8192)["description"] == "é" * 8192
    assert refused("CreateKey", {"Description": "x" * 8193})[0] == "InvalidParameter"
    assert refused("CreateKey", {"Description": "\udc80"})[0] == "InvalidParameter"


def test_a_plaintext_is_an_opaque_string() -> None:
    given = parsed("Encrypt", KeyId="k", Plaintext="not base64 é", EncryptionContext='{"a":"b"}')
    assert given == {
        "key_id": "k",
        "plaintext": "not base64 é".encode(),
        "content": ContentKind.TEXT,
        "encryption_context": {"a": "b"},
    }
    assert len(parsed("Encrypt", KeyId="k", Plaintext="x" * 8192)["plaintext"]) == 8192
    assert refused("Encrypt", {"KeyId": "k", "Plaintext": "x" * 8193})[0] == "InvalidParameter"
    assert refused("Encrypt", {"KeyId": "k", "Plaintext": "é" * 4097})[0] == "InvalidParameter"


@pytest.mark.parametrize("value", ["QQ", "QQ=", "QQ==\n", "Q Q=", "QR==", "Q_8=", "é", "=", "QQ==QQ=="])
def test_base64_is_strict_and_its_refusal_is_the_one_of_decrypt(value: str) -> None:
    assert refused("Decrypt", {"CiphertextBlob": value}) == (
        "InvalidParameter",
        'The specified parameter "CiphertextBlob" is not valid.',
    )


@given(st.binary(min_size=1))
def test_any_bytes_come_through_base64(data: bytes) -> None:
    assert parsed("Decrypt", CiphertextBlob=base64.b64encode(data).decode()) == {"ciphertext_blob": data}


@pytest.mark.parametrize("value", ["", "{}", " { } "])
def test_empty_contexts_are_equal_to_none(value: str) -> None:
    assert parsed("Encrypt", KeyId="k", Plaintext="x", EncryptionContext=value).get("encryption_context") is None


@pytest.mark.parametrize(
    "value",
    [
        "[]",
        '"a"',
        "null",
        '{"a":1}',
        '{"a":null}',
        '{"a":{"b":"c"}}',
        '{"a":["b"]}',
        '{"a":"b","a":"b"}',
        '{"a":"b"} x',
        '{"a":"b"}{}',
        '{"a":"b"',
        "{'a':'b'}",
        '{"a":"\\ud800"}',
        '{"\\udfff":"b"}',
        '{"a":NaN}',
        "[" * 5000,
        '{"a":"' + "x" * 8185 + '"}',
    ],
)
@pytest.mark.parametrize("name", ["SourceEncryptionContext", "DestinationEncryptionContext"])
def test_contexts_that_are_refused(name: str, value: str) -> None:
    code, message = refused("ReEncrypt", {"CiphertextBlob": "QQ==", "DestinationKeyId": "k", name: value})
    assert (code, f'"{name}"' in message) == ("InvalidParameter", True)


def test_a_context_of_8192_characters_is_accepted() -> None:
    value = '{"a":"' + "é" * 8184 + '"}'
    assert len(value) == 8192
    assert parsed("Decrypt", CiphertextBlob="QQ==", EncryptionContext=value)["encryption_context"] == {"a": "é" * 8184}


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")), min_size=1))
def test_any_context_comes_through(context: dict[str, str]) -> None:
    for text in (json.dumps(context), json.dumps(context, ensure_ascii=False, indent=1)):
        if len(text) <= 8192:
            assert parsed("Decrypt", CiphertextBlob="QQ==", EncryptionContext=text)["encryption_context"] == context


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("{}", "InvalidParameter"),
        ("[1]", "InvalidParameter"),
        ('[{"TagKey":"a","TagValue":"b","More":1}]', "InvalidParameter"),
        ('[{"TagValue":"b"}]', "InvalidParameter.TagKey"),
        ('[{"TagKey":1}]', "InvalidParameter.TagKey"),
        ('[{"TagKey":"a","TagValue":1}]', "InvalidParameter.TagValue"),
        ('[{"TagKey":"a"},{"TagKey":"a"}]', "Duplicate.TagKey"),
        ("[]", "MissingParameter"),
        (json.dumps([{"TagKey": str(n)} for n in range(21)]), "InvalidParameter"),
    ],
)
def test_tags_that_are_refused(value: str, code: str) -> None:
    assert refused("TagResource", {"KeyId": "k", "Tags": value})[0] == code


def test_tag_keys_as_json_or_between_commas() -> None:
    for value in ('["a","b c"]', "a,b c", "a, b c"):
        assert parsed("UntagResource", KeyId="k", TagKeys=value)["tag_keys"] == ["a", "b c"]
    assert refused("UntagResource", {"KeyId": "k", "TagKeys": '["a"'})[0] == "InvalidParameter"
    assert refused("UntagResource", {"KeyId": "k", "TagKeys": "[1]"})[0] == "InvalidParameter"


def test_filters() -> None:
    value = '[{"Key":"KeyState","Values":["Enabled"]},{"Key":"KeyId","Values":["k"]},{"Key":"KeyState","Values":["Disabled"]}]'
    assert parsed("ListKeys", Filters=value)["filters"] == {"KeyState": ["Enabled", "Disabled"], "keyId": ["k"]}


@pytest.mark.parametrize(
    "value",
    [
        "{}",
        '[{"Key":"KeyState"}]',
        '[{"Key":"KeyState","Values":"Enabled"}]',
        '[{"Key":1,"Values":[]}]',
        '[{"Key":"a","Values":["b"],"More":1}]',
        '[{"Key":"TagKey","Values":["\\ud800"]}]',
        json.dumps([{"Key": "KeyState", "Values": ["Enabled"]}] * 11),
    ],
)
def test_filters_that_are_refused(value: str) -> None:
    code, message = refused("ListKeys", {"Filters": value})
    assert (code, '"Filters"' in message) == ("InvalidParameter", True)


def test_numbered_values_come_in_the_order_of_their_numbers() -> None:
    given = {"ResourceId.10": "c", "ResourceId.2": "b", "ResourceId.1": "a", "Tag.2.Key": "y", "Tag.1.Key": "x", "Tag.1.Value": "1"}
    found = arguments(OPERATIONS["TagResources"], {**MINIMAL, **given})
    assert (found["resource_id"], found["tag"]) == (["a", "b", "c"], {"x": "1", "y": ""})
    found = arguments(OPERATIONS["ListTagResources"], {**MINIMAL, **given, "Tag.2.Value": ""})
    assert found["tag"] == {"x": "1", "y": ""}
    assert arguments(OPERATIONS["ListTagResources"], {**MINIMAL, "Tag.1.Key": "x"})["tag"] == {"x": None}
    assert arguments(OPERATIONS["UntagResources"], {**MINIMAL, "ResourceId.1": "a", "TagKey.1": "t", "All": "true"}) == {
        "resource_type": "key",
        "region_id": "cn-local",
        "resource_id": ["a"],
        "tag_key": ["t"],
        "all": True,
    }


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"Tag.1.Key": "a", **{f"ResourceId.{n}": "k" for n in range(1, 52)}}, "InvalidParameter"),
        ({"ResourceId.1": "k", **{f"Tag.{n}.Key": str(n) for n in range(1, 22)}}, "InvalidParameter"),
        ({"ResourceId.1": "k", "Tag.1.Key": "a", "Tag.2.Key": "a"}, "Duplicate.TagKey"),
        ({"ResourceId.1": "k", "Tag.1.Value": "a"}, "InvalidParameter.TagKey"),
        ({"ResourceId.1": "", "Tag.1.Key": "a"}, "MissingParameter"),
    ],
)
def test_numbered_values_that_are_refused(params: dict[str, str], code: str) -> None:
    assert refused("TagResources", {**MINIMAL, **params})[0] == code


def test_batches() -> None:
    assert parsed("EncryptBatch", KeyId="k", Plaintexts='["QQ==",""]')["plaintexts"] == [b"A", b""]
    assert refused("EncryptBatch", {"KeyId": "k", "Plaintexts": '["Q"]'})[0] == "InvalidParameter"
    assert refused("EncryptBatch", {"KeyId": "k", "Plaintexts": "[]"})[0] == "MissingParameter"
    assert refused("DecryptBatch", {"CiphertextBlobs": json.dumps(["QQ=="] * 1001)})[0] == "InvalidParameter"


def test_an_operation_that_is_not_offered() -> None:
    for name in ("Nope", "createkey", "", "__init__", "x" * 100_000):
        with pytest.raises(KmsError) as caught:
            find(name)
        assert (caught.value.code, caught.value.status) == ("InvalidApi.NotFound", 404)
        assert len(caught.value.message) < 200
    with pytest.raises(KmsError) as caught:
        find("GetSecretValue")
    assert (caught.value.code, caught.value.status) == ("UnsupportedOperation", 400)


class Recorder:
    """Answers every call with None and remembers it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.asked: list[tuple[Any, str]] = []

    @contextmanager
    def acting(self, caller: Any, request_id: str, operation: str) -> Iterator[None]:
        self.asked.append((caller, request_id))
        yield

    def rehearse(self, operation: str, arguments: dict[str, Any]) -> None:
        self.calls.append(("rehearse", arguments))

    def authorise(self, caller: Any, action: str, **named: Any) -> dict[str, str]:
        self.calls.append((action, {name: list(value) if name != "collection" else value for name, value in named.items() if value}))
        if caller == "nobody":
            raise KmsError("Forbidden.NoPermission", "no")
        return {reference: f"id of {reference}" for reference in named["keys"]}

    def __getattr__(self, name: str) -> Any:
        return lambda **keywords: self.calls.append((name, keywords))


def test_invoke_calls_the_method_and_adds_a_request_id() -> None:
    engine = Recorder()
    answer = invoke(engine, "DisableKey", {"KeyId": "k"})
    assert engine.calls == [("disable_key", {"key_id": "k"})]
    assert list(answer) == ["RequestId"]
    assert len(answer["RequestId"]) == 36
    assert answer != invoke(engine, "DisableKey", {"KeyId": "k"})
    assert invoke(engine, "DisableKey", {"KeyId": "k"}, "an id of the door's") == {"RequestId": "an id of the door's"}
    assert engine.asked[-1] == (None, "an id of the door's")  # known before the call, for its events


@pytest.mark.parametrize(
    ("name", "params", "action", "named", "given"),
    [
        ("ListKeys", {}, "kms:ListKeys", {"collection": "key"}, {}),
        ("DescribeRegions", {}, "kms:DescribeRegions", {"collection": "*"}, {}),
        ("DescribeKey", {"KeyId": "alias/a"}, "kms:DescribeKey", {"keys": ["alias/a"]}, {"key_id": "id of alias/a"}),
        ("DisableKey", {"KeyId": "k"}, "kms:DisableKey", {"keys": ["k"]}, {"key_id": "k"}),
        ("DisableKey", {"KeyId": "alias/a"}, "kms:DisableKey", {}, {"key_id": "alias/a"}),  # the engine refuses an alias here
        ("RotateKey", {"KeyId": "k"}, "kms:CreateKeyVersion", {"keys": ["k"]}, {"key_id": "id of k"}),
        ("Decrypt", {"CiphertextBlob": "QQ=="}, "kms:Decrypt", {"blobs": [b"A"]}, {"ciphertext_blob": b"A"}),
        (
            "DecryptBatch",
            {"CiphertextBlobs": '["QQ==","Qg=="]'},
            "kms:Decrypt",
            {"blobs": [b"A", b"B"]},
            {"ciphertext_blobs": [b"A", b"B"]},
        ),
        (
            "ReEncrypt",
            {"CiphertextBlob": "QQ==", "DestinationKeyId": "d"},
            "kms:ReEncrypt",
            {"keys": ["d"], "blobs": [b"A"]},
            {"ciphertext_blob": b"A", "destination_key_id": "id of d"},
        ),
        (
            "UpdateAlias",
            {"KeyId": "k", "AliasName": "alias/a"},
            "kms:UpdateAlias",
            {"keys": ["k"], "aliases": ["alias/a"]},
            {"key_id": "k", "alias_name": "alias/a"},
        ),
        (
            "TagResources",
            {"ResourceType": "key", "ResourceId.1": "k", "ResourceId.2": "l", "Tag.1.Key": "a", "RegionId": "r"},
            "kms:TagResources",
            {"keys": ["k", "l"]},
            {"resource_type": "key", "resource_id": ["k", "l"], "tag": {"a": ""}, "region_id": "r"},
        ),
    ],
)
def test_a_caller_is_judged_on_what_the_call_names(
    name: str, params: dict[str, str], action: str, named: dict[str, Any], given: dict[str, Any]
) -> None:
    class Answering(Recorder):
        def __getattr__(self, method: str) -> Any:
            super().__getattr__(method)
            return lambda **keywords: self.calls.append((method, keywords)) or raising(KmsError("InternalFailure", "enough"))

    engine = Answering()
    with pytest.raises(KmsError):
        invoke(engine, name, params, "r", "ann")
    judged, called = engine.calls
    assert judged == (action, {"collection": "*", **named})
    assert called[1] == given
    with pytest.raises(KmsError) as refused:
        invoke(engine, name, params, "r", "nobody")
    assert refused.value.code == "Forbidden.NoPermission"
    assert len(engine.calls) == 3  # it was judged, and not called


def raising(error: KmsError) -> None:
    raise error


@pytest.mark.parametrize(
    ("params", "caller", "code"),
    [
        ({"KeyId": "k", "Plaintext": "x"}, None, "DryRunOperationError"),
        ({"KeyId": "k", "Plaintext": "x"}, "ann", "DryRunOperationError"),
        ({"KeyId": "k", "Plaintext": "x"}, "nobody", "AccessDeniedError"),
        ({"KeyId": "k"}, "ann", "ValidationError"),
    ],
)
def test_a_dry_run_does_nothing_and_says_what_would_be(params: dict[str, str], caller: Any, code: str) -> None:
    engine = Recorder()
    with pytest.raises(KmsError) as refused:
        invoke(engine, "Encrypt", {**params, "DryRun": "True"}, "r", caller)
    assert refused.value.code == code
    assert "encrypt" not in [method for method, _ in engine.calls]


def test_a_map_may_come_as_one_parameter_for_each_entry() -> None:
    """As the old package for Node.js sends it."""
    given = parsed(
        "Encrypt", KeyId="k", Plaintext="x", **{"EncryptionContext.a.b": "1", "EncryptionContext.é ": "", "EncryptionContext.": "2"}
    )
    assert given["encryption_context"] == {"a.b": "1", "é ": "", "": "2"}
    assert (
        refused("Encrypt", {"KeyId": "k", "Plaintext": "x", "EncryptionContext": "{}", "EncryptionContext.a": "b"})[0] == "InvalidParameter"
    )
    assert refused("Encrypt", {"KeyId": "k", "Plaintext": "x", "EncryptionContext.a": "b" * 8192})[0] == "InvalidParameter"
    assert refused("DescribeKey", {"KeyId": "k", "EncryptionContext.a": "b"})[0] == "InvalidParameter"


def test_nothing_is_called_when_a_parameter_is_wrong() -> None:
    engine = Recorder()
    with pytest.raises(KmsError):
        invoke(engine, "DisableKey", {"KeyId": "k", "Nope": "x"})
    assert engine.calls == []
