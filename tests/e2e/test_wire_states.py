"""Every cell of the state table, over the wire: each operation on a key in each of the four states."""

from __future__ import annotations

import base64
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import peers
import pytest
from command import Command
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from test_states import TABLE
from wire import Wire, served

STATES = ("Enabled", "Disabled", "PendingDeletion", "PendingImport")
DIGEST = base64.b64encode(bytes(32)).decode()
names = (f"alias/n{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    home: Path = tmp_path_factory.mktemp("states") / "home"
    home.mkdir()
    (home / "kms.toml").write_text("key_version_min_days = 0\nimport_failure_seconds = 0.001\n")
    with served(Command(home)) as wire:
        yield wire


@dataclass
class World:
    """Keys of every kind, in one state each."""

    wire: Wire
    state: str
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)

    def enter(self, key: str) -> str:
        if self.state == "Disabled":
            self.wire.call("DisableKey", KeyId=key)
        if self.state == "PendingDeletion":
            self.wire.call("ScheduleKeyDeletion", KeyId=key, PendingWindowInDays=7)
        if self.state == "PendingImport" and self.metadata(key)["KeyState"] != "PendingImport":
            self.wire.call("DeleteKeyMaterial", KeyId=key)
        assert self.metadata(key)["KeyState"] == self.state
        return key

    def metadata(self, key: str) -> dict[str, Any]:
        return dict(self.wire.call("DescribeKey", KeyId=key)["KeyMetadata"])

    def create(self, **params: str) -> str:
        return str(self.wire.call("CreateKey", **params)["KeyMetadata"]["KeyId"])

    def fresh(self) -> str:
        """A symmetric key that nobody else uses; in PendingImport one that never had material."""
        return self.enter(self.create(Origin="EXTERNAL") if self.state == "PendingImport" else self.create())

    def external(self) -> dict[str, Any]:
        """A key of Origin EXTERNAL, its material, and an import token that is good."""
        key, material = self.create(Origin="EXTERNAL"), os.urandom(32)
        offer = self.offer(key, "RSAES_OAEP_SHA_256")
        wrapped = _wrap(offer, "RSAES_OAEP_SHA_256", material)
        if self.state != "PendingImport":
            self.wire.call("ImportKeyMaterial", KeyId=key, EncryptedKeyMaterial=wrapped, ImportToken=offer["ImportToken"])
        return {"key": self.enter(key), "wrapped": wrapped, "offer": offer}

    def offer(self, key: str, algorithm: str) -> dict[str, Any]:
        return self.wire.call("GetParametersForImport", KeyId=key, WrappingAlgorithm=algorithm, WrappingKeySpec="RSA_2048")

    def used(self, spec: str) -> dict[str, Any]:
        """A key of a spec that was used while it could be: its version, and what it made. Shared by the cells of a state."""
        if spec not in self.kept:
            self.kept[spec] = self._used(spec)
        return self.kept[spec]

    def _used(self, spec: str) -> dict[str, Any]:
        usage = {"KeyUsage": "ENCRYPT/DECRYPT"} if spec.startswith("RSA") else {}
        if self.state == "PendingImport":
            key = self.create(KeySpec=spec, Origin="EXTERNAL", **usage)
            algorithm = "RSA_AES_KEY_WRAP_SHA_256" if spec in PRIVATE else "RSAES_OAEP_SHA_256"
            offer = self.offer(key, algorithm)
            material = peers.pkcs8(PRIVATE[spec]()) if spec in PRIVATE else os.urandom(32)
            wrapped = _wrap(offer, algorithm, material)
            self.wire.call("ImportKeyMaterial", KeyId=key, EncryptedKeyMaterial=wrapped, ImportToken=offer["ImportToken"])
        else:
            key = self.create(KeySpec=spec, **usage)
        version = self.wire.call("ListKeyVersions", KeyId=key)["KeyVersions"]["KeyVersion"][0]["KeyVersionId"]
        made = {"key": key, "version": version, "blob": "", "mac": ""}
        if spec == "Aliyun_AES_256":
            made["blob"] = self.wire.call("Encrypt", KeyId=key, Plaintext="x")["CiphertextBlob"]
        elif spec == "RSA_2048":
            used = {"KeyId": key, "KeyVersionId": version, "Algorithm": "RSAES_OAEP_SHA_256", "Plaintext": "eA=="}
            made["blob"] = self.wire.call("AsymmetricEncrypt", **used)["CiphertextBlob"]
        elif spec == "HMAC_256":
            made["mac"] = self.wire.call("GenerateMac", KeyId=key, Algorithm="HMAC_SHA_256", Message="eA==")["Mac"]
        self.enter(key)
        return made


PRIVATE: dict[str, Callable[[], Any]] = {
    "RSA_2048": lambda: rsa.generate_private_key(65537, 2048),
    "EC_P256": lambda: ec.generate_private_key(ec.SECP256R1()),
}


def _wrap(offer: dict[str, Any], algorithm: str, material: bytes) -> str:
    return base64.b64encode(peers.wrap(base64.b64decode(offer["PublicKey"]), algorithm, material)).decode()


@cache
def _recipient() -> str:
    return base64.b64encode(peers.spki(rsa.generate_private_key(65537, 2048))).decode()


def params(operation: str, world: World) -> dict[str, Any]:
    """What a call of the operation is given, all in order but for the state of the key."""
    match operation:
        case "ListKeys" | "ListAliases":
            return {}
        case "DescribeKey" | "ListAliasesByKeyId" | "ListResourceTags" | "GetKeyPolicy" | "ListKeyVersions":
            return {"KeyId": world.used("Aliyun_AES_256")["key"]}
        case "ListTagResources" | "TagResources" | "UntagResources":
            given = {"ResourceType": "key", "RegionId": "cn-local", "ResourceId__1": world.fresh()}
            more = {"TagResources": {"Tag__1__Key": "a", "Tag__1__Value": "b"}, "UntagResources": {"All": "true"}}
            return given | more.get(operation, {})
        case "DescribeKeyVersion":
            return {"KeyId": world.used("Aliyun_AES_256")["key"], "KeyVersionId": world.used("Aliyun_AES_256")["version"]}
        case "Encrypt":
            return {"KeyId": world.used("Aliyun_AES_256")["key"], "Plaintext": "x"}
        case "GenerateDataKey" | "GenerateDataKeyWithoutPlaintext":
            return {"KeyId": world.used("Aliyun_AES_256")["key"]}
        case "Decrypt":
            return {"CiphertextBlob": world.used("Aliyun_AES_256")["blob"]}
        case "ReEncrypt":
            return {"CiphertextBlob": world.used("Aliyun_AES_256")["blob"], "DestinationKeyId": world.create()}
        case "ExportDataKey" | "GenerateAndExportDataKey":
            export = {"PublicKeyBlob": _recipient(), "WrappingAlgorithm": "RSAES_OAEP_SHA_256", "WrappingKeySpec": "RSA_2048"}
            used = world.used("Aliyun_AES_256")
            return export | ({"CiphertextBlob": used["blob"]} if operation == "ExportDataKey" else {"KeyId": used["key"]})
        case "AsymmetricEncrypt" | "AsymmetricDecrypt" | "GetPublicKey":
            used = world.used("RSA_2048")
            named = {"KeyId": used["key"], "KeyVersionId": used["version"]}
            more = {
                "AsymmetricEncrypt": {"Algorithm": "RSAES_OAEP_SHA_256", "Plaintext": "eA=="},
                "AsymmetricDecrypt": {"Algorithm": "RSAES_OAEP_SHA_256", "CiphertextBlob": used["blob"]},
            }
            return named | more.get(operation, {})
        case "AsymmetricSign" | "AsymmetricVerify":
            used = world.used("EC_P256")
            signed = {"KeyId": used["key"], "KeyVersionId": used["version"], "Algorithm": "ECDSA_SHA_256", "Digest": DIGEST}
            return signed | ({"Value": DIGEST} if operation == "AsymmetricVerify" else {})
        case "GenerateMac" | "VerifyMac":
            used = world.used("HMAC_256")
            given = {"KeyId": used["key"], "Algorithm": "HMAC_SHA_256", "Message": "eA=="}
            return given | ({"Mac": used["mac"]} if operation == "VerifyMac" else {})
        case "GetParametersForImport":
            found = world.external()
            return {"KeyId": found["key"], "WrappingAlgorithm": "RSAES_OAEP_SHA_1", "WrappingKeySpec": "RSA_2048"}
        case "ImportKeyMaterial" | "ImportNextKeyMaterial":
            found = world.external()
            wrapped = found["wrapped"]
            if operation == "ImportNextKeyMaterial":
                wrapped = _wrap(found["offer"], "RSAES_OAEP_SHA_256", os.urandom(32))
            return {"KeyId": found["key"], "EncryptedKeyMaterial": wrapped, "ImportToken": found["offer"]["ImportToken"]}
        case "DeleteKeyMaterial":
            return {"KeyId": world.external()["key"]}
        case "CreateAlias":
            return {"KeyId": world.fresh(), "AliasName": next(names)}
        case "UpdateAlias" | "DeleteAlias":
            alias = next(names)
            if operation == "UpdateAlias":
                world.wire.call("CreateAlias", KeyId=world.create(), AliasName=alias)
                return {"KeyId": world.fresh(), "AliasName": alias}
            key = world.create(Origin="EXTERNAL") if world.state == "PendingImport" else world.create()
            world.wire.call("CreateAlias", KeyId=key, AliasName=alias)
            world.enter(key)
            return {"AliasName": alias}
        case _:
            more = {
                "UpdateRotationPolicy": {"EnableAutomaticRotation": "true", "RotationInterval": "7d"},
                "UpdateKeyDescription": {"Description": "d"},
                "TagResource": {"Tags": '[{"TagKey":"a","TagValue":"b"}]'},
                "UntagResource": {"TagKeys": '["a"]'},
                "SetDeletionProtection": {"EnableDeletionProtection": "true"},
                "SetKeyPolicy": {"Policy": world.wire.call("GetKeyPolicy", KeyId=world.used("Aliyun_AES_256")["key"])["Policy"]},
                "ScheduleKeyDeletion": {"PendingWindowInDays": "7"},
            }
            return {"KeyId": world.fresh()} | more.get(operation, {})


@pytest.fixture(scope="module")
def worlds(wire: Wire) -> dict[str, World]:
    return {state: World(wire, state) for state in STATES}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("operation", TABLE)
def test_cell(worlds: dict[str, World], operation: str, state: str) -> None:
    if operation in ("GenerateMac", "VerifyMac") and state == "PendingImport":
        pytest.skip("MAC keys are not imported, so none waits for its material")
    world = worlds[state]
    expected = TABLE[operation][STATES.index(state)]
    given = params(operation, world)
    answer = world.wire.ask(operation, **given)
    assert (answer.status, answer.code) == ((200, "") if expected is None else (409, expected)), answer
