"""The `kms` command on a real home with a real token: what it prints, how it ends."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from command import KMS, ROOT, Command

from kmscore.operations import OPERATIONS

DESCRIBED = set(
    "Arn AutomaticRotation CreationDate Creator DeleteDate DeletionProtection Description KeyId KeySpec KeyState KeyUsage"
    " LastRotationDate MaterialExpireTime Origin PrimaryKeyVersion ProtectionLevel".split()
)


def test_create_and_describe(kms: Command) -> None:
    created = kms.json("CreateKey", "--ProtectionLevel", "HSM", "--Description", "Key1 in Managed HSM")["KeyMetadata"]
    assert re.fullmatch(r"key-[a-z0-9]+", created["KeyId"])
    assert set(created) == DESCRIBED - {"DeletionProtection"}
    described = kms.json("DescribeKey", f"--KeyId={created['KeyId']}")["KeyMetadata"]
    assert set(described) == DESCRIBED
    assert described | created == described
    assert (described["ProtectionLevel"], described["KeyState"], described["Description"]) == ("HSM", "Enabled", "Key1 in Managed HSM")
    assert (described["DeleteDate"], described["MaterialExpireTime"]) == ("", "")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", described["CreationDate"])


def test_output_is_indented_sorted_utf_8_whatever_the_locale(kms: Command) -> None:
    elsewhere = Command(kms.home, {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1"})
    text = elsewhere.text("CreateKey", "--Description", "Schlüssel €")
    answer = json.loads(text)
    assert text == json.dumps(answer, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
    assert answer["KeyMetadata"]["Description"] == "Schlüssel €"


def test_errors_are_one_line_with_the_code(kms: Command) -> None:
    assert kms.refused("DescribeKey", "--KeyId", "key-nope") == "Forbidden.KeyNotFound: The specified Key is not found."
    assert kms.refused("DescribeKey") == 'MissingParameter: The parameter "KeyId" is needed but not provided.'
    assert kms.code("DescribeKey", "--KeyId", "alias/nope") == "Forbidden.AliasNotFound"
    assert kms.code("DisableKey", "--KeyId", "alias/nope") == "Unsupported.Alias"
    assert kms.code("CreateKey", "--ProtectionLevel", "hsm") == "InvalidParameter"
    assert kms.code("CreateKey", "--Policy", "{}") == "InvalidParameter"
    assert kms.code("CreateKey", "--EnableAutomaticRotation", "true") == "MissingParameter"
    assert kms.code("Decrypt", "--CiphertextBlob", "AAAA") == "InvalidParameter"
    assert kms.code("history", "key-nope") == "Forbidden.KeyNotFound"


@pytest.mark.parametrize(
    "arguments", [["Nope"], ["createkey"], ["CreateKey", "--Nope", "x"], ["CreateKey", "more"], ["rotate"], ["CreateKey", "--Description"]]
)
def test_wrong_usage_ends_with_2(kms: Command, arguments: list[str]) -> None:
    done = kms.run(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Error: " in done.stderr


def test_a_command_in_the_wrong_case_is_suggested(kms: Command) -> None:
    assert b"Did you mean CreateKey?" in kms.run("createkey").stderr


def test_text_comes_back_as_it_was_and_data_keys_in_base64(kms: Command, key: str) -> None:
    kms.json("CreateAlias", "--KeyId", key, "--AliasName", f"alias/{key}")
    sealed = kms.json("Encrypt", "--KeyId", f"alias/{key}", "--Plaintext", "not base64 é", "--EncryptionContext", '{"ab":"c"}')
    assert sealed["KeyId"] == key
    blob = sealed["CiphertextBlob"]
    opened = kms.json("Decrypt", "--CiphertextBlob", blob, "--EncryptionContext", ' {"ab" : "c"} ')
    assert opened == {"KeyId": key, "KeyVersionId": sealed["KeyVersionId"], "Plaintext": "not base64 é"}
    wrong = {kms.refused("Decrypt", "--CiphertextBlob", blob, "--EncryptionContext", c) for c in ('{"a":"bc"}', "", "{}")}
    assert wrong == {'InvalidParameter: The specified parameter "CiphertextBlob" is not valid.'}

    data_key = kms.json("GenerateDataKey", "--KeyId", key, "--KeySpec", "AES_128")
    assert len(data_key["Plaintext"]) == 24
    assert kms.json("Decrypt", "--CiphertextBlob", data_key["CiphertextBlob"])["Plaintext"] == data_key["Plaintext"]
    assert "Plaintext" not in kms.json("GenerateDataKeyWithoutPlaintext", "--KeyId", key)

    batch = kms.json("EncryptBatch", "--KeyId", key, "--Plaintexts", '["QQ==","/w=="]')["CiphertextBlobs"]
    assert kms.json("DecryptBatch", "--CiphertextBlobs", json.dumps(batch)) == {"Plaintexts": ["QQ==", "/w=="]}


def test_rotation_and_versions(kms: Command, key: str) -> None:
    blob = kms.json("Encrypt", "--KeyId", key, "--Plaintext", "x")["CiphertextBlob"]
    rotated = kms.json("rotate", key)["KeyVersion"]
    listed = kms.json("ListKeyVersions", "--KeyId", key)
    assert (listed["TotalCount"], listed["KeyVersions"]["KeyVersion"][1]) == (2, rotated)
    assert kms.json("DescribeKeyVersion", "--KeyId", key, "--KeyVersionId", rotated["KeyVersionId"]) == {"KeyVersion": rotated}
    assert kms.json("DescribeKey", "--KeyId", key)["KeyMetadata"]["PrimaryKeyVersion"] == rotated["KeyVersionId"]
    assert kms.json("Decrypt", "--CiphertextBlob", blob)["Plaintext"] == "x"
    moved = kms.json("ReEncrypt", "--CiphertextBlob", blob, "--DestinationKeyId", key)["CiphertextBlob"]
    assert kms.json("Decrypt", "--CiphertextBlob", moved)["KeyVersionId"] == rotated["KeyVersionId"]
    assert kms.code("CreateKeyVersion", "--KeyId", key) == "Rejected.UnsupportedOperation"  # within seven days


def test_tags_of_several_keys(kms: Command, key: str) -> None:
    other = kms.json("CreateKey", "--Tags", '[{"TagKey":"team","TagValue":"a"}]')["KeyMetadata"]["KeyId"]
    both = ["--ResourceType", "key", "--ResourceId.1", key, "--ResourceId.2", other]
    kms.json("TagResources", *both, "--Tag.1.Key", "env", "--Tag.1.Value", "prod", "--Tag.2.Key", "bare")
    rows = kms.json("ListTagResources", *both)["TagResources"]["TagResource"]
    assert {(row["ResourceId"], row["TagKey"], row["TagValue"]) for row in rows} == {
        (key, "env", "prod"),
        (key, "bare", ""),
        (other, "env", "prod"),
        (other, "bare", ""),
        (other, "team", "a"),
    }
    kms.json("UntagResource", "--KeyId", key, "--TagKeys", "env,bare")
    assert kms.json("ListResourceTags", "--KeyId", key) == {"Tags": {"Tag": []}}
    filters = '[{"Key":"TagKey","Values":["team"]}]'
    assert kms.json("ListKeys", "--Filters", filters)["Keys"]["Key"][0]["KeyId"] == other


def test_a_whole_life_in_a_moment(fresh: Command) -> None:
    start = datetime(2030, 1, 1, tzinfo=UTC)
    fresh.set_clock(start)
    made = fresh.run("CreateKey", "--ProtectionLevel", "HSM", "--EnableAutomaticRotation", "true", "--RotationInterval", "7d")
    assert made.stderr.decode() == f"made a new home at {fresh.home}\n"
    shown = json.loads(made.stdout)["KeyMetadata"]
    assert (shown["CreationDate"], shown["NextRotationDate"], shown["RotationInterval"]) == (
        "2030-01-01T00:00:00Z",
        "2030-01-08T00:00:00Z",
        "604800s",
    )
    key = shown["KeyId"]
    blob = fresh.json("Encrypt", "--KeyId", key, "--Plaintext", "x")["CiphertextBlob"]

    assert fresh.text("tick") == "nothing is due\n"
    fresh.set_clock(start + timedelta(days=7))
    assert fresh.text("tick") == f"rotated {key}\n"
    assert fresh.json("Decrypt", "--CiphertextBlob", blob)["Plaintext"] == "x"

    fresh.json("DisableKey", "--KeyId", key)
    assert fresh.refused("Encrypt", "--KeyId", key, "--Plaintext", "x").startswith("Rejected.Disabled: ")
    fresh.json("ScheduleKeyDeletion", "--KeyId", key, "--PendingWindowInDays", "7")
    assert fresh.json("DescribeKey", "--KeyId", key)["KeyMetadata"]["DeleteDate"] == "2030-01-15T00:00:00Z"
    fresh.set_clock(start + timedelta(days=14))
    assert fresh.text("tick") == f"destroyed {key}\n"
    assert fresh.code("DescribeKey", "--KeyId", key) == "Forbidden.KeyNotFound"
    assert fresh.code("Decrypt", "--CiphertextBlob", blob) == "Forbidden.KeyNotFound"
    assert fresh.json("ListKeys")["TotalCount"] == 0
    assert fresh.text("reconcile") == "token, store and events agree\n"

    lines = fresh.text("history", key).splitlines()
    assert [line.split()[1] for line in lines if not line.split()[1].startswith("Material")] == [
        "KeyCreated",
        "KeyDisabled",
        "DeletionScheduled",
        "DestructionStarted",
        "KeyDestroyed",
    ]
    assert lines[0].startswith("2030-01-01T00:00:00Z  KeyCreated")
    assert lines[-1].startswith("2030-01-15T00:00:00Z  KeyDestroyed")


def test_without_a_token(fresh: Command) -> None:
    fresh.settings["KMS_PKCS11_MODULE"] = ""
    assert fresh.run("CreateKey").returncode == 0
    assert fresh.code("CreateKey", "--ProtectionLevel", "HSM") == "Unsupported.ProtectionLevel"


def test_home_may_stand_before_the_command_or_after_it(kms: Command, fresh: Command) -> None:
    there = kms.json("ListKeys")["TotalCount"]
    assert fresh.json("--home", kms.home, "ListKeys")["TotalCount"] == there
    assert fresh.json("ListKeys", "--home", kms.home)["TotalCount"] == there
    assert not fresh.home.exists()


def test_a_home_that_cannot_be_made(fresh: Command) -> None:
    fresh.home.write_text("a file")
    assert fresh.code("ListKeys") == "InternalFailure"
    (fresh.home.parent / "kms.toml").write_text("")
    assert fresh.code("ListKeys", "--home", fresh.home / "below") == "InternalFailure"


@pytest.mark.sqlite
def test_doctor(kms: Command, fresh: Command) -> None:
    done = fresh.run("doctor")
    assert (done.returncode, fresh.home.exists()) == (1, False)
    assert b"there is no home" in done.stdout

    report = kms.text("doctor")
    assert re.search(r"^ok    module .*softhsm", report, re.MULTILINE)
    assert report.splitlines()[-1].endswith(" 0 wrong, 0 to look at") or "warn" in report
    (kms.home / "pin").chmod(0o644)
    try:
        done = kms.run("doctor")
        assert done.returncode == 1
        assert re.search(rf"^fail  {kms.home}/pin has mode 0644.*\n      -> chmod go-rwx", done.stdout.decode(), re.MULTILINE)
    finally:
        (kms.home / "pin").chmod(0o600)


def test_a_reader_that_goes_away_is_no_fault(kms: Command) -> None:
    child = kms.start("ListKeys", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.close()
    assert child.communicate()[1] == b""


def test_help_names_every_operation_and_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-X", "importtime", *KMS[1:], "--help"], cwd=ROOT, capture_output=True, timeout=60, check=True)
    for name in OPERATIONS:
        assert re.search(rf"^  {name} ", done.stdout.decode(), re.MULTILINE)
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.decode().splitlines()}
    assert "click" in imported
    roots = {name.split(".")[0] for name in imported}
    assert not roots & {"tink", "uvicorn", "starlette", "pkcs11", "eventsourcing", "cryptography", "sqlite3", "asyncio"}
    assert "kmscore.custody._p11" not in imported
