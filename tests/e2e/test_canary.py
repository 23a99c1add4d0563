"""Markers in every field that bears a secret, in good requests and in bad ones: found afterwards in no log, error, metric or file."""

from __future__ import annotations

import base64
import http.client
import json
import re
import socket
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from collector import collector
from command import Command
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from test_serve import service
from wire import Wire

import kmscore
from kmscore import signing

FORM = "application/x-www-form-urlencoded"


def forms(marker: bytes) -> Iterator[bytes]:
    """A marker as it could be found again: raw, base64 wherever it began, hex, escaped, two bytes to a letter."""
    yield marker
    for shift in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            coded = encode(b"\x00" * shift + marker)
            yield coded[4 if shift else 0 : len(coded) - 4]
    yield marker.hex().encode()
    yield marker.hex().upper().encode()
    for pattern in ("%{:02X}", "%{:02x}", "\\x{:02x}", "\\u{:04x}"):
        yield "".join(pattern.format(byte) for byte in marker).encode()
    yield marker.decode().encode("utf-16-le")
    if quoted := urllib.parse.quote(marker, safe="").encode():
        yield quoted


def test_markers_are_found_in_whatever_form() -> None:
    marker = b"canary-0123456789"
    for text in (
        b"x" + marker,
        *(base64.b64encode(b"ab"[:shift] + marker + b"tail") for shift in range(3)),
        marker.hex().encode(),
        b"".join(b"%%%02X" % byte for byte in marker),
    ):
        assert any(form in text for form in forms(marker)), text
    assert not any(form in b"canary-0123456780" * 10 for form in forms(marker))


@dataclass
class Canaries:
    planted: dict[str, bytes] = field(default_factory=dict)

    def plant(self, where: str) -> str:
        """A new marker."""
        marker = f"canary{len(self.planted):03d}{uuid.uuid4().hex[:14]}"
        self.planted[where] = marker.encode()
        return marker

    def coded(self, where: str) -> str:
        """The same for a field that is base64."""
        return base64.b64encode(self.plant(where).encode()).decode()

    def found(self, data: bytes, *, but: tuple[str, ...] = ()) -> list[str]:
        return [where for where, marker in self.planted.items() if where not in but and any(form in data for form in forms(marker))]


@pytest.fixture(params=["HSM", "SOFTWARE"])
def level(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def asked(wire: Wire, level: str, canaries: Canaries) -> Iterator[tuple[str, dict[str, str]]]:
    """Calls with a secret in them: as they must be, and with values of the wrong type, size or encoding."""
    key = str(wire.call("CreateKey", ProtectionLevel=level)["KeyMetadata"]["KeyId"])
    mac = str(wire.call("CreateKey", ProtectionLevel=level, KeySpec="HMAC_256")["KeyMetadata"]["KeyId"])
    pair = wire.call("CreateKey", ProtectionLevel=level, KeySpec="RSA_2048", KeyUsage="ENCRYPT/DECRYPT")["KeyMetadata"]
    external = str(wire.call("CreateKey", ProtectionLevel=level, Origin="EXTERNAL")["KeyMetadata"]["KeyId"])
    version = wire.call("ListKeyVersions", KeyId=pair["KeyId"])["KeyVersions"]["KeyVersion"][0]["KeyVersionId"]
    plant, coded = canaries.plant, canaries.coded
    yield "Encrypt", {"KeyId": key, "Plaintext": plant("Plaintext")}
    yield "Encrypt", {"KeyId": key, "Plaintext": coded("Plaintext in base64"), "EncryptionContext": "{"}
    yield "Encrypt", {"KeyId": key, "Plaintext": plant("Plaintext, too long") * 300}
    yield "Encrypt", {"KeyId": "none", "Plaintext": plant("Plaintext for no key")}
    yield "Encrypt", {"KeyId": key, "Plaintext": plant("Plaintext, dry"), "DryRun": "true"}
    yield "Encrypt", {"KeyId": key, "plaintext": plant("a name in the wrong case")}
    yield "EncryptBatch", {"KeyId": key, "Plaintexts": json.dumps([coded("Plaintexts")])}
    yield "EncryptBatch", {"KeyId": key, "Plaintexts": plant("Plaintexts, no JSON")}
    yield "EncryptBatch", {"KeyId": key, "Plaintexts": json.dumps([plant("Plaintexts, no base64") + "!"])}
    yield "EncryptBatch", {"KeyId": key, "Plaintexts": json.dumps({plant("Plaintexts, an object"): plant("Plaintexts, its value")})}
    yield "Decrypt", {"CiphertextBlob": coded("elsewhere: as a ciphertext")}
    yield "Decrypt", {"CiphertextBlob": plant("elsewhere: as a ciphertext, no base64") + "!"}
    yield "GenerateMac", {"KeyId": mac, "Algorithm": "HMAC_SHA_256", "Message": coded("Message")}
    yield "GenerateMac", {"KeyId": mac, "Algorithm": "HMAC_SHA_256", "Message": plant("Message, no base64") + "!"}
    yield "VerifyMac", {"KeyId": mac, "Algorithm": "HMAC_SHA_256", "Message": coded("Message to verify"), "Mac": "AAAA"}
    encrypt = {"KeyId": pair["KeyId"], "KeyVersionId": version, "Algorithm": "RSAES_OAEP_SHA_256"}
    yield "AsymmetricEncrypt", {**encrypt, "Plaintext": coded("Plaintext of a pair")}
    yield "AsymmetricEncrypt", {**encrypt, "Plaintext": plant("Plaintext of a pair, no base64") + "!"}
    yield "AsymmetricEncrypt", {**encrypt, "Algorithm": "none", "Plaintext": coded("Plaintext of a pair, no algorithm")}
    material = {"KeyId": external, "EncryptedKeyMaterial": coded("EncryptedKeyMaterial"), "ImportToken": coded("ImportToken")}
    yield "ImportKeyMaterial", material
    yield "ImportKeyMaterial", {**material, "EncryptedKeyMaterial": plant("EncryptedKeyMaterial, no base64") + "!"}
    yield "ImportKeyMaterial", {**material, "ImportToken": plant("ImportToken, no base64") + "!"}
    offer = wire.call("GetParametersForImport", KeyId=external, WrappingAlgorithm="RSAES_OAEP_SHA_1", WrappingKeySpec="RSA_2048")
    yield "ImportKeyMaterial", {**material, "ImportToken": offer["ImportToken"]}
    public = serialization.load_der_public_key(base64.b64decode(offer["PublicKey"]))
    assert isinstance(public, rsa.RSAPublicKey)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)  # the only one that both levels have
    wrapped = public.encrypt(plant("imported material").encode().ljust(32, b"-"), oaep)
    good = {**material, "ImportToken": offer["ImportToken"], "EncryptedKeyMaterial": base64.b64encode(wrapped).decode()}
    wire.call("ImportKeyMaterial", **good)
    yield "ImportKeyMaterial", good
    yield "PutSecretValue", {"SecretName": "n", "VersionId": "v", "SecretData": plant("SecretData")}
    yield plant("elsewhere: as an action"), {}
    yield "TagResource", {"KeyId": key, "Tags": plant("elsewhere: as tags")}
    yield "DescribeKey", {"KeyId": key, "PageSize": plant("elsewhere: as a parameter that is not known")}


def v1(wire: Wire, action: str, params: dict[str, str], secret: str, **more: str) -> str:
    signed = {
        "Action": action,
        "Version": "2016-01-20",
        "AccessKeyId": wire.access_key_id,
        "SignatureMethod": "HMAC-SHA1",
        "SignatureVersion": "1.0",
        "SignatureNonce": uuid.uuid4().hex,
        "Timestamp": wire.signed("x", {})[1]["x-acs-date"],
        **params,
        **more,
    }
    return signing.canonical_query(signed | {"Signature": signing.v1_signature(secret, signing.v1_string_to_sign("POST", signed))})


def post(wire: Wire, query: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(wire.host, timeout=60)
    try:
        connection.request(
            "POST", f"/?{query}", body=body or None, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def ask_in_every_way(wire: Wire, action: str, params: dict[str, str]) -> Iterator[bytes]:
    """The answers that are errors: a right signature and wrong ones, of both schemes, in query and form."""
    for status, body in _answers(wire, action, params):
        if status >= 400:
            yield body


def _answers(wire: Wire, action: str, params: dict[str, str]) -> Iterator[tuple[int, bytes]]:
    target, headers = wire.signed(action, params)
    known = {name.replace("-", "_"): value for name, value in headers.items()}
    query = target[2:]
    yield post(wire, query, **known)
    yield post(wire, query, **known)  # a replay
    yield post(wire, f"{query}&x=y", **known)  # not what was signed
    yield post(wire, query, **(known | {"x_acs_date": "2020-01-01T00:00:00Z"}))
    yield post(wire, query, **(known | {"authorization": "ACS3-HMAC-SHA256 nonsense"}))
    yield post(wire, query)  # not signed
    yield post(wire, v1(wire, action, params, wire.secret))
    yield post(wire, v1(wire, action, params, "wrong"))
    yield post(wire, v1(wire, action, params, wire.secret, Timestamp="now"))
    yield post(wire, "", v1(wire, action, params, "wrong").encode(), content_type=FORM)
    yield post(wire, "", v1(wire, action, params, wire.secret).encode(), content_type="application/json")
    yield post(wire, "", json.dumps(params).encode(), content_type="application/json")
    yield post(wire, f"{query}&{query}")  # twice
    yield post(wire, f"{query}&x=%zz")
    yield post(wire, f"x={'a' * (300 << 10)}&{query}")


def unreadable(wire: Wire, canaries: Canaries) -> Iterator[bytes]:
    """What is no request at all, with a marker where a careless client puts its secrets."""
    host, _, port = wire.host.partition(":")
    for data in (
        b"Plaintext=%s\r\n\r\n" % canaries.plant("Plaintext on a bare line").encode(),
        b"POST / HTTP/1.1\r\nHost: a\r\nX-Plaintext: %s\x01\r\n\r\n" % canaries.plant("Plaintext in a header").encode(),
        b"POST /%s HTTP/1.1\r\nHost: a\r\n\r\n" % canaries.plant("Plaintext in the path").encode(),
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n" % canaries.plant("Plaintext as a chunk").encode(),
        b"BREW /?%s HTTP/1.1\r\nHost: a\r\n\r\n" % canaries.plant("Plaintext with no method").encode(),
    ):
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(1 << 16):
                yield part


def test_no_marker_is_found_anywhere(tmp_path: Path, level: str) -> None:
    kms = Command(tmp_path / "home", {} if level == "HSM" else {"KMS_PKCS11_MODULE": "none"})
    canaries = Canaries()
    with kmscore.open_kms(kms.home, ticker=False, **({} if level == "HSM" else {"pkcs11_module": "none"})) as engine:
        engine.create_user("eve", policy='{"Version":"1","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}')
        eve = engine.create_access_key("eve")
    canaries.planted["the secret of a user"] = eve.access_key_secret.encode()
    canaries.planted["the secret of the root"] = re.findall(r"secret=(\S+)", (kms.home / "credentials").read_text())[0].encode()
    if level == "HSM":
        canaries.planted["PIN"] = (kms.home / "pin").read_bytes().strip()
    # As much as can be told of each request: lines of both formats, and spans.
    kms.settings |= {"KMS_LOG_FORMAT": "json" if level == "HSM" else "text", "KMS_LOG_LEVEL": "DEBUG", "KMS_ACCESS_LOG": "1"}
    refusals: list[bytes] = []
    with ExitStack() as stack:
        environment, spans = stack.enter_context(collector())
        kms.settings |= environment
        errors = stack.enter_context((tmp_path / "errors").open("wb"))
        child, url = stack.enter_context(service(kms, stderr=errors))
        root, user = Wire.of(url, kms.home), Wire(url, eve.access_key_id, eve.access_key_secret)
        for wire in (root, user):
            stack.callback(wire._connection.close)
        for wire in (root, user) if level == "SOFTWARE" else (user,):
            for action, params in asked(wire, level, canaries):
                refusals += ask_in_every_way(wire, action, params)
        refusals += unreadable(root, canaries)
        refusals += [post(root, v1(root, "ListKeys", {}, "x", AccessKeyId="nobody", SignatureNonce=eve.access_key_secret))[1]]
        with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
            metrics = answer.read()
        child.terminate()
        assert child.wait(60) == 0
        assert child.stdout is not None
        output = child.stdout.read()
    log = (tmp_path / "errors").read_bytes()
    assert len(refusals) > 250
    assert all(json.loads(body)["RequestId"] for body in refusals if body.startswith(b"{"))
    assert b"kms_requests_total{" in metrics
    # What a caller puts elsewhere is said back to that caller where the old SDK wants the string to sign, and nowhere else.
    echoed = {where for where in canaries.planted if where.startswith("elsewhere: ")}
    leaks = {
        "errors": {where for body in refusals for where in canaries.found(body)} - echoed,
        "log": canaries.found(log),
        "output": canaries.found(output),
        "metrics": canaries.found(metrics),
        "spans": canaries.found(b"".join(spans)),
    }
    assert leaks == {"errors": set(), "log": [], "output": [], "metrics": [], "spans": []}
    assert log.count(b"kmscore.access" if level == "HSM" else b" status=") > 250
    assert b"custody." in b"".join(spans)
    assert b"Traceback" not in log
    own = {"credentials": "the secret of the root", "pin": "PIN"}
    for path in kms.home.rglob("*"):
        if path.is_file():
            assert canaries.found(path.read_bytes(), but=(own.get(str(path.relative_to(kms.home)), ""),)) == [], path


@pytest.mark.parametrize(
    ("toml", "environment"),
    [
        ("root_access_key_id = 'root'\nroot_access_key_secret = ['{}']\n", {}),
        ("root_access_key_secret = '{}'\n", {}),
        ("root_access_key_secret = '{}\n", {}),
        ("", {"KMS_ROOT_ACCESS_KEY_SECRET": "{}"}),
        ("", {"KMS_PKCS11_PIN_FILE": "pin-file"}),
    ],
)
def test_a_start_that_fails_tells_no_secret(tmp_path: Path, toml: str, environment: dict[str, str]) -> None:
    canaries = Canaries()
    marker = canaries.plant("a setting")
    kms = Command(tmp_path / "home", {name: value.format(marker) for name, value in environment.items()})
    if "KMS_PKCS11_PIN_FILE" in kms.settings:
        assert Command(kms.home).run("ListKeys").returncode == 0  # makes the token, with another PIN
        kms.settings["KMS_PKCS11_PIN_FILE"] = str(tmp_path / "pin-file")
        (tmp_path / "pin-file").write_text(marker)
        (tmp_path / "pin-file").chmod(0o600)
    kms.home.mkdir(mode=0o700, exist_ok=True)
    (kms.home / "kms.toml").write_text(toml.format(marker))
    done = kms.run("serve", "--listen", "127.0.0.1:0")
    assert done.returncode == 1, done
    assert canaries.found(done.stdout + done.stderr) == []
    assert b"Traceback" not in done.stderr
