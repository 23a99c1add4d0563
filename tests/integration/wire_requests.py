"""Genuine signed requests as ASGI scopes, of our own signer and of the official Python SDKs, and the gate that they must pass."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
import socketserver
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote_plus

from kmscore import signing
from kmscore.api.params import FORM
from kmscore.api.request import Request, has_body, make_request
from kmscore.api.signatures import check_time, claim_of
from kmscore.errors import KmsError
from kmscore.operations.table import SECRETS

ACCESS_KEY, SECRET = "LTAI5tGenuine", "a secret of 30 letters or more!"
SCHEMES = ("V1 GET", "V1 POST", "V1 form", "ACS3", "ACS3 GET", "ACS3 form", "ACS4", "ACS4 form")
VALUES = (
    "",
    "a",
    "alias/demo key",
    '{"K1":"v 1*~","K2":"é"}',
    "SGVsbG8+/w==",
    "a+b c%20%",
    "\U0001f600\n\x00",
    "~!*'();:@&=+$,/?#[]",
    "Ⅷ" * 40,
)
NAMES = ("KeyId", "Plaintext", "EncryptionContext", "Description", "Tag.1.Key", "a b", "é", "x" * 40, "KeyID", "plaintext")


@dataclass
class Message:
    """What is on the line: raw, as an HTTP server hands it on."""

    method: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
    kind: str = ""

    def copy(self) -> Message:
        return Message(self.method, self.query, list(self.headers), self.body, self.kind)

    def header(self, name: bytes) -> bytes:
        return next((value for each, value in self.headers if each == name), b"")

    def set_header(self, name: bytes, value: bytes) -> None:
        self.headers = [(each, value if each == name else old) for each, old in self.headers]


@dataclass
class Gate:
    """The door's checks up to the nonce, for one access key; answers who asked what, with which nonce."""

    now: float = field(default_factory=lambda: datetime.now(UTC).timestamp())
    access_key: str = ACCESS_KEY
    secret: str = SECRET

    def let_in(self, message: Message) -> tuple[Request, str, str]:
        scope = {"type": "http", "method": message.method, "path": "/", "query_string": message.query, "headers": message.headers}
        has_body(scope)
        request = make_request(scope, message.body)
        claim = claim_of(request)
        if claim.access_key_id != self.access_key:
            raise KmsError("InvalidAccessKeyId.NotFound", "no such access key")
        claim.verify(self.secret, SECRETS)
        check_time(claim.stamp, self.now)
        return request, request.action(by_header=claim.by_header), claim.nonce


# --- our own signer ----------------------------------------------------------------------------------------------------------------


def genuine(scheme: str, rng: random.Random, now: float) -> Message:
    """A request by `scheme`, written on the line in one of the ways that clients have."""
    business = {name: rng.choice(VALUES) for name in rng.sample(NAMES, rng.randint(1, 5))}
    stamp = datetime.fromtimestamp(now + rng.randint(-800, 800), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    action, nonce = rng.choice(("Encrypt", "Decrypt", "DescribeKey")), uuid.UUID(int=rng.getrandbits(128)).hex
    if scheme.startswith("V1"):
        return _v1(scheme, business, stamp, action, nonce, rng)
    return _acs(scheme, business, stamp, action, nonce, rng)


def _v1(scheme: str, business: dict[str, str], stamp: str, action: str, nonce: str, rng: random.Random) -> Message:
    method = "GET" if scheme.endswith("GET") else "POST"
    common = {
        "Action": action,
        "Version": "2016-01-20",
        "Format": "JSON",
        "AccessKeyId": ACCESS_KEY,
        "SignatureMethod": "HMAC-SHA1",
        "SignatureVersion": "1.0",
        "SignatureNonce": nonce,
        "Timestamp": stamp,
        "RegionId": "cn-local",
        "SignatureType": "",
    }
    common["Signature"] = signing.v1_signature(SECRET, signing.v1_string_to_sign(method, common | business))
    headers = [(b"host", b"kms.test"), (b"accept", b"*/*")]
    if scheme == "V1 form":
        if rng.random() < 0.5:  # all of it, or the business parameters only
            return Message(method, b"", [*headers, (b"content-type", FORM.encode())], written(common | business, rng), scheme)
        return Message(method, written(common, rng), [*headers, (b"content-type", FORM.encode())], written(business, rng), scheme)
    return Message(method, written(common | business, rng), headers, b"", scheme)


def _acs(scheme: str, business: dict[str, str], stamp: str, action: str, nonce: str, rng: random.Random) -> Message:
    method = "GET" if scheme.endswith("GET") else "POST"
    names = list(business)
    in_form = names[: rng.randint(1, len(names))] if scheme.endswith("form") else []
    body = written({name: business[name] for name in in_form}, rng)
    query = {name: business[name] for name in names if name not in in_form}
    headers = {
        "host": "127.0.0.1:8480",
        "x-acs-action": action,
        "x-acs-content-sha256": hashlib.sha256(body).hexdigest(),
        "x-acs-date": stamp,
        "x-acs-signature-nonce": nonce,
        "x-acs-version": "2016-01-20",
    }
    if body:
        headers["content-type"] = FORM
    if rng.random() < 0.5:
        headers |= {"accept": "application/json", "user-agent": "kms-test/1.0 (ü)", "x-acs-credentials-provider": "static_ak"}
    signed = sorted(headers.items())
    text = signing.canonical_request(method, signing.canonical_query(query), signed, headers["x-acs-content-sha256"])
    algorithm, credential, key = signing.ACS3, ACCESS_KEY, SECRET.encode()
    if scheme.startswith("ACS4"):
        day, region = stamp[:10].replace("-", ""), "cn-hangzhou"
        algorithm, credential = signing.ACS4, f"{ACCESS_KEY}/{signing.acs4_scope(day, region, 'Kms')}"
        key = signing.acs4_key(SECRET, day, region, "Kms")
    signature = signing.acs_signature(key, signing.acs_string_to_sign(algorithm, text))
    listed = signing.signed_names(name for name, _ in signed)
    headers["authorization"] = f"{algorithm} Credential={credential},SignedHeaders={listed},Signature={signature}"
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    rng.shuffle(raw)
    return Message(method, written(query, rng), raw, body, scheme)


def written(params: dict[str, str], rng: random.Random) -> bytes:
    """Parameters on the line as one client or another writes them; all mean the same."""
    items = list(params.items())
    rng.shuffle(items)
    safe, plus, lower = rng.choice(("", "/", "!*'()~", "/:@,;?$[]")), rng.random() < 0.5, rng.random() < 0.3

    def write(text: str) -> str:
        out = quote_plus(text, safe=safe) if plus else quote_plus(text, safe=safe).replace("+", "%20")
        return "".join(f"%{part[:2].lower()}{part[2:]}" if i else part for i, part in enumerate(out.split("%"))) if lower else out

    return "&".join(f"{write(name)}={write(value)}" for name, value in items).encode()


# --- the official SDKs for Python --------------------------------------------------------------------------------------------------


@contextmanager
def line() -> Iterator[tuple[int, list[Message]]]:
    """A port, and what was sent to it. Every request is answered as a success."""
    caught: list[Message] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while first := self.rfile.readline():
                method, target, _ = first.decode().split(" ")
                headers = []
                while (raw := self.rfile.readline().rstrip(b"\r\n")) != b"":
                    name, _, value = raw.partition(b":")
                    headers.append((name.lower(), value.strip()))
                size = int(dict(headers).get(b"content-length", b"0"))
                caught.append(Message(method, target.partition("?")[2].encode(), headers, self.rfile.read(size)))
                answer = b'{"RequestId":"r"}'
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1], caught
        finally:
            server.shutdown()
            thread.join()


CONTEXTS = ({"K1": "v 1*~", "K2": "é"}, {}, {"a": "b"}, {"\U0001f600": "+ /&=?%"})


def sdk_messages(rounds: int, seed: int = 1) -> list[Message]:
    """Requests of alibabacloud-kms20160120 (ACS3, V1, ACS4; sync, async) and of aliyun-python-sdk-kms (V1)."""
    rng = random.Random(seed)
    with line() as (port, caught):
        for kind, send in _senders(port).items():
            before = len(caught)
            for _ in range(rounds):
                send(rng)
            for message in caught[before:]:
                message.kind = kind
        return caught


def _senders(port: int) -> dict[str, Any]:
    from alibabacloud_kms20160120 import models
    from alibabacloud_kms20160120.client import Client
    from alibabacloud_tea_openapi.models import Config
    from aliyunsdkcore.client import AcsClient
    from aliyunsdkkms.request.v20160120.EncryptRequest import EncryptRequest

    def made(rng: random.Random) -> Any:
        plain = base64.b64encode(rng.randbytes(rng.randint(1, 60))).decode()
        return models.EncryptRequest(key_id=rng.choice(("alias/demo key", "k-1")), plaintext=plain, encryption_context=rng.choice(CONTEXTS))

    def new(**more: Any) -> Any:
        client = Client(
            Config(
                access_key_id=ACCESS_KEY, access_key_secret=SECRET, endpoint=f"127.0.0.1:{port}", protocol="http", region_id="cn-x", **more
            )
        )
        return lambda rng: client.encrypt(made(rng))

    def new_async(rng: random.Random) -> None:
        config = Config(access_key_id=ACCESS_KEY, access_key_secret=SECRET, endpoint=f"127.0.0.1:{port}", protocol="http")
        asyncio.run(Client(config).encrypt_async(made(rng)))

    def form(rng: random.Random) -> None:
        config = Config(access_key_id=ACCESS_KEY, access_key_secret=SECRET, endpoint=f"127.0.0.1:{port}", protocol="http")
        data = rng.choice(("p@ss w+é", "a=b&c", "\x00", "x" * 300))
        Client(config).put_secret_value(models.PutSecretValueRequest(secret_name="n", version_id="v1", secret_data=data))

    old = AcsClient(ACCESS_KEY, SECRET, "cn-hangzhou")

    def old_sdk(rng: random.Random) -> None:
        request = EncryptRequest()
        request.set_endpoint(f"127.0.0.1:{port}")
        request.set_protocol_type("http")
        request.set_KeyId("alias/demo key")
        request.set_Plaintext(base64.b64encode(rng.randbytes(9)).decode())
        request.set_EncryptionContext(json.dumps(rng.choice(CONTEXTS)))
        old.do_action_with_exception(request)

    return {
        "SDK ACS3": new(),
        "SDK V1": new(signature_algorithm="v2"),
        "SDK ACS4": new(signature_version="v4"),
        "SDK async": new_async,
        "SDK form": form,
        "SDK old": old_sdk,
    }
