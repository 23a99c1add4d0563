"""Who may do what, on a real home: every way a key can be named, several engines on one home, restarts, an older database."""

from __future__ import annotations

import base64
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import peers
import pytest
from scheduler_helpers import older_due_work

import kmscore
from kmscore.domain.access import Caller
from kmscore.engine.kms import Kms
from kmscore.errors import KmsError
from kmscore.operations import invoke

ACCOUNT = "1000000000000001"
DENIED = "Forbidden.NoPermission"


def policy(*statements: tuple[str, str | list[str], str | list[str]]) -> str:
    """(effect, actions, resources) each."""
    made = [{"Effect": effect, "Action": action, "Resource": resource} for effect, action, resource in statements]
    return json.dumps({"Version": "1", "Statement": made})


def key_policy(*statements: tuple[str, str, str]) -> str:
    """(effect, principal behind the account, action) each."""
    made = [
        {"Effect": effect, "Action": [action], "Resource": ["*"], "Principal": {"RAM": [f"acs:ram::{ACCOUNT}:{who}"]}}
        for effect, who, action in statements
    ]
    return json.dumps({"Version": "1", "Statement": made})


def arn(what: str) -> str:
    return f"acs:kms:cn-local:{ACCOUNT}:{what}"


def open_home(home: Path) -> Kms:
    return kmscore.open_kms(home, ticker=False, pkcs11_module="none", import_failure_seconds=0.001)


class World:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.kms = open_home(home)
        self.kms.create_user("ann")
        self.access_key = self.kms.create_access_key("ann")

    @property
    def ann(self) -> Caller:
        return self.kms.credential(self.access_key.access_key_id).caller

    @property
    def root(self) -> Caller:
        return self.kms.credential((self.home / "credentials").read_text().split()[0].partition("=")[2]).caller

    def may(self, *statements: tuple[str, str | list[str], str | list[str]]) -> None:
        self.kms.set_user_policy("ann", policy=policy(*statements))

    def call(self, action: str, caller: Caller | None = None, **params: Any) -> dict[str, Any]:
        given = {name.replace("__", "."): str(value) for name, value in params.items()}
        return invoke(self.kms, action, given, "request-1", caller or self.ann)

    def code(self, action: str, caller: Caller | None = None, **params: Any) -> str:
        with pytest.raises(KmsError) as refused:
            self.call(action, caller, **params)
        return refused.value.code


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "home")
    yield world
    world.kms.close()


def code(call: Any, *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(KmsError) as refused:
        call(*arguments, **keywords)
    return refused.value.code


# --- access keys -------------------------------------------------------------------------------------------------------------------


def test_an_access_key_is_known_until_it_is_not(world: World) -> None:
    made = world.access_key
    found = world.kms.credential(made.access_key_id)
    assert (found.secret, found.caller.name, found.caller.arn) == (made.access_key_secret, "ann", f"acs:ram::{ACCOUNT}:user/ann")
    assert made.access_key_secret not in repr(found) + repr(made)
    world.kms.disable_access_key(made.access_key_id)
    assert code(world.kms.credential, made.access_key_id) == "Forbidden.AccessKey"
    world.kms.enable_access_key(made.access_key_id)
    assert world.kms.credential(made.access_key_id) == found
    world.kms.delete_access_key(made.access_key_id)
    assert code(world.kms.credential, made.access_key_id) == "InvalidAccessKeyId.NotFound"
    assert code(world.kms.credential, "KMSNONE") == code(world.kms.credential, "") == "InvalidAccessKeyId.NotFound"


@pytest.mark.sqlite
def test_secrets_are_sealed_and_go_with_their_access_key(world: World) -> None:
    def rows() -> list[tuple[str, bytes]]:
        with closing(sqlite3.connect(world.home / "kms.db")) as database:
            return database.execute("SELECT access_key_id, sealed FROM access_secrets ORDER BY access_key_id").fetchall()

    def everywhere() -> bytes:
        return b"".join(path.read_bytes() for path in world.home.glob("kms.db*"))

    second = world.kms.create_access_key("ann")
    secret = second.access_key_secret.encode()
    assert len(rows()) == 2
    assert secret not in everywhere()
    assert base64.b64encode(secret).rstrip(b"=") not in everywhere()
    # A sealed secret opens for its own access key only.
    with closing(sqlite3.connect(world.home / "kms.db")) as database, database:
        (first_id, first), (second_id, _) = rows()
        database.execute("UPDATE access_secrets SET sealed = ? WHERE access_key_id = ?", (first, second_id))
    world.kms.close()
    world.kms = open_home(world.home)
    assert world.kms.credential(first_id).secret
    assert code(world.kms.credential, second_id) == "InvalidParameter"
    sealed = [row[1] for row in rows()]
    world.kms.note_use(first_id)
    world.kms.delete_user("ann")
    assert rows() == []
    assert not any(secret in everywhere() for secret in sealed)
    assert code(world.kms.credential, first_id) == "InvalidAccessKeyId.NotFound"


def test_a_user_of_the_same_name_again_has_nothing_of_the_first(world: World) -> None:
    world.may(("Allow", "kms:*", "*"))
    world.kms.delete_user("ann")
    assert code(world.kms.create_access_key, "ann") == "EntityNotExist.User"
    world.kms.create_user("ann")
    assert world.kms.list_access_keys("ann") == ()
    world.access_key = world.kms.create_access_key("ann")
    assert world.code("ListKeys") == DENIED


def test_last_used_is_written_down_when_the_home_is_closed(world: World) -> None:
    (before,) = world.kms.list_access_keys()
    assert (before.status, before.last_used_date) == ("Active", None)
    world.kms.note_use(world.access_key.access_key_id)
    world.kms.close()
    world.kms = open_home(world.home)
    (after,) = world.kms.list_access_keys("ann")
    assert after.last_used_date is not None
    assert after.last_used_date >= after.create_date.replace(microsecond=0)


OTHER = """
import sys, kmscore
from kmscore.errors import KmsError
kms = kmscore.open_kms(sys.argv[1], ticker=False, pkcs11_module="none")
def told():
    try:
        caller = kms.credential(sys.argv[2]).caller
        kms.authorise(caller, "kms:Encrypt", keys=[sys.argv[3]])
        return "allowed"
    except KmsError as error:
        return error.code
print(told(), flush=True)
for _ in sys.stdin:
    print(told(), flush=True)
kms.close()
"""


def test_what_is_taken_away_is_refused_in_every_process_when_the_call_returns(world: World) -> None:
    """Another process knew better a moment ago, and had it in its cache."""
    key = world.kms.create_key().key_id
    world.may(("Allow", "kms:*", "*"))
    arguments = [sys.executable, "-c", OTHER, str(world.home), world.access_key.access_key_id, key]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin and other.stdout
        reader, writer = other.stdout, other.stdin

        def asked() -> str:
            writer.write("\n")
            writer.flush()
            return reader.readline().strip()

        assert reader.readline().strip() == "allowed"
        for _ in range(20):
            world.kms.disable_access_key(world.access_key.access_key_id)
            assert asked() == "Forbidden.AccessKey"
            world.kms.enable_access_key(world.access_key.access_key_id)
            assert asked() == "allowed"
            world.may(("Deny", "kms:Encrypt", "*"), ("Allow", "kms:*", "*"))
            assert asked() == DENIED
            world.may(("Allow", "kms:*", "*"))
            assert asked() == "allowed"
            world.kms.set_key_policy(key, policy=key_policy(("Allow", "root", "kms:*"), ("Deny", "user/ann", "kms:Encrypt")))
            assert asked() == DENIED
            world.kms.set_key_policy(key, policy=key_policy(("Allow", "*", "kms:*")))
            assert asked() == "allowed"
        writer.close()


@pytest.mark.sqlite
def test_a_home_of_the_version_before_gets_its_tables(tmp_path: Path) -> None:
    with open_home(tmp_path / "home") as kms:
        key = kms.create_key().key_id
    with closing(sqlite3.connect(tmp_path / "home" / "kms.db")) as database, database:
        for table in ("users", "access_keys", "access_secrets", "access_uses"):
            database.execute(f"DROP TABLE {table}")
        older_due_work(database)
        database.execute("PRAGMA user_version = 2")
    with open_home(tmp_path / "home") as kms:
        assert kms.describe_key(key).key_id == key
        kms.create_user("ann")
        assert kms.credential(kms.create_access_key("ann").access_key_id).caller.name == "ann"


# --- every way to name a key -------------------------------------------------------------------------------------------------------


def test_a_key_is_judged_however_it_is_named(world: World) -> None:
    mine, other = world.kms.create_key().key_id, world.kms.create_key().key_id
    for key, name in ((mine, "alias/mine"), (other, "alias/other")):
        world.kms.create_alias(key, alias_name=name)
    world.may(("Allow", "kms:*", arn(f"key/{mine}")))
    blobs = {}
    for key, name in ((mine, "alias/mine"), (other, "alias/other")):
        for reference in (key, name, arn(f"key/{key}"), arn(name)):
            if key == mine:
                blobs[key] = world.call("Encrypt", KeyId=reference, Plaintext="x")["CiphertextBlob"]
            else:
                assert world.code("Encrypt", KeyId=reference, Plaintext="x") == DENIED
    blobs[other] = world.call("Encrypt", world.root, KeyId=other, Plaintext="x")["CiphertextBlob"]
    assert world.call("Decrypt", CiphertextBlob=blobs[mine])["Plaintext"] == "x"
    assert world.code("Decrypt", CiphertextBlob=blobs[other]) == DENIED
    assert world.code("DecryptBatch", CiphertextBlobs=json.dumps([blobs[mine], blobs[other]])) == DENIED
    assert world.call("DecryptBatch", CiphertextBlobs=json.dumps([blobs[mine]]))["Plaintexts"]
    assert world.code("ReEncrypt", CiphertextBlob=blobs[mine], DestinationKeyId=other) == DENIED
    assert world.code("ReEncrypt", CiphertextBlob=blobs[other], DestinationKeyId=mine) == DENIED
    assert world.call("ReEncrypt", CiphertextBlob=blobs[mine], DestinationKeyId="alias/mine")["KeyId"] == mine
    tags = {"ResourceType": "key", "RegionId": "r", "Tag__1__Key": "a", "Tag__1__Value": "b"}
    assert world.code("TagResources", ResourceId__1=mine, ResourceId__2=other, **tags) == DENIED
    world.call("TagResources", ResourceId__1=mine, **tags)
    assert world.code("SetDeletionProtection", ProtectedResourceArn=arn(f"key/{other}"), EnableDeletionProtection="true") == DENIED
    assert world.code("DescribeKey", KeyId="key-none") == DENIED  # nor does it learn that there is none
    assert world.code("DescribeKey", KeyId=f"acs:kms:cn-local:2:key/{mine}") == "Forbidden.KeyNotFound"
    damaged = blobs[other][:-4] + "AAAA"
    assert world.code("Decrypt", CiphertextBlob=damaged) == DENIED  # before anything is opened
    assert world.code("Decrypt", CiphertextBlob="AAAA") == "InvalidParameter"
    assert world.code("Encrypt", KeyId="k" * 100_000, Plaintext="x") == "InvalidParameter"
    assert world.code("ListKeys") == world.code("CreateKey") == world.code("DescribeRegions") == DENIED


def test_streams_that_are_no_keys_are_not_found(world: World) -> None:
    """Users and aliases lie in the same store as keys; nobody learns by a KeyId which there are."""
    world.kms.create_alias(world.kms.create_key().key_id, alias_name="alias/a")
    world.may(("Allow", "kms:*", "*"))
    for name in ("user/ann", "user/none", "system/root", "import/x/y"):
        for reference in (name, arn(f"key/{name}")):
            calls: list[tuple[str, dict[str, str]]] = [
                ("DescribeKey", {}),
                ("Encrypt", {"Plaintext": "x"}),
                ("DisableKey", {}),
                ("RotateKey", {}),
                ("ScheduleKeyDeletion", {"PendingWindowInDays": "7"}),
                ("GetKeyPolicy", {}),
                ("ListAliasesByKeyId", {}),
                ("CreateAlias", {"AliasName": "alias/b"}),
                ("DeleteKeyMaterial", {}),
            ]
            for action, more in calls:
                assert world.code(action, KeyId=reference, **more) == "Forbidden.KeyNotFound", (action, reference)
    assert code(world.kms.history, "user/ann") == "Forbidden.KeyNotFound"


def test_aliases_are_judged_with_the_keys_they_name(world: World) -> None:
    mine, other = world.kms.create_key().key_id, world.kms.create_key().key_id
    world.kms.create_alias(other, alias_name="alias/other")
    world.may(("Allow", "kms:*", [arn(f"key/{mine}"), arn("alias/*")]))
    world.call("CreateAlias", KeyId=mine, AliasName="alias/mine")
    assert world.code("CreateAlias", KeyId=other, AliasName="alias/more") == DENIED
    assert world.code("UpdateAlias", KeyId=mine, AliasName="alias/other") == DENIED  # of a key that is not theirs
    assert world.code("UpdateAlias", KeyId=other, AliasName="alias/mine") == DENIED
    assert world.code("DeleteAlias", AliasName="alias/other") == DENIED
    world.may(("Allow", "kms:*", arn(f"key/{mine}")))
    assert world.code("DeleteAlias", AliasName="alias/mine") == DENIED  # the name itself
    world.may(("Allow", "kms:*", "*"))
    world.call("DeleteAlias", AliasName="alias/mine")
    assert world.code("DeleteAlias", AliasName="alias/mine") == "Forbidden.AliasNotFound"


def test_an_alias_that_moves_after_the_judgement_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = world.kms.create_key().key_id, world.kms.create_key().key_id
    world.kms.create_alias(mine, alias_name="alias/a")
    world.may(("Allow", "kms:*", arn(f"key/{mine}")))
    judge = Kms.authorise

    def and_then_it_moves(self: Kms, *arguments: Any, **keywords: Any) -> dict[str, str]:
        pinned = judge(self, *arguments, **keywords)
        world.kms.update_alias(other, alias_name="alias/a")
        return pinned

    monkeypatch.setattr(Kms, "authorise", and_then_it_moves)
    assert world.call("Encrypt", KeyId="alias/a", Plaintext="x")["KeyId"] == mine


def test_a_request_that_waited_is_judged_as_its_caller_is_now(world: World) -> None:
    key = world.kms.create_key().key_id
    world.may(("Allow", "kms:*", "*"))
    let_in = world.ann
    world.call("Encrypt", let_in, KeyId=key, Plaintext="x")
    world.may(("Deny", "kms:*", "*"))
    assert world.code("Encrypt", let_in, KeyId=key, Plaintext="x") == DENIED
    world.may(("Allow", "kms:*", "*"))
    world.kms.disable_access_key(world.access_key.access_key_id)
    assert world.code("Encrypt", let_in, KeyId=key, Plaintext="x") == "Forbidden.AccessKey"


def test_an_extension_is_no_way_round(world: World) -> None:
    key = world.kms.create_key().key_id
    world.may(("Allow", "kms:*", "*"), ("Deny", ["kms:Encrypt", "kms:Decrypt", "kms:CreateKeyVersion", "kms:UpdateRotationPolicy"], "*"))
    blob = world.call("Encrypt", world.root, KeyId=key, Plaintext="x")["CiphertextBlob"]
    assert world.code("EncryptBatch", KeyId=key, Plaintexts='["eA=="]') == DENIED
    assert world.code("DecryptBatch", CiphertextBlobs=json.dumps([blob])) == DENIED
    assert world.code("RotateKey", KeyId=key) == DENIED
    rotation = {"EnableAutomaticRotation": "true", "RotationInterval": "7d"}
    assert world.code("UpdateExtendedRotationPolicy", KeyId=key, **rotation) == DENIED
    assert world.code("Encrypt", KeyId=key, Plaintext="x", DryRun="true") == "AccessDeniedError"


def test_an_import_token_opens_for_its_own_key_and_its_key_is_judged(world: World) -> None:
    mine, other = (world.kms.create_key(origin="EXTERNAL").key_id for _ in range(2))
    world.may(("Allow", "kms:*", arn(f"key/{mine}")))
    wrapping = {"WrappingAlgorithm": "RSAES_OAEP_SHA_1", "WrappingKeySpec": "RSA_2048"}
    assert world.code("GetParametersForImport", KeyId=other, **wrapping) == DENIED
    offer = world.call("GetParametersForImport", world.root, KeyId=other, **wrapping)
    wrapped = base64.b64encode(peers.wrap(base64.b64decode(offer["PublicKey"]), "RSAES_OAEP_SHA_1", bytes(32))).decode()
    given = {"EncryptedKeyMaterial": wrapped, "ImportToken": offer["ImportToken"]}
    assert world.code("ImportKeyMaterial", KeyId=other, **given) == DENIED
    assert world.code("ImportNextKeyMaterial", KeyId=other, **given) == DENIED
    assert world.code("ImportKeyMaterial", KeyId=mine, **given) == "InvalidImportToken"
    assert world.kms.describe_key(other).key_state == "PendingImport"


# --- key policies ------------------------------------------------------------------------------------------------------------------


def test_a_key_policy_holds_from_the_first_moment_and_binds_the_account(world: World) -> None:
    text = key_policy(("Allow", "root", "kms:*"), ("Deny", "root", "kms:Decrypt"), ("Allow", "user/ann", "kms:Encrypt"))
    key = world.call("CreateKey", world.root, Policy=text)["KeyMetadata"]["KeyId"]
    assert world.call("GetKeyPolicy", world.root, KeyId=key)["Policy"] == text
    blob = world.call("Encrypt", KeyId=key, Plaintext="x")["CiphertextBlob"]  # without a policy of their own
    assert world.code("Decrypt", CiphertextBlob=blob) == world.code("Decrypt", world.root, CiphertextBlob=blob) == DENIED
    assert world.code("DescribeKey", KeyId=key) == DENIED
    world.call("DescribeKey", world.root, KeyId=key)
    # Whoever owns the home is not asked.
    assert world.kms.decrypt(base64.b64decode(blob)).plaintext == b"x"


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        (key_policy(("Allow", "user/bob", "kms:*")), False),
        (key_policy(("Allow", "*", "kms:Encrypt")), False),
        (key_policy(("Allow", "*", "kms:*"), ("Deny", "*", "kms:SetKeyPolicy")), False),
        (key_policy(("Allow", "*", "kms:*"), ("Deny", "root", "kms:*")), False),
        (key_policy(("Allow", "user/ann", "kms:*")), True),  # she has an access key that is enabled
        (key_policy(("Allow", "*", "kms:*"), ("Deny", "user/ann", "kms:*")), True),
        (key_policy(("Allow", "root", "kms:SetKeyPolicy")), True),
    ],
)
def test_a_policy_that_locks_everyone_out_is_refused(world: World, text: str, accepted: bool) -> None:
    key = world.kms.create_key().key_id
    if accepted:
        world.kms.set_key_policy(key, policy=text)
    else:
        assert code(world.kms.set_key_policy, key, policy=text) == code(world.kms.create_key, policy=text) == "InvalidParameter"
    assert (world.kms.get_key_policy(key) == text) is accepted


def test_who_has_no_enabled_access_key_cannot_save_a_key(world: World) -> None:
    key = world.kms.create_key().key_id
    world.kms.disable_access_key(world.access_key.access_key_id)
    assert code(world.kms.set_key_policy, key, policy=key_policy(("Allow", "user/ann", "kms:*"))) == "InvalidParameter"


def test_an_account_with_another_id_is_not_let_in_by_an_old_policy(world: World) -> None:
    key = world.kms.create_key(policy=key_policy(("Allow", "*", "kms:*"))).key_id
    world.kms.close()
    world.kms = kmscore.open_kms(world.home, ticker=False, pkcs11_module="none", account_id="2")
    assert world.code("DescribeKey", world.root, KeyId=key) == DENIED
    assert world.kms.encrypt(key, b"x")  # the owner of the home can still mend it


def test_a_simulation_says_who_could_and_why(world: World) -> None:
    key = world.kms.create_key().key_id
    world.may(("Allow", "kms:Decrypt", "*"))
    said = {item.arn.rpartition(":")[2]: (item.allowed, item.able) for item in world.kms.simulate_policy(key, action="kms:Encrypt")}
    assert said == {"root": (True, True), "user/ann": (False, True)}
    (ann,) = world.kms.simulate_policy(key, action="kms:Encrypt", user_name="ann", policy=key_policy(("Allow", "user/ann", "kms:*")))
    assert (ann.allowed, ann.why) == (True, "allowed by statement 1 of the key's policy")
    assert world.code("Encrypt", KeyId=key, Plaintext="x") == DENIED  # it was a simulation
    assert code(world.kms.simulate_policy, key, action="kms:Encrypt", user_name="bob") == "EntityNotExist.User"


# --- what is written down ----------------------------------------------------------------------------------------------------------


def test_every_event_says_who_asked_and_by_which_request(world: World) -> None:
    world.may(("Allow", "kms:*", "*"))
    key = world.call("CreateKey")["KeyMetadata"]["KeyId"]
    world.call("DisableKey", world.root, KeyId=key)
    world.kms.enable_key(key)
    events = world.kms.history(key)
    by = [(event["event"], event["actor"].rpartition(":")[2]) for event in events]
    assert by == [
        ("KeyCreated", "user/ann"),
        ("MaterialRequested", "user/ann"),
        ("MaterialActivated", "user/ann"),
        ("KeyDisabled", "root"),
        ("KeyEnabled", ACCOUNT),
    ]
    assert {event["request_id"] for event in events[:4]} == {"request-1"}
    assert events[4]["request_id"] != "request-1"
