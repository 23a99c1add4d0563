"""The table of operations: against the engine's methods, and against the facts of the API where they lie beside the project."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from kmscore.engine.kms import Kms
from kmscore.operations import GROUPS, OPERATIONS, UNOFFERED, Kind, reference
from kmscore.operations.kinds import REPEATED

FACTS = Path(__file__).resolve().parents[3] / "shared" / "api" / "operations.json"
API = Path(__file__).resolve().parents[2] / "docs" / "API.md"
# Where the table says something else than the facts do, and why that is right.
REQUIRED_HERE = {
    ("TagResource", "KeyId"): "the facts take a secret or a certificate in its place",
    ("UntagResource", "KeyId"): "the same",
    ("ImportKeyMaterial", "KeyMaterialExpireUnix"): "the facts say themselves that it may be absent (DECISIONS 19)",
}
BOUNDS_HERE = {"NumberOfBytes"}  # 0 is as if absent
WIDER_CURVES = {"ECDSA_SHA_384", "ECDSA_SHA_512"}
WIDER_RSA = {"RSA_3072", "RSA_4096"}
# Choices that the facts do not have: each is an extension that docs/API.md names.
MORE_CHOICES = {
    ("CreateKey", "KeySpec"): {"EC_P384", "EC_P521", "HMAC_256", "HMAC_384", "HMAC_512"},
    ("CreateKey", "KeyUsage"): {"GENERATE_VERIFY_MAC"},
    ("AsymmetricSign", "Algorithm"): WIDER_CURVES,
    ("AsymmetricVerify", "Algorithm"): WIDER_CURVES,
    ("GetParametersForImport", "WrappingAlgorithm"): {"RSA_AES_KEY_WRAP_SHA_1", "RSA_AES_KEY_WRAP_SHA_256"},
    ("GetParametersForImport", "WrappingKeySpec"): WIDER_RSA,
    ("ExportDataKey", "WrappingKeySpec"): WIDER_RSA,
    ("GenerateAndExportDataKey", "WrappingKeySpec"): WIDER_RSA,
}


def test_the_operations() -> None:
    assert set(OPERATIONS) == set(
        "CreateKey DescribeKey ListKeys UpdateKeyDescription EnableKey DisableKey ScheduleKeyDeletion CancelKeyDeletion"
        " SetDeletionProtection CreateKeyVersion DescribeKeyVersion ListKeyVersions UpdateRotationPolicy RotateKey"
        " UpdateExtendedRotationPolicy GetParametersForImport ImportKeyMaterial ImportNextKeyMaterial DeleteKeyMaterial CreateAlias"
        " UpdateAlias DeleteAlias ListAliases ListAliasesByKeyId TagResource UntagResource ListResourceTags TagResources"
        " UntagResources ListTagResources Encrypt Decrypt ReEncrypt GenerateDataKey GenerateDataKeyWithoutPlaintext ExportDataKey"
        " GenerateAndExportDataKey EncryptBatch DecryptBatch AsymmetricSign AsymmetricVerify AsymmetricEncrypt AsymmetricDecrypt"
        " GetPublicKey GenerateMac VerifyMac GetKeyPolicy SetKeyPolicy DescribeRegions DescribeAccountKmsStatus OpenKmsService"
        " ListKmsInstances GetKmsInstance GetDefaultKmsInstance".split()
    )
    assert {o.name for o in OPERATIONS.values() if o.extension} == set(
        "RotateKey UpdateExtendedRotationPolicy ImportNextKeyMaterial EncryptBatch DecryptBatch".split()
    )
    assert {o.group for o in OPERATIONS.values()} == set(GROUPS)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_engine_takes_what_the_table_offers(name: str) -> None:
    operation = OPERATIONS[name]
    takes = set(inspect.signature(getattr(Kms, operation.method)).parameters) - {"self"}
    gives = {param.argument for param in operation.params if param.kind not in (Kind.UNOFFERED, Kind.DRY_RUN)}
    gives |= set(operation.fixed)
    assert gives == takes


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_parameter_is_told_in_a_sentence(name: str) -> None:
    for text in (OPERATIONS[name].help, *(param.help for param in OPERATIONS[name].params)):
        assert text
        assert text[-1] in ".}]", text
    assert len({param.name for param in OPERATIONS[name].params}) == len(OPERATIONS[name].params)


def test_the_documents_are_what_the_table_says() -> None:
    """Made again by: python -m kmscore.operations.reference."""
    assert API.read_text() == reference.with_tables(API.read_text())
    assert json.loads(API.with_name("openapi.json").read_text()) == json.loads(json.dumps(reference.openapi()))


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_document_has_a_row_for_it_with_its_parameters(name: str) -> None:
    rows = [line for line in API.read_text().splitlines() if line.startswith((f"| `{name}` ", f"| **`{name}`** "))]
    assert len(rows) == 1
    assert rows[0].startswith("| **") is OPERATIONS[name].extension
    told: dict[str, bool] = {}
    for item in filter(None, rows[0].split("|")[2].strip().split(", ")):
        parameter = item.rstrip("*").split(".")[0]
        told[parameter] = told.get(parameter, False) or item.endswith("*")
    assert told == {param.name: param.required for param in OPERATIONS[name].params if param.kind is not Kind.UNOFFERED}


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    if not FACTS.exists():
        pytest.skip("the facts of the API are not beside the project")
    return {operation["name"]: operation for operation in json.loads(FACTS.read_text())["operations"]}


def test_every_operation_of_the_groups_is_there(facts: dict[str, Any]) -> None:
    documented = {name for name, fact in facts.items() if fact["group"] in GROUPS} - {"GetSecretPolicy", "SetSecretPolicy"}
    assert len(documented) == 49
    assert documented == {o.name for o in OPERATIONS.values() if not o.extension}
    excluded = json.loads(FACTS.read_text())["_about"]["excluded_operations"]["names"]
    assert set(UNOFFERED) == (set(facts) | set(excluded)) - documented
    assert all(facts[o.name]["group"] == o.group for o in OPERATIONS.values() if not o.extension)


@pytest.mark.parametrize("name", [o.name for o in OPERATIONS.values() if not o.extension])
def test_parameters_are_those_of_the_facts(facts: dict[str, Any], name: str) -> None:
    documented = {fact["name"]: fact for fact in facts[name]["parameters"]}
    assert {param.name for param in OPERATIONS[name].params} == set(documented)
    for param in OPERATIONS[name].params:
        fact = documented[param.name]
        if (name, param.name) not in REQUIRED_HERE:
            assert param.required is fact["required"], param.name
        if param.kind is Kind.UNOFFERED:
            assert param.default == str(fact.get("default", ""))
            continue
        if param.name not in BOUNDS_HERE and fact["type"] == "Integer" and name != "ListKmsInstances":  # a note tells its bounds
            assert (param.minimum, param.maximum) == (fact.get("minimum"), fact.get("maximum")), param.name
        if "enum" in fact and param.choices:
            assert set(param.choices) - set(fact["enum"]) == MORE_CHOICES.get((name, param.name), set()), param.name
        assert (fact["type"] == "RepeatList") is (param.kind in REPEATED)
        assert (fact["type"] == "Boolean") is (param.kind is Kind.BOOLEAN)
        assert (fact["type"] in ("Integer", "Long")) is (param.kind is Kind.INTEGER)
        for limit in ("max_chars", "max_items", "max_items_doc", "max_length_characters"):
            if limit in fact:
                assert param.maximum == fact[limit], param.name
