"""The `kms` command as a client of a running `kms serve`: it has nothing of the home but what a profile tells it."""

from __future__ import annotations

import os
import pty
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from command import ROOT, Command
from test_serve import service

from kmscore.config import read_credentials

NO_HOME = "/nonexistent/home"


def client(folder: Path, **settings: str) -> Command:
    """A user of another machine."""
    names = ("KMS_ENDPOINT", "KMS_PROFILE", "KMS_CA_FILE", "KMS_ACCESS_KEY_ID", "KMS_ACCESS_KEY_SECRET")
    proxies = {"http_proxy": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1"}
    return Command(Path(NO_HOME), {**dict.fromkeys(names, ""), "KMS_PROFILES": str(folder / "profiles.toml"), **proxies, **settings})


@contextmanager
def listening(kms: Command, folder: Path, *arguments: str) -> Iterator[str]:
    """The address of a service; its log is in `folder`."""
    with (folder / "log").open("wb") as log, service(kms, *arguments, stderr=log) as (_, url):
        yield url


@pytest.fixture(scope="module")
def url(kms: Command, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with listening(kms, tmp_path_factory.mktemp("served")) as address:
        yield address


@pytest.fixture(scope="module")
def remote(kms: Command, url: str, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """By a profile that the environment names."""
    command = client(tmp_path_factory.mktemp("client"), KMS_PROFILE="served")
    access_key_id, secret = read_credentials(kms.home / "credentials")
    command.text("profile", "set", "served", "--endpoint", url, "--access-key-id", access_key_id, stdin=f"{secret}\n".encode())
    return command


@pytest.fixture(scope="module")
def key(remote: Command) -> str:
    return str(remote.json("CreateKey", "--ProtectionLevel", "HSM", "--Description", "Schlüssel €")["KeyMetadata"]["KeyId"])


def test_the_operations_answer_as_the_engine_does(kms: Command, remote: Command, key: str) -> None:
    described = remote.json("DescribeKey", "--KeyId", key)
    assert described["KeyMetadata"]["Description"] == "Schlüssel €"
    assert described == kms.json("DescribeKey", "--KeyId", key)
    sealed = remote.json("Encrypt", "--KeyId", key, "--Plaintext", "a b+c%&= é", "--EncryptionContext", '{"é": "="}')
    opened = remote.json("Decrypt", "--CiphertextBlob", sealed["CiphertextBlob"], "--EncryptionContext", '{"é":"="}')
    assert opened["Plaintext"] == "a b+c%&= é"
    version = remote.json("rotate", key)["KeyVersion"]["KeyVersionId"]
    assert kms.json("DescribeKey", "--KeyId", key)["KeyMetadata"]["PrimaryKeyVersion"] == version != sealed["KeyVersionId"]
    assert not Path(NO_HOME).exists()


def test_an_operation_that_wants_a_region_has_one(remote: Command, key: str) -> None:
    remote.json("TagResources", "--ResourceType", "key", "--ResourceId.1", key, "--Tag.1.Key", "team", "--Tag.1.Value", "")
    tags = remote.json("ListTagResources", "--ResourceType", "key", "--ResourceId.1", key)["TagResources"]["TagResource"]
    assert [(tag["TagKey"], tag["TagValue"]) for tag in tags] == [("team", "")]


def test_files(kms: Command, remote: Command, key: str, tmp_path: Path) -> None:
    plain, sealed, back = (tmp_path / name for name in ("plain", "sealed", "back"))
    plain.write_bytes(secrets.token_bytes((2 << 20) + 1))
    assert remote.text("encrypt-file", "--key", key, plain, sealed) == ""
    assert remote.text("decrypt-file", sealed, back) == ""
    assert back.read_bytes() == plain.read_bytes()
    back.unlink()
    kms.text("decrypt-file", sealed, back)  # on the home itself
    assert back.read_bytes() == plain.read_bytes()
    told = remote.refused("decrypt-file", plain, tmp_path / "none")
    assert told == f"InvalidParameter: {plain} is damaged or is not a file that kms encrypted"


def test_import_key_and_the_commands_it_explains(remote: Command, url: str, tmp_path: Path) -> None:
    key = remote.json("CreateKey", "--Origin", "EXTERNAL", "--ProtectionLevel", "HSM")["KeyMetadata"]["KeyId"]
    raw = tmp_path / "raw"
    raw.write_bytes(secrets.token_bytes(32))
    first, *more = remote.text("import-key", key, "--file", raw, "--expires", "90d").splitlines()
    assert first.startswith(f"imported Aliyun_AES_256 material into {key}, wrapped with RSAES_OAEP_SHA_")
    assert more[0] == "key state  Enabled"
    assert re.fullmatch(r"expires    20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", more[1])

    commands = remote.text("import-key", key, "--file", raw, "--explain")
    assert f"kms --profile served GetParametersForImport --KeyId {key} " in commands
    program = f"kms() {{ '{sys.executable}' -m kmscore.cli \"$@\"; }}\n"
    done = subprocess.run(["sh"], input=(program + commands).encode(), cwd=ROOT, env=remote.environment, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert remote.json("DescribeKey", "--KeyId", key)["KeyMetadata"]["MaterialExpireTime"] == ""


def test_refusals_are_those_of_the_service(remote: Command, url: str) -> None:
    assert remote.refused("DescribeKey", "--KeyId", "key-nope") == "Forbidden.KeyNotFound: The specified Key is not found."
    assert remote.refused("DescribeKey") == 'MissingParameter: The parameter "KeyId" is needed but not provided.'
    wrong = client(
        Path(remote.settings["KMS_PROFILES"]).parent, KMS_PROFILE="served", KMS_ACCESS_KEY_ID="LTAInobody", KMS_ACCESS_KEY_SECRET="x"
    )
    assert wrong.code("ListKeys") == "InvalidAccessKeyId.NotFound"


def test_the_home_lends_its_credentials_and_a_wrong_secret_is_told(kms: Command, url: str, tmp_path: Path) -> None:
    lent = Command(kms.home, {**client(tmp_path).settings, "KMS_ENDPOINT": url})
    assert lent.json("ListKeys")["TotalCount"] >= 0
    lent.text("tick")  # works on the home, whatever the environment says
    refused = lent.run("tick", "--endpoint", url)
    assert (refused.returncode, b"kms tick works on a home, not through a service: leave out --endpoint." in refused.stderr) == (2, True)

    (tmp_path / "credentials").touch(mode=0o600)
    (tmp_path / "credentials").write_text(f"access_key_id={read_credentials(kms.home / 'credentials')[0]}\naccess_key_secret=wrong\n")
    told = lent.refused("--home", tmp_path, "ListKeys")
    assert told.startswith("SignatureDoesNotMatch: Specified signature is not matched")
    assert "no access key: set KMS_ACCESS_KEY_ID" in lent.refused("--home", tmp_path / "none", "ListKeys")


def test_no_service_and_a_place_that_others_can_listen_to(kms: Command, tmp_path: Path) -> None:
    lent = Command(kms.home, client(tmp_path).settings)
    told = lent.refused("ListKeys", "--endpoint", "http://127.0.0.1:1")
    assert told == "ServiceUnavailableTemporary: cannot reach http://127.0.0.1:1: Connection refused"
    done = lent.run("--endpoint", "http://kms.invalid:8480", "ListKeys")
    warning, refusal = done.stderr.decode().splitlines()
    assert warning.startswith("warning: http://kms.invalid:8480 is not encrypted")
    assert refusal.startswith("ServiceUnavailableTemporary: cannot reach http://kms.invalid:8480: ")


def test_a_secret_is_asked_for_without_echo(tmp_path: Path) -> None:
    command = client(tmp_path)
    terminal, theirs = pty.openpty()
    child = command.start(
        *"profile set p --endpoint https://x --access-key-id LTAI".split(),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    with open(terminal, "r+b", buffering=0) as terminal_file:
        shown = b""
        while b"access key secret: " not in shown:
            shown += terminal_file.read(1000)
        terminal_file.write(b"s3cr3t\n")
        with suppress(OSError):  # EIO: the other side is closed
            while more := terminal_file.read(1000):
                shown += more
    assert child.wait(60) == 0
    assert b"s3cr3t" not in shown
    assert 'access_key_secret = "s3cr3t"' in (tmp_path / "profiles.toml").read_text()
    assert command.text("profile", "list") == "p  https://x  access_key_id=LTAI\n"


def test_over_tls_with_the_authority_of_the_home(kms: Command, tmp_path: Path) -> None:
    lent = Command(kms.home, client(tmp_path).settings)
    with listening(kms, tmp_path, "--tls") as url:
        authority = kms.home / "tls" / "ca.pem"
        assert lent.json("ListKeys", "--endpoint", url, "--ca-file", authority)["PageNumber"] == 1
        assert " is not to be trusted: " in lent.refused("ListKeys", "--endpoint", url)
        lent.text("profile", "set", "tls", "--endpoint", url, "--ca-file", authority)
        assert lent.json("--profile", "tls", "ListKeys")["PageNumber"] == 1
