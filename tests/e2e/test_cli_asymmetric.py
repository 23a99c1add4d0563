"""Asymmetric keys, MACs and exported data keys over the command line, with openssl as the other side: both ways, at both levels."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from command import Command, slow

MESSAGE = b"pay 100 to Alice"
# The same matrix runs within one process in tests/integration; here level SOFTWARE waits for make test-full.
LEVELS = (pytest.param("SOFTWARE", marks=pytest.mark.slow), "HSM")
# spec, algorithm, hash, what openssl must be told beside the hash
SIGNING = [
    ("RSA_2048", "RSA_PKCS1_SHA_256", "sha256", []),
    ("RSA_2048", "RSA_PSS_SHA_256", "sha256", ["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:32"]),
    ("EC_P256", "ECDSA_SHA_256", "sha256", []),
    ("EC_P256K", "ECDSA_SHA_256", "sha256", []),
    ("EC_P384", "ECDSA_SHA_384", "sha384", []),
    ("EC_P521", "ECDSA_SHA_512", "sha512", []),
]
QUICK = (("HSM", "EC_P256"), ("SOFTWARE", "EC_P384"))
OAEP = {
    "RSAES_OAEP_SHA_256": ["-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha256", "-pkeyopt", "rsa_mgf1_md:sha256"],
    "RSAES_OAEP_SHA_1": ["-pkeyopt", "rsa_padding_mode:oaep"],
}
CURVES = {"EC_P256": "prime256v1", "EC_P256K": "secp256k1", "EC_P384": "secp384r1", "EC_P521": "secp521r1"}


def openssl(*arguments: str | Path, stdin: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *map(str, arguments)], input=stdin, capture_output=True, check=True, timeout=60).stdout


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def unb64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


class Pair:
    """A key whose private half openssl has as well: it was imported."""

    def __init__(self, kms: Command, folder: Path, level: str, spec: str, *more: str) -> None:
        self.private, self.public = folder / "private.pem", folder / "public.pem"
        how = [f"ec_paramgen_curve:{CURVES[spec]}"] if spec in CURVES else [f"rsa_keygen_bits:{spec[4:]}"]
        openssl("genpkey", "-algorithm", "EC" if spec in CURVES else "RSA", "-pkeyopt", *how, "-out", self.private)
        created = kms.json("CreateKey", "--ProtectionLevel", level, "--KeySpec", spec, "--Origin", "EXTERNAL", *more)["KeyMetadata"]
        kms.text("import-key", created["KeyId"], "--file", self.private)
        (version,) = kms.json("ListKeyVersions", "--KeyId", created["KeyId"])["KeyVersions"]["KeyVersion"]
        self.names = ["--KeyId", version["KeyId"], "--KeyVersionId", version["KeyVersionId"]]
        self.answers = {"KeyId": version["KeyId"], "KeyVersionId": version["KeyVersionId"]}
        self.public.write_text(kms.json("GetPublicKey", *self.names)["PublicKey"])


@pytest.mark.parametrize(
    ("level", "spec", "algorithm", "digest", "options"),
    [
        pytest.param(level, *each, marks=[] if (level, each[0]) in QUICK else [pytest.mark.slow])
        for level in ("SOFTWARE", "HSM")
        for each in SIGNING
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_signatures(kms: Command, tmp_path: Path, level: str, spec: str, algorithm: str, digest: str, options: list[str]) -> None:
    pair = Pair(kms, tmp_path, level, spec)
    message, signature = tmp_path / "message", tmp_path / "signature"
    message.write_bytes(MESSAGE)
    given = [*pair.names, "--Algorithm", algorithm, "--Digest", b64(hashlib.new(digest, MESSAGE).digest())]

    signed = kms.json("AsymmetricSign", *given)
    assert signed == {**pair.answers, "Value": signed["Value"]}
    signature.write_bytes(unb64(signed["Value"]))
    said = openssl("dgst", f"-{digest}", *options, "-verify", pair.public, "-signature", signature, message)
    assert said == b"Verified OK\n"

    theirs = openssl("dgst", f"-{digest}", *options, "-sign", pair.private, message)
    assert kms.json("AsymmetricVerify", *given, "--Value", b64(theirs)) == {**pair.answers, "Value": True}
    wrong = theirs[:-1] + bytes([theirs[-1] ^ 1])
    assert kms.json("AsymmetricVerify", *given, "--Value", b64(wrong)) == {**pair.answers, "Value": False}


@pytest.mark.parametrize(
    ("level", "algorithm"),
    [
        ("SOFTWARE", "RSAES_OAEP_SHA_256"),
        slow("SOFTWARE", "RSAES_OAEP_SHA_1"),
        ("HSM", "RSAES_OAEP_SHA_1"),
        slow("HSM", "RSAES_OAEP_SHA_256"),
    ],
)
def test_encryption(kms: Command, tmp_path: Path, level: str, algorithm: str) -> None:
    pair = Pair(kms, tmp_path, level, "RSA_2048", "--KeyUsage", "ENCRYPT/DECRYPT")
    given = [*pair.names, "--Algorithm", algorithm]
    sealed = kms.json("AsymmetricEncrypt", *given, "--Plaintext", b64(MESSAGE))
    assert sealed == {**pair.answers, "CiphertextBlob": sealed["CiphertextBlob"]}
    opened = openssl("pkeyutl", "-decrypt", "-inkey", pair.private, *OAEP[algorithm], stdin=unb64(sealed["CiphertextBlob"]))
    assert opened == MESSAGE

    theirs = openssl("pkeyutl", "-encrypt", "-pubin", "-inkey", pair.public, *OAEP[algorithm], stdin=MESSAGE)
    assert kms.json("AsymmetricDecrypt", *given, "--CiphertextBlob", b64(theirs)) == {**pair.answers, "Plaintext": b64(MESSAGE)}
    wrong = {
        kms.refused("AsymmetricDecrypt", *given, "--CiphertextBlob", blob) for blob in (b64(theirs[:-1]), b64(bytes(256)), "no base64")
    }
    assert wrong == {'InvalidParameter: The specified parameter "CiphertextBlob" is not valid.'}

    symmetric = kms.json("CreateKey", "--ProtectionLevel", level)["KeyMetadata"]["KeyId"]
    source = ["--SourceKeyId", pair.names[1], "--SourceKeyVersionId", pair.names[3], "--SourceEncryptionAlgorithm", algorithm]
    moved = kms.json("ReEncrypt", "--CiphertextBlob", b64(theirs), *source, "--DestinationKeyId", symmetric)
    assert {name: moved[name] for name in pair.answers} == pair.answers
    assert kms.json("Decrypt", "--CiphertextBlob", moved["CiphertextBlob"])["Plaintext"] == b64(MESSAGE)


@pytest.mark.parametrize(
    ("level", "spec"), [("SOFTWARE", "RSA_2048"), slow("SOFTWARE", "EC_P256"), slow("HSM", "RSA_2048"), ("HSM", "EC_P256")]
)
def test_keys_that_are_made_here_sign_for_openssl(kms: Command, tmp_path: Path, level: str, spec: str) -> None:
    created = kms.json("CreateKey", "--ProtectionLevel", level, "--KeySpec", spec)["KeyMetadata"]
    assert (created["KeyUsage"], "PrimaryKeyVersion" in created) == ("SIGN/VERIFY", False)
    key = created["KeyId"]
    kms.json("rotate", key)
    first, second = kms.json("ListKeyVersions", "--KeyId", key)["KeyVersions"]["KeyVersion"]
    message, signature = tmp_path / "message", tmp_path / "signature"
    message.write_bytes(MESSAGE)
    algorithm = "RSA_PKCS1_SHA_256" if spec == "RSA_2048" else "ECDSA_SHA_256"
    pems = set()
    for version in (first, second):
        names = ["--KeyId", key, "--KeyVersionId", version["KeyVersionId"]]
        public = tmp_path / "public.pem"
        public.write_text(kms.json("GetPublicKey", *names)["PublicKey"])
        pems.add(public.read_text())
        digest = b64(hashlib.sha256(MESSAGE).digest())
        signature.write_bytes(unb64(kms.json("AsymmetricSign", *names, "--Algorithm", algorithm, "--Digest", digest)["Value"]))
        assert openssl("dgst", "-sha256", "-verify", public, "-signature", signature, message) == b"Verified OK\n"
    assert len(pems) == 2
    assert kms.code("Encrypt", "--KeyId", key, "--Plaintext", "x") in ("UnsupportedOperation", "Rejected.UnsupportedOperation")
    assert kms.code("UpdateRotationPolicy", "--KeyId", key, "--EnableAutomaticRotation", "true", "--RotationInterval", "30d") == (
        "Rejected.UnsupportedOperation"
    )
    kms.json("UpdateExtendedRotationPolicy", "--KeyId", key, "--EnableAutomaticRotation", "true", "--RotationInterval", "30d")
    assert kms.json("DescribeKey", "--KeyId", key)["KeyMetadata"]["RotationInterval"] == "2592000s"


@pytest.mark.parametrize(("level", "bits"), [("SOFTWARE", 384), ("HSM", 256)])
def test_macs(kms: Command, level: str, bits: int) -> None:
    created = kms.json("CreateKey", "--ProtectionLevel", level, "--KeySpec", f"HMAC_{bits}")["KeyMetadata"]
    assert created["KeyUsage"] == "GENERATE_VERIFY_MAC"
    given = ["--KeyId", created["KeyId"], "--Algorithm", f"HMAC_SHA_{bits}"]
    told = {"KeyId": created["KeyId"], "Algorithm": f"HMAC_SHA_{bits}"}
    for message in (b64(MESSAGE), ""):
        made = kms.json("GenerateMac", *given, f"--Message={message}")
        mac = unb64(made["Mac"])
        assert (made, len(mac)) == ({**told, "Mac": made["Mac"]}, bits // 8)
        assert kms.json("VerifyMac", *given, f"--Message={message}", "--Mac", made["Mac"]) == {**told, "Value": True}
    for wrong in (mac[:-1], mac[:-1] + bytes([mac[-1] ^ 1])):
        assert kms.json("VerifyMac", *given, "--Message=", "--Mac", b64(wrong)) == {**told, "Value": False}
    assert kms.code("GenerateMac", *given[:2], "--Algorithm", "HMAC_SM3", "--Message", "") == "InvalidParameter"
    other = "HMAC_SHA_512" if bits == 256 else "HMAC_SHA_256"
    assert kms.code("GenerateMac", *given[:2], "--Algorithm", other, "--Message", "") == "InvalidParameter"
    assert kms.code("rotate", created["KeyId"]) == "Rejected.UnsupportedOperation"


@pytest.mark.parametrize("algorithm", ["RSAES_OAEP_SHA_256", slow("RSAES_OAEP_SHA_1")])
def test_data_keys_are_exported_under_a_key_of_the_callers(kms: Command, key: str, tmp_path: Path, algorithm: str) -> None:
    private = tmp_path / "private.pem"
    openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072", "-out", private)
    public = b64(openssl("pkey", "-in", private, "-pubout", "-outform", "DER"))
    how = ["--PublicKeyBlob", public, "--WrappingAlgorithm", algorithm, "--WrappingKeySpec", "RSA_3072"]
    context = ["--EncryptionContext", json.dumps({"table": "orders"})]

    made = kms.json("GenerateAndExportDataKey", "--KeyId", key, "--NumberOfBytes", "24", *how, *context)
    data_key = openssl("pkeyutl", "-decrypt", "-inkey", private, *OAEP[algorithm], stdin=unb64(made["ExportedDataKey"]))
    assert len(data_key) == 24
    assert kms.json("Decrypt", "--CiphertextBlob", made["CiphertextBlob"], *context)["Plaintext"] == b64(data_key)

    again = kms.json("ExportDataKey", "--CiphertextBlob", made["CiphertextBlob"], *how, *context)
    assert set(again) == {"ExportedDataKey", "KeyId", "KeyVersionId"}
    assert openssl("pkeyutl", "-decrypt", "-inkey", private, *OAEP[algorithm], stdin=unb64(again["ExportedDataKey"])) == data_key
    assert "Plaintext" not in made
    how[-1] = "RSA_2048"
    assert '"PublicKeyBlob"' in kms.refused("ExportDataKey", "--CiphertextBlob", made["CiphertextBlob"], *how, *context)
