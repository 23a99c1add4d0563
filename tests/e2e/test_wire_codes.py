"""Every error code that the wire knows, reached over the wire by a case that bears its name."""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import peers
import pytest
from command import Command
from wire import Answer, Wire, served

import kmscore
from kmscore import signing
from kmscore.errors import CODES

START = datetime(2030, 1, 1, tzinfo=UTC)
NOT_OF_THE_WIRE = {"EntityAlreadyExists.User", "EntityNotExist.User"}  # users are made on the home only


@dataclass
class World:
    kms: Command
    wire: Wire
    user: Wire
    disabled: Wire

    def key(self, **params: str) -> str:
        return str(self.wire.call("CreateKey", **params)["KeyMetadata"]["KeyId"])

    def external(self) -> tuple[str, dict[str, Any], str]:
        """A key that waits for its material, what to import it with, and the material wrapped."""
        key = self.key(Origin="EXTERNAL")
        algorithm = "RSAES_OAEP_SHA_1"
        offer = self.wire.call("GetParametersForImport", KeyId=key, WrappingAlgorithm=algorithm, WrappingKeySpec="RSA_2048")
        wrapped = peers.wrap(base64.b64decode(offer["PublicKey"]), algorithm, bytes(range(32)))
        return key, offer, base64.b64encode(wrapped).decode()

    def tamper(self, sql: str, *values: Any) -> None:
        """What no caller can do, but a broken disk can."""
        with closing(sqlite3.connect(self.kms.home / "kms.db", timeout=30)) as database, database:
            assert database.execute(sql, values).rowcount


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home: Path = tmp_path_factory.mktemp("codes") / "home"
    home.mkdir()
    (home / "kms.toml").write_text("max_aliases = 2\nimport_failure_seconds = 0.001\n")
    kms = Command(home)
    kms.set_clock(START)
    with served(kms) as wire:
        with kmscore.open_kms(home, clock_file=kms.settings["KMS_CLOCK_FILE"]) as engine:
            engine.create_user("nobody")
            fit, off = (engine.create_access_key("nobody") for _ in range(2))
            engine.disable_access_key(off.access_key_id)
        user, disabled = (Wire(f"http://{wire.host}", k.access_key_id, k.access_key_secret) for k in (fit, off))
        with closing(user), closing(disabled):
            yield World(kms, wire, user, disabled)


def v1(world: World, **changed: str) -> Answer:
    """A V1 request, with parameters changed before it is signed."""
    params = {
        "Action": "ListKeys",
        "Version": "2016-01-20",
        "Format": "JSON",
        "AccessKeyId": world.wire.access_key_id,
        "SignatureMethod": "HMAC-SHA1",
        "SignatureVersion": "1.0",
        "SignatureNonce": str(id(changed)) + str(datetime.now(UTC)),
        "Timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    } | changed
    signature = signing.v1_signature(world.wire.secret, signing.v1_string_to_sign("GET", params))
    return world.wire.send(f"/?{signing.canonical_query(params | {'Signature': signature})}", {}, "GET")


CASES: dict[str, Callable[[World], Answer]] = {}


def case(code: str) -> Callable[[Callable[[World], Answer]], Callable[[World], Answer]]:
    def keep(reach: Callable[[World], Answer]) -> Callable[[World], Answer]:
        CASES[code] = reach
        return reach

    return keep


def simple(code: str, action: str, **params: Any) -> None:
    CASES[code] = lambda world: world.wire.ask(action, **params)


simple("Forbidden.AliasNotFound", "DescribeKey", KeyId="alias/none")
simple("Forbidden.DKMSInstanceNotFound", "CreateKey", DKMSInstanceId="kst-none")
simple("Forbidden.KeyNotFound", "DescribeKey", KeyId="key-none")
simple("Forbidden.Opened", "OpenKmsService")
simple("InvalidApi.NotFound", "NoSuchAction")
simple("InvalidParameter", "ListKeys", PageSize="x")
simple("MissingParameter", "DescribeKey")
simple("Unsupported.Alias", "DisableKey", KeyId="alias/none")
simple("UnsupportedOperation", "GetSecretValue", SecretName="s")
simple("ValidationError", "Encrypt", KeyId="key-none", Plaintext="x", DryRun="true")
simple("Duplicate.TagKey", "CreateKey", Tags='[{"TagKey":"a"},{"TagKey":"a"}]')
simple("InvalidParameter.TagKey", "CreateKey", Tags='[{"TagKey":"acs:a"}]')
simple("InvalidParameter.TagValue", "CreateKey", Tags='[{"TagKey":"a","TagValue":"*"}]')
simple("InvalidResourceId.NotFound", "TagResources", ResourceType="key", RegionId="r", ResourceId__1="none", Tag__1__Key="a")


@case("AccessDeniedError")
def _(world: World) -> Answer:
    return world.user.ask("Encrypt", KeyId=world.key(), Plaintext="x", DryRun="true")


@case("AliasAlreadyExists")
def _(world: World) -> Answer:
    key = world.key()
    world.wire.call("CreateAlias", KeyId=key, AliasName="alias/a")
    return world.wire.ask("CreateAlias", KeyId=key, AliasName="alias/a")


@case("DryRunOperationError")
def _(world: World) -> Answer:
    return world.wire.ask("Encrypt", KeyId=world.key(), Plaintext="x", DryRun="true")


@case("ExpiredImportToken")
def _(world: World) -> Answer:
    key, offer, wrapped = world.external()
    world.kms.set_clock(START + timedelta(hours=24))
    try:
        return world.wire.ask("ImportKeyMaterial", KeyId=key, EncryptedKeyMaterial=wrapped, ImportToken=offer["ImportToken"])
    finally:
        world.kms.set_clock(START)


@case("Forbidden.AccessKey")
def _(world: World) -> Answer:
    return world.disabled.ask("ListKeys")


@case("Forbidden.KeyVersionNotFound")
def _(world: World) -> Answer:
    return world.wire.ask("DescribeKeyVersion", KeyId=world.key(), KeyVersionId="none")


@case("Forbidden.NoPermission")
def _(world: World) -> Answer:
    return world.user.ask("DescribeKey", KeyId=world.key())


@case("Forbidden.ResourceNotFound")
def _(world: World) -> Answer:
    return world.wire.ask("GetKeyPolicy", KeyId=world.key(), PolicyName="other")


@case("IncompleteSignature")
def _(world: World) -> Answer:
    return world.wire.send("/?Action=ListKeys", {})


@case("InternalFailure")
def _(world: World) -> Answer:
    key = world.key()
    world.tamper("UPDATE stored_events SET state = ? WHERE originator_id = ?", b"{ this is a secret", key)
    return world.wire.ask("UpdateKeyDescription", KeyId=key, Description="d")


@case("InvalidAccessKeyId.NotFound")
def _(world: World) -> Answer:
    with closing(Wire(f"http://{world.wire.host}", "KMSNONE", "s")) as stranger:
        return stranger.ask("ListKeys")


@case("InvalidImportToken")
def _(world: World) -> Answer:
    (key, _, wrapped), (_, other, _) = world.external(), world.external()
    return world.wire.ask("ImportKeyMaterial", KeyId=key, EncryptedKeyMaterial=wrapped, ImportToken=other["ImportToken"])


@case("InvalidKeyMaterial")
def _(world: World) -> Answer:
    key, offer, _ = world.external()
    return world.wire.ask("ImportKeyMaterial", KeyId=key, EncryptedKeyMaterial="AAAA", ImportToken=offer["ImportToken"])


@case("InvalidSignatureMethod")
def _(world: World) -> Answer:
    return v1(world, SignatureMethod="HMAC-MD5")


@case("InvalidTimeStamp.Expired")
def _(world: World) -> Answer:
    return v1(world, Timestamp="2016-01-20T00:00:00Z")


@case("InvalidTimeStamp.Format")
def _(world: World) -> Answer:
    return v1(world, Timestamp="yesterday")


@case("ParseRequestParameterException")
def _(world: World) -> Answer:
    target, headers = world.wire.signed("ListKeys", {"PageSize": "10"})
    return world.wire.send(f"{target}&PageSize=20", headers)


@case("Rejected.Disabled")
def _(world: World) -> Answer:
    key = world.key()
    world.wire.call("DisableKey", KeyId=key)
    return world.wire.ask("Encrypt", KeyId=key, Plaintext="x")


@case("Rejected.LimitExceeded")
def _(world: World) -> Answer:
    """kms.toml allows two aliases."""
    key = world.key()
    for name in "bc":
        answer = world.wire.ask("CreateAlias", KeyId=key, AliasName=f"alias/{name}")
    return answer


@case("Rejected.PendingDeletion")
def _(world: World) -> Answer:
    key = world.key()
    world.wire.call("ScheduleKeyDeletion", KeyId=key, PendingWindowInDays=7)
    return world.wire.ask("Encrypt", KeyId=key, Plaintext="x")


@case("Rejected.PendingImport")
def _(world: World) -> Answer:
    return world.wire.ask("Encrypt", KeyId=world.key(Origin="EXTERNAL"), Plaintext="x")


@case("Rejected.StateModifiedFailed")
def _(world: World) -> Answer:
    return world.wire.ask("CancelKeyDeletion", KeyId=world.key())


@case("Rejected.Unavailable")
def _(world: World) -> Answer:
    key = world.key()
    world.tamper("DELETE FROM software_material WHERE material_id IN (SELECT material_id FROM materials WHERE key_id = ?)", key)
    return world.wire.ask("Encrypt", KeyId=key, Plaintext="x")


@case("Rejected.UnsupportedOperation")
def _(world: World) -> Answer:
    return world.wire.ask("CreateKeyVersion", KeyId=world.key())  # within seven days of its first version


@case("SignatureDoesNotMatch")
def _(world: World) -> Answer:
    target, headers = world.wire.signed("ListKeys", {})
    return world.wire.send(target, headers | {"x-acs-action": "ListAliases"})


@case("SignatureNonceUsed")
def _(world: World) -> Answer:
    target, headers = world.wire.signed("ListKeys", {})
    assert world.wire.send(target, headers).status == 200
    return world.wire.send(target, headers)


@case("ServiceUnavailableTemporary")
def _(world: World) -> Answer:
    """There is no place to remember the requests of an access key that was never seen before."""
    with kmscore.open_kms(world.kms.home, clock_file=world.kms.settings["KMS_CLOCK_FILE"]) as engine:
        engine.create_user("late")
        late = engine.create_access_key("late")
    (directory,) = (world.kms.home / "run").glob("nonces-*")
    aside = directory.rename(directory.with_name("aside"))
    directory.touch()
    try:
        with closing(Wire(f"http://{world.wire.host}", late.access_key_id, late.access_key_secret)) as wire:
            return wire.ask("ListKeys")
    finally:
        directory.unlink()
        aside.rename(directory)


@case("Unsupported.Origin")
def _(world: World) -> Answer:
    key = world.key()
    return world.wire.ask("GetParametersForImport", KeyId=key, WrappingAlgorithm="RSAES_OAEP_SHA_1", WrappingKeySpec="RSA_2048")


@case("UnsupportedHTTPMethod")
def _(world: World) -> Answer:
    target, headers = world.wire.signed("ListKeys", {})
    return world.wire.send(target, headers, "PUT")


ELSEWHERE = {"Rejected.Throttling", "Unsupported.ProtectionLevel"}


def test_every_code_has_its_case() -> None:
    assert set(CASES) | ELSEWHERE | NOT_OF_THE_WIRE == set(CODES)


DAMAGED = {"InternalFailure", "Rejected.Unavailable"}  # by a hand in the SQLite file


@pytest.mark.parametrize("code", [pytest.param(code, marks=[pytest.mark.sqlite] if code in DAMAGED else []) for code in CASES])
def test_code(world: World, code: str) -> None:
    answer = CASES[code](world)
    assert (answer.code, answer.status) == (code, CODES[code].status)
    assert answer.body["HttpStatus"] == answer.status
    assert answer.body["Message"]
    assert answer.headers["x-acs-request-id"] == answer.body["RequestId"]
    assert ("retry-after" in answer.headers) is CODES[code].retryable


def test_throttling_tells_when_to_come_again_and_a_service_without_a_token_has_no_level_hsm(tmp_path: Path) -> None:
    kms = Command(tmp_path / "home", {"KMS_PKCS11_MODULE": "", "KMS_REQUESTS_PER_SECOND": "1"})
    with served(kms) as wire:
        answer = wire.ask("CreateKey", ProtectionLevel="HSM")
        assert (answer.code, answer.status) == ("Unsupported.ProtectionLevel", 400)
        for _ in range(3):
            answer = wire.ask("ListKeys")
        assert (answer.code, answer.status) == ("Rejected.Throttling", 429)
        assert 0 < int(answer.headers["x-acs-retry-after"]) <= 1000
        assert answer.headers["retry-after"] == "1"
