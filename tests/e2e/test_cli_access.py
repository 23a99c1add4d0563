"""`kms user`, `kms access-key`, `kms policy`: from a new user to a call that is signed with their access key."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import closing
from pathlib import Path

from command import KMS, ROOT, Command
from test_serve import service
from wire import Wire

ALLOWED = {"Version": "1", "Statement": [{"Effect": "Allow", "Action": ["kms:Encrypt", "kms:ListKeys"], "Resource": "*"}]}


def test_a_user_from_the_first_day_to_the_last(fresh: Command, tmp_path: Path) -> None:
    fresh.settings["KMS_PKCS11_MODULE"] = ""
    key = fresh.run("CreateKey").stdout
    key = json.loads(key)["KeyMetadata"]["KeyId"]
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps(ALLOWED))
    fresh.text("user", "create", "ann", "--policy", policy)
    assert fresh.refused("user", "create", "ann") == "EntityAlreadyExists.User: There is a user ann already."
    made = json.loads(fresh.text("access-key", "create", "ann"))
    assert set(made) == {"AccessKeyId", "AccessKeySecret", "UserName"}
    with service(fresh) as (child, url), closing(Wire(url, made["AccessKeyId"], made["AccessKeySecret"])) as ann:
        ann.call("Encrypt", KeyId=key, Plaintext="x")
        assert ann.code("DescribeKey", KeyId=key) == "Forbidden.NoPermission"
        # The service goes on while its users are changed beside it.
        fresh.text("user", "set-policy", "ann", "-", stdin=json.dumps(ALLOWED).replace("kms:Encrypt", "kms:DescribeKey").encode())
        assert ann.code("Encrypt", KeyId=key, Plaintext="x") == "Forbidden.NoPermission"
        ann.call("DescribeKey", KeyId=key)
        simulated = fresh.text("policy", "simulate", "--action", "kms:Encrypt", "--key", key).splitlines()
        assert [line.split()[:2] for line in simulated] == [
            ["allow", "acs:ram::1000000000000001:root"],
            ["deny", "acs:ram::1000000000000001:user/ann"],
        ]
        assert simulated[1].endswith("no statement of the user's policy allows it")
        fresh.text("access-key", "disable", made["AccessKeyId"])
        assert ann.code("ListKeys") == "Forbidden.AccessKey"
        fresh.text("access-key", "enable", made["AccessKeyId"])
        ann.call("ListKeys")
        child.terminate()
        assert child.wait(30) == 0
    listed = fresh.text("access-key", "list", "ann").split()
    assert listed[:3] == [made["AccessKeyId"], "ann", "Active"]
    assert listed[-2] == "used"  # written down when the service stopped
    fresh.text("user", "delete", "ann")
    assert fresh.text("user", "list") == fresh.text("access-key", "list") == ""


def test_what_cannot_be(kms: Command, tmp_path: Path) -> None:
    assert kms.code("access-key", "create", "bob") == "EntityNotExist.User"
    assert "cannot read" in kms.refused("user", "create", "bob", "--policy", tmp_path / "none")
    (tmp_path / "bytes").write_bytes(b"\xff")
    assert "is not UTF-8" in kms.refused("user", "create", "bob", "--policy", tmp_path / "bytes")
    assert kms.refused("user", "create", "bob", "--policy", "-", stdin=b"{}").startswith(
        'InvalidParameter: The specified parameter "Policy"'
    )
    assert kms.run("--endpoint", "http://127.0.0.1:1", "user", "list").returncode == 2


def test_actions_that_are_none_are_told(kms: Command, tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text(json.dumps(ALLOWED).replace("kms:Encrypt", "kms:Encrpyt"))
    done = kms.run("user", "create", "typo", "--policy", tmp_path / "policy.json")
    assert done.returncode == 0
    assert done.stderr == b"warning: statement 1: there is no action kms:Encrpyt; did you mean kms:Encrypt?\n"
    done = kms.run("policy", "simulate", "--action", "kms:Encrpyt", "--key", "k")
    assert (done.returncode, b"did you mean kms:Encrypt?" in done.stderr) == (2, True)


def test_no_home_is_made_where_the_environment_names_a_service(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "KMS_HOME"} | {"KMS_ENDPOINT": "http://127.0.0.1:1"}
    program = [*KMS, "user", "create", "bob"]
    done = subprocess.run(program, cwd=tmp_path, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
    assert done.returncode == 2
    assert b"run it where the service runs, with --home DIR" in done.stderr
    assert list(tmp_path.iterdir()) == []
