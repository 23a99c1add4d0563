"""Every operation of the API once, as far as a client has it, with the answers looked at."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import peers
from adapters import ClientError
from cryptography.hazmat.primitives.asymmetric import rsa

CONTEXT = {"table": "orders & more", "é ~*'()!/+": "ü=%2B"}


class Client(Protocol):
    missing: frozenset[str]

    def call(self, action: str, params: Mapping[str, Any]) -> dict[str, Any]: ...


class Scenario:
    def __init__(self, client: Client, level: str) -> None:
        self.client = client
        self.level = level
        self.called: set[str] = set()

    def __call__(self, action: str, **params: Any) -> dict[str, Any]:
        self.called.add(action)
        answer = self.client.call(action, params)
        assert answer["RequestId"]
        return answer

    def code(self, action: str, **params: Any) -> str:
        self.called.add(action)
        try:
            self.client.call(action, params)
        except ClientError as error:
            return error.code
        raise AssertionError(f"{action} was not refused")

    def has(self, *actions: str) -> bool:
        return not self.client.missing & set(actions)

    def key(self, **params: Any) -> str:
        metadata = self("CreateKey", ProtectionLevel=self.level, **params)["KeyMetadata"]
        assert metadata["ProtectionLevel"] == self.level
        return str(metadata["KeyId"])

    def tags(self, key: str) -> dict[str, str]:
        return {item["TagKey"]: item["TagValue"] for item in self("ListResourceTags", KeyId=key)["Tags"]["Tag"]}

    def version(self, key: str) -> str:
        return str(self("ListKeyVersions", KeyId=key)["KeyVersions"]["KeyVersion"][0]["KeyVersionId"])


def lifecycle(do: Scenario) -> None:
    key = do.key(Description="dé & +", EnableAutomaticRotation=True, RotationInterval="30d")
    described = do("DescribeKey", KeyId=key)["KeyMetadata"]
    assert (described["Description"], described["AutomaticRotation"], described["RotationInterval"]) == ("dé & +", "Enabled", "2592000s")
    do("UpdateKeyDescription", KeyId=key, Description="other 中文")
    do("UpdateRotationPolicy", KeyId=key, EnableAutomaticRotation=False)
    described = do("DescribeKey", KeyId=key)["KeyMetadata"]
    assert (described["Description"], described["AutomaticRotation"]) == ("other 中文", "Disabled")
    do("DisableKey", KeyId=key)
    assert do.code("Encrypt", KeyId=key, Plaintext="x") == "Rejected.Disabled"
    do("EnableKey", KeyId=key)
    if do.has("SetDeletionProtection"):
        do("SetDeletionProtection", ProtectedResourceArn=described["Arn"], EnableDeletionProtection=True)
        assert do.code("ScheduleKeyDeletion", KeyId=key, PendingWindowInDays=7) == "Rejected.UnsupportedOperation"
        do("SetDeletionProtection", ProtectedResourceArn=described["Arn"], EnableDeletionProtection=False)
    do("ScheduleKeyDeletion", KeyId=key, PendingWindowInDays=7)
    assert do("DescribeKey", KeyId=key)["KeyMetadata"]["DeleteDate"]
    do("CancelKeyDeletion", KeyId=key)
    assert do.code("CreateKeyVersion", KeyId=key) == "Rejected.UnsupportedOperation"  # within seven days
    assert do("DescribeKeyVersion", KeyId=key, KeyVersionId=do.version(key))["KeyVersion"]["KeyId"] == key


def names_and_tags(do: Scenario) -> None:
    at_birth = {} if _old_node(do) else {"team": "a+/=:@\\b"}
    key = do.key(**({"Tags": _tags(at_birth)} if at_birth else {}))
    alias = f"alias/{os.urandom(8).hex()}"
    do("CreateAlias", KeyId=key, AliasName=alias)
    assert do("DescribeKey", KeyId=alias)["KeyMetadata"]["KeyId"] == key
    other = do.key()
    do("UpdateAlias", KeyId=other, AliasName=alias)
    assert [item["AliasName"] for item in do("ListAliasesByKeyId", KeyId=other)["Aliases"]["Alias"]] == [alias]
    assert do("ListAliases", PageSize=100)["TotalCount"] >= 1
    do("DeleteAlias", AliasName=alias)
    assert do.code("DescribeKey", KeyId=alias) == "Forbidden.AliasNotFound"
    do("TagResource", KeyId=key, Tags=_tags({"env": "prod+=:/@"}))
    assert do.tags(key) == at_birth | {"env": "prod+=:/@"}
    do("UntagResource", KeyId=key, TagKeys='["env"]')
    assert do.tags(key) == at_birth
    if do.has("TagResources"):
        common = {"ResourceType": "key", "RegionId": "cn-local"} if not _no_region(do) else {"ResourceType": "key"}
        do("TagResources", ResourceId=[key, other], Tag=[{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}], **common)
        rows = do("ListTagResources", ResourceId=[key, other], Tag=[{"Key": "a", "Value": "1"}], **common)
        assert len({row["ResourceId"] for row in rows["TagResources"]["TagResource"]}) == 2
        assert do.tags(other) == {"a": "1", "b": "2"}
        do("UntagResources", ResourceId=[key, other], TagKey=["a", "b"], **common)
        assert (do.tags(key), do.tags(other)) == (at_birth, {})
        tag_pages(do, common)


def tag_pages(do: Scenario, common: dict[str, str]) -> None:
    """11 keys with 20 tags each are two pages."""
    keys = [do.key() for _ in range(11)]
    do("TagResources", ResourceId=keys, Tag=[{"Key": f"k{number}", "Value": "v"} for number in range(20)], **common)
    first = do("ListTagResources", ResourceId=keys, **common)
    rest = do("ListTagResources", ResourceId=keys, NextToken=first["NextToken"], **common)
    assert not rest.get("NextToken")
    pages = [[(row["ResourceId"], row["TagKey"]) for row in page["TagResources"]["TagResource"]] for page in (first, rest)]
    assert [len(page) for page in pages] == [200, 20]
    assert set(pages[0] + pages[1]) == {(key, f"k{number}") for key in keys for number in range(20)}


def pages(do: Scenario) -> None:
    key = do.key()
    names = {f"alias/{os.urandom(8).hex()}" for _ in range(5)}
    for name in names:
        do("CreateAlias", KeyId=key, AliasName=name)
    seen = [do("ListAliasesByKeyId", KeyId=key, PageNumber=number, PageSize=2) for number in (1, 2, 3, 4)]
    assert [len(page["Aliases"]["Alias"]) for page in seen] == [2, 2, 1, 0]
    assert {(page["PageNumber"], page["PageSize"], page["TotalCount"]) for page in seen} == {(number, 2, 5) for number in (1, 2, 3, 4)}
    assert {item["AliasName"] for page in seen for item in page["Aliases"]["Alias"]} == names
    total = do("ListKeys", PageSize=1)["TotalCount"]
    found = [
        item["KeyId"] for number in range(-(-total // 100)) for item in do("ListKeys", PageNumber=number + 1, PageSize=100)["Keys"]["Key"]
    ]
    assert (len(found), len(set(found))) == (total, total)
    assert key in found
    assert do.code("ListKeys", PageSize=101) == "InvalidParameter"


def symmetric(do: Scenario) -> None:
    key, other = do.key(), do.key()
    for context in ({}, {"EncryptionContext": CONTEXT}):
        blob = do("Encrypt", KeyId=key, Plaintext="a string, not base64 ~é", **context)["CiphertextBlob"]
        assert do("Decrypt", CiphertextBlob=blob, **context)["Plaintext"] == "a string, not base64 ~é"
        wrong = {} if context else {"EncryptionContext": {"a": "b"}}
        assert do.code("Decrypt", CiphertextBlob=blob, **wrong) == "InvalidParameter"
    if do.has("ReEncrypt"):
        given = {"SourceEncryptionContext": CONTEXT, "DestinationEncryptionContext": {"n": "1"}}
        again = do("ReEncrypt", CiphertextBlob=blob, DestinationKeyId=other, **given)
        assert do("Decrypt", CiphertextBlob=again["CiphertextBlob"], EncryptionContext={"n": "1"})["KeyId"] == other
    made = do("GenerateDataKey", KeyId=key, NumberOfBytes=48)
    assert len(base64.b64decode(made["Plaintext"])) == 48
    assert do("Decrypt", CiphertextBlob=made["CiphertextBlob"])["Plaintext"] == made["Plaintext"]
    hidden = do("GenerateDataKeyWithoutPlaintext", KeyId=key, KeySpec="AES_128", EncryptionContext=CONTEXT)
    assert "Plaintext" not in hidden
    if do.has("ExportDataKey"):
        exported(do, key, hidden["CiphertextBlob"])
    most = base64.b64encode(os.urandom(6144)).decode()
    assert do("Decrypt", CiphertextBlob=do("Encrypt", KeyId=key, Plaintext=most)["CiphertextBlob"])["Plaintext"] == most


def exported(do: Scenario, key: str, hidden: str) -> None:
    private = rsa.generate_private_key(65537, 2048)
    export = {
        "PublicKeyBlob": base64.b64encode(peers.spki(private)).decode(),
        "WrappingAlgorithm": "RSAES_OAEP_SHA_256",
        "WrappingKeySpec": "RSA_2048",
    }

    def opened(answer: dict[str, Any]) -> str:
        return base64.b64encode(private.decrypt(base64.b64decode(answer["ExportedDataKey"]), peers.oaep("RSAES_OAEP_SHA_256"))).decode()

    one = do("ExportDataKey", CiphertextBlob=hidden, EncryptionContext=CONTEXT, **export)
    assert opened(one) == do("Decrypt", CiphertextBlob=hidden, EncryptionContext=CONTEXT)["Plaintext"]
    both = do("GenerateAndExportDataKey", KeyId=key, **export)
    assert opened(both) == do("Decrypt", CiphertextBlob=both["CiphertextBlob"])["Plaintext"]


def asymmetric(do: Scenario) -> None:
    signer = do.key(KeySpec="EC_P256", KeyUsage="SIGN/VERIFY")
    named = {"KeyId": signer, "KeyVersionId": do.version(signer)}
    digest = hashlib.sha256(b"message").digest()
    given = {"Algorithm": "ECDSA_SHA_256", "Digest": base64.b64encode(digest).decode(), **named}
    value = do("AsymmetricSign", **given)["Value"]
    assert do("AsymmetricVerify", Value=value, **given)["Value"] is True
    other = given | {"Digest": base64.b64encode(bytes(32)).decode()}
    assert do("AsymmetricVerify", Value=value, **other)["Value"] is False
    pem = do("GetPublicKey", **named)["PublicKey"]
    assert peers.verify(pem, "ECDSA_SHA_256", digest, base64.b64decode(value))
    opener = do.key(KeySpec="RSA_2048", KeyUsage="ENCRYPT/DECRYPT")
    named = {"KeyId": opener, "KeyVersionId": do.version(opener), "Algorithm": "RSAES_OAEP_SHA_256"}
    sealed = do("AsymmetricEncrypt", Plaintext="c2VjcmV0", **named)["CiphertextBlob"]
    assert do("AsymmetricDecrypt", CiphertextBlob=sealed, **named)["Plaintext"] == "c2VjcmV0"
    if do.has("GenerateMac"):
        key = do("CreateKey", KeySpec="HMAC_256", ProtectionLevel=do.level)["KeyMetadata"]["KeyId"]
        mac = do("GenerateMac", KeyId=key, Algorithm="HMAC_SHA_256", Message="bWVzc2FnZQ==")["Mac"]
        assert do("VerifyMac", KeyId=key, Algorithm="HMAC_SHA_256", Message="bWVzc2FnZQ==", Mac=mac)["Value"] is True


def imported(do: Scenario) -> None:
    key = do.key(Origin="EXTERNAL")
    material = os.urandom(32)
    offer = do("GetParametersForImport", KeyId=key, WrappingAlgorithm="RSAES_OAEP_SHA_1", WrappingKeySpec="RSA_2048")
    wrapped = base64.b64encode(peers.wrap(base64.b64decode(offer["PublicKey"]), "RSAES_OAEP_SHA_1", material)).decode()
    given = {"KeyId": key, "EncryptedKeyMaterial": wrapped, "ImportToken": offer["ImportToken"], "KeyMaterialExpireUnix": 0}
    do("ImportKeyMaterial", **given)
    blob = do("Encrypt", KeyId=key, Plaintext="x")["CiphertextBlob"]
    do("DeleteKeyMaterial", KeyId=key)
    assert do.code("Decrypt", CiphertextBlob=blob) == "Rejected.PendingImport"
    do("ImportKeyMaterial", **given)
    assert do("Decrypt", CiphertextBlob=blob)["Plaintext"] == "x"


def service(do: Scenario) -> None:
    assert do("DescribeRegions")["Regions"]["Region"] == [{"RegionId": "cn-local"}]
    if do.has("OpenKmsService"):
        assert do("DescribeAccountKmsStatus")["AccountStatus"] == "Enabled"
        assert do.code("OpenKmsService") == "Forbidden.Opened"
    key = do.key()
    if do.has("SetKeyPolicy"):
        policy = do("GetKeyPolicy", KeyId=key)["Policy"]
        padded = policy[:-1] + " " * (32768 - len(policy)) + policy[-1]
        do("SetKeyPolicy", KeyId=key, Policy=padded, PolicyName="default")
        assert do("GetKeyPolicy", KeyId=key, PolicyName="default")["Policy"] == padded
    if do.has("ListKmsInstances"):
        instances = do("ListKmsInstances")["KmsInstances"]["KmsInstance"]
        (mine,) = [item["KmsInstanceId"] for item in instances if item["KmsInstanceId"].endswith(do.level.lower())]
        assert do("GetKmsInstance", KmsInstanceId=mine)["KmsInstance"]["InstanceId"] == mine
    if do.has("GetDefaultKmsInstance"):
        assert do("GetDefaultKmsInstance")["DefaultKmsInstanceId"].endswith("-software")


PARTS: tuple[Callable[[Scenario], None], ...] = (lifecycle, names_and_tags, pages, symmetric, asymmetric, imported, service)


def _tags(tags: Mapping[str, str]) -> str:
    return json.dumps([{"TagKey": key, "TagValue": value} for key, value in tags.items()])


def _old_node(do: Scenario) -> bool:
    """Its CreateKey has no Tags."""
    return "TagResources" in do.client.missing


def _no_region(do: Scenario) -> bool:
    """The old SDK sends its own RegionId."""
    return "GenerateMac" in do.client.missing
