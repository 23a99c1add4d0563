"""Key material of one's own over the command line: `kms import-key`, and the commands it explains, run in a shell with openssl."""

from __future__ import annotations

import secrets
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from command import ROOT, Command, slow

# Within one process both levels are tested in tests/integration; here level SOFTWARE waits for make test-full.
LEVELS = (pytest.param("SOFTWARE", marks=pytest.mark.slow), "HSM")


def openssl(*arguments: str | Path) -> bytes:
    return subprocess.run(["openssl", *map(str, arguments)], capture_output=True, check=True, timeout=60).stdout


def external(kms: Command, level: str, spec: str = "Aliyun_AES_256", *more: str) -> str:
    described = kms.json("CreateKey", "--Origin", "EXTERNAL", "--ProtectionLevel", level, "--KeySpec", spec, *more)["KeyMetadata"]
    assert described["KeyState"] == "PendingImport"
    assert "PrimaryKeyVersion" not in described
    return str(described["KeyId"])


def state(kms: Command, key: str) -> str:
    return str(kms.json("DescribeKey", "--KeyId", key)["KeyMetadata"]["KeyState"])


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "material.bin"
    path.write_bytes(secrets.token_bytes(32))
    return path


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pems")
    rsa, curve = folder / "rsa key.pem", folder / "curve.pem"
    openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", rsa)
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-out", curve)
    return {"RSA_2048": rsa, "EC_P256": curve}


@pytest.mark.parametrize("level", [slow("SOFTWARE"), "HSM"])
def test_32_bytes_become_a_key_and_again_after_they_were_deleted(kms: Command, raw: Path, tmp_path: Path, level: str) -> None:
    key = external(kms, level)
    kms.json("CreateAlias", "--KeyId", key, "--AliasName", f"alias/{key}")
    assert kms.code("Encrypt", "--KeyId", key, "--Plaintext", "x") == "Rejected.PendingImport"
    first, *more = kms.text("import-key", f"alias/{key}", "--file", raw).splitlines()
    assert first.startswith(f"imported Aliyun_AES_256 material into {key}, wrapped with RSAES_OAEP_SHA_")
    assert more == ["key state  Enabled", "expires    never"]
    described = kms.json("DescribeKey", "--KeyId", key)["KeyMetadata"]
    assert (described["Origin"], described["MaterialExpireTime"]) == ("EXTERNAL", "")
    sealed = kms.json("Encrypt", "--KeyId", key, "--Plaintext", "x")
    assert sealed["KeyVersionId"] == described["PrimaryKeyVersion"]

    kms.json("DeleteKeyMaterial", "--KeyId", key)
    assert state(kms, key) == "PendingImport"
    assert kms.code("Decrypt", "--CiphertextBlob", sealed["CiphertextBlob"]) == "Rejected.PendingImport"
    other = tmp_path / "other"
    other.write_bytes(secrets.token_bytes(32))
    assert kms.refused("import-key", key, "--file", other) == "InvalidKeyMaterial: The key material is not valid."
    kms.text("import-key", key, "--file", raw, "--wrapping-algorithm", "RSA_AES_KEY_WRAP_SHA_1")
    assert kms.json("Decrypt", "--CiphertextBlob", sealed["CiphertextBlob"])["Plaintext"] == "x"


def test_what_the_token_can_unwrap_itself_does_not_pass_through_this_process(kms: Command, raw: Path) -> None:
    lenient = Command(kms.home, {"KMS_ALLOW_HOST_UNWRAP": "true"})
    key = external(kms, "HSM")
    assert "wrapped with RSAES_OAEP_SHA_1\n" in lenient.text("import-key", key, "--file", raw)


@pytest.mark.parametrize(
    ("level", "spec"), [slow("HSM", "RSA_2048"), ("HSM", "EC_P256"), ("SOFTWARE", "RSA_2048"), slow("SOFTWARE", "EC_P256")]
)
def test_a_private_key_becomes_a_key_with_its_public_half(kms: Command, pems: dict[str, Path], level: str, spec: str) -> None:
    key = external(kms, level, spec)
    first, *more = kms.text("import-key", key, "--file", pems[spec]).splitlines()
    assert first.startswith(f"imported {spec} material into {key}, wrapped with RSA_AES_KEY_WRAP_SHA_")
    assert more == ["key state  Enabled", "expires    never"]
    (version,) = kms.json("ListKeyVersions", "--KeyId", key)["KeyVersions"]["KeyVersion"]
    pem = kms.json("GetPublicKey", "--KeyId", key, "--KeyVersionId", version["KeyVersionId"])["PublicKey"]
    assert pem.encode() == openssl("pkey", "-in", pems[spec], "-pubout")


@pytest.mark.parametrize(
    ("level", "spec"),
    [
        ("HSM", "Aliyun_AES_256"),
        slow("HSM", "RSA_2048"),
        slow("HSM", "EC_P256"),
        slow("SOFTWARE", "Aliyun_AES_256"),
        ("SOFTWARE", "RSA_2048"),
        slow("SOFTWARE", "EC_P256"),
    ],
)
def test_the_explained_commands_do_it_by_hand(kms: Command, raw: Path, pems: dict[str, Path], level: str, spec: str) -> None:
    key = external(kms, level, spec)
    file = pems.get(spec, raw)
    commands = kms.text("import-key", key, "--file", file, "--expires", "9999-12-31T23:59:59Z", "--explain")
    assert f"kms --home {kms.home} GetParametersForImport --KeyId {key} " in commands
    assert "--KeyMaterialExpireUnix 253402300799 " in commands
    assert state(kms, key) == "PendingImport"

    program = f"kms() {{ '{sys.executable}' -m kmscore.cli \"$@\"; }}\n"
    done = subprocess.run(["sh"], input=(program + commands).encode(), cwd=ROOT, env=kms.environment, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    described = kms.json("DescribeKey", "--KeyId", key)["KeyMetadata"]
    assert (described["KeyState"], described["MaterialExpireTime"]) == ("Enabled", "9999-12-31T23:59:59Z")
    # The same material, by the other way.
    kms.text("import-key", key, "--file", file)


@pytest.mark.parametrize("level", [slow("SOFTWARE"), "HSM"])
def test_material_expires_and_its_key_waits_for_it_again(fresh: Command, raw: Path, level: str) -> None:
    start = datetime(2030, 1, 1, tzinfo=UTC)
    fresh.set_clock(start)
    fresh.run("ListKeys")
    key = external(fresh, level)
    said = fresh.text("import-key", key, "--file", raw, "--expires", "90d")
    assert said.endswith("\nkey state  Enabled\nexpires    2030-04-01T00:00:00Z\n")
    assert fresh.json("DescribeKey", "--KeyId", key)["KeyMetadata"]["MaterialExpireTime"] == "2030-04-01T00:00:00Z"
    blob = fresh.json("Encrypt", "--KeyId", key, "--Plaintext", "x")["CiphertextBlob"]
    said = fresh.text("import-key", key, "--file", raw, "--expires", "2030-05-01")  # a new end
    assert said.endswith("expires    2030-05-01T00:00:00Z\n")

    fresh.set_clock(datetime(2030, 4, 30, 23, 59, 59, tzinfo=UTC))
    assert fresh.json("Decrypt", "--CiphertextBlob", blob)["Plaintext"] == "x"
    fresh.set_clock(datetime(2030, 5, 1, tzinfo=UTC))
    assert fresh.code("Decrypt", "--CiphertextBlob", blob) == "Rejected.PendingImport"
    assert f"expired {key}" in fresh.text("tick").splitlines()
    assert fresh.text("tick") == "nothing is due\n"
    assert state(fresh, key) == "PendingImport"
    fresh.text("import-key", key, "--file", raw)
    assert fresh.json("Decrypt", "--CiphertextBlob", blob)["Plaintext"] == "x"


@pytest.mark.parametrize("level", ["SOFTWARE", slow("HSM")])
def test_the_next_material_becomes_primary_at_its_date(fresh: Command, raw: Path, tmp_path: Path, level: str) -> None:
    start = datetime(2030, 1, 1, tzinfo=UTC)
    fresh.set_clock(start)
    fresh.run("ListKeys")
    key = external(fresh, level)
    fresh.text("import-key", key, "--file", raw)
    old = fresh.json("Encrypt", "--KeyId", key, "--Plaintext", "x")
    following = tmp_path / "next.bin"
    following.write_bytes(secrets.token_bytes(32))
    said = fresh.text(
        "import-key", key, "--file", following, "--next", "--activate", "2030-02-01", "--expires", "2031-01-01T00:00:00+00:00"
    )
    assert said.splitlines()[1:] == ["key state  Enabled", "primary    from 2030-02-01T00:00:00Z", "expires    2031-01-01T00:00:00Z"]
    assert fresh.json("Encrypt", "--KeyId", key, "--Plaintext", "x")["KeyVersionId"] == old["KeyVersionId"]

    fresh.set_clock(start + timedelta(days=31))
    new = fresh.json("Encrypt", "--KeyId", key, "--Plaintext", "y")
    assert new["KeyVersionId"] != old["KeyVersionId"]
    assert fresh.json("DescribeKey", "--KeyId", key)["KeyMetadata"]["PrimaryKeyVersion"] == new["KeyVersionId"]
    for sealed, plaintext in ((old, "x"), (new, "y")):
        assert fresh.json("Decrypt", "--CiphertextBlob", sealed["CiphertextBlob"])["Plaintext"] == plaintext

    fresh.set_clock(start + timedelta(days=31, seconds=1))
    third = tmp_path / "third.bin"
    third.write_bytes(secrets.token_bytes(32))
    assert "\nprimary    from now on\n" in fresh.text("import-key", key, "--file", third, "--next")
    assert fresh.json("ListKeyVersions", "--KeyId", key)["TotalCount"] == 3


def test_what_cannot_end_well_is_refused_in_words_before_anything_is_asked_for(
    kms: Command, key: str, raw: Path, pems: dict[str, Path]
) -> None:
    assert kms.refused("import-key", key, "--file", raw).startswith("Unsupported.Origin: Only a key made with --Origin EXTERNAL")
    wants_rsa = external(kms, "SOFTWARE", "RSA_2048")
    said = kms.refused("import-key", wants_rsa, "--file", raw)
    assert said == f"InvalidKeyMaterial: {raw} holds material of Aliyun_AES_256 keys, and this key is RSA_2048."
    assert kms.code("import-key", wants_rsa, "--file", pems["EC_P256"]) == "InvalidKeyMaterial"
    raw.write_bytes(b"short")
    assert kms.refused("import-key", wants_rsa, "--file", raw).startswith(
        f"InvalidKeyMaterial: {raw} holds 5 bytes; material is 32 raw bytes"
    )
    assert kms.code("import-key", wants_rsa, "--file", raw.parent / "none") == "InvalidParameter"
    assert kms.code("import-key", "key-nope", "--file", pems["RSA_2048"]) == "Forbidden.KeyNotFound"
    history = kms.text("history", wants_rsa)
    assert "MaterialRequested" not in history


def test_wrong_usage_ends_with_2(kms: Command, raw: Path) -> None:
    key = external(kms, "SOFTWARE")
    for arguments in (
        "--expires soon",
        "--expires 2020-01-01",
        "--expires 0d",
        "--expires 999999999d",
        "--activate 7d",
        "--next --activate 2020-01-01T00:00:00Z",
        "--wrapping-algorithm SM2PKE",
        "--wrapping-key-spec RSA_1024",
    ):
        done = kms.run("import-key", key, "--file", raw, *arguments.split())
        assert (done.returncode, done.stdout, b"Error: " in done.stderr) == (2, b"", True), arguments


def test_private_keys_are_too_long_for_one_step(kms: Command, pems: dict[str, Path]) -> None:
    key = external(kms, "SOFTWARE", "RSA_2048")
    said = kms.refused("import-key", key, "--file", pems["RSA_2048"], "--wrapping-algorithm", "RSAES_OAEP_SHA_1")
    assert said.startswith("InvalidParameter: ") or "at most 214 bytes" in said
