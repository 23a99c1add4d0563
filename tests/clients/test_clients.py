"""The official clients, unmodified, against a running service: every operation, typed errors, many at once."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from adapters import HERE, AsyncPython, ClientError, Node, NodePackage, OldPython, PopCore, Python
from command import ROOT, Command
from darabonba.policy.retry import RetryOptions
from scenario import CONTEXT, PARTS, Client, Scenario
from test_serve import service

from kmscore.config import read_credentials
from kmscore.operations import OPERATIONS

# Newer Pythons deprecate what the clients call.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:(aliyunsdk|alibabacloud|darabonba|Tea)\w*(\..*)?")

DOCUMENTED = {operation.name for operation in OPERATIONS.values() if not operation.extension}


@dataclass
class Server:
    host: str
    access_key: tuple[str, str]
    node: Node
    made: dict[str, Any] = field(default_factory=dict)

    def client(self, name: str) -> Any:
        if name not in self.made:
            self.made[name] = CLIENTS[name](self)
        return self.made[name]


CLIENTS: dict[str, Callable[[Server], Client]] = {
    "python": lambda server: Python(server.host, *server.access_key),
    "python-async": lambda server: AsyncPython(server.host, *server.access_key),
    "python-v1": lambda server: Python(server.host, *server.access_key, signature_algorithm="v2"),
    "python-acs4": lambda server: Python(server.host, *server.access_key, signature_version="v4"),
    "old-python": lambda server: OldPython(server.host, *server.access_key),
    "node": lambda server: NodePackage(server.node),
    "pop-core-get": lambda server: PopCore(server.node, "get"),
    "pop-core-post": lambda server: PopCore(server.node, "post"),
}


@pytest.fixture(scope="module")
def modules() -> Path:
    """The npm packages, installed once for each list of them, outside of what is committed."""
    for program in ("node", "npm"):
        assert shutil.which(program), f"{program} is needed (Debian: apt-get install nodejs npm)"
    listed = HERE / "node" / "package.json"
    place = ROOT / ".venv" / "node" / hashlib.sha256(listed.read_bytes()).hexdigest()[:16]
    if not (place / "done").exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        shutil.copy(listed, place)
        subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"], cwd=place, check=True, timeout=280
        )
        (place / "done").touch()
    return place / "node_modules"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, modules: Path) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("clients") / "home"
    with service(Command(home)) as (_, url):
        host, access_key = url.removeprefix("http://"), read_credentials(home / "credentials")
        with closing(Node(modules, host, *access_key)) as node:
            server = Server(host, access_key, node)
            yield server
            for client in server.made.values():
                if isinstance(client, OldPython):
                    client.close()


# --- a quick pass of each ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLIENTS)
def test_a_first_session(server: Server, name: str) -> None:
    do = Scenario(server.client(name), "HSM")
    key = do.key()
    blob = do("Encrypt", KeyId=key, Plaintext="aGVsbG8=", EncryptionContext=CONTEXT)["CiphertextBlob"]
    assert do("Decrypt", CiphertextBlob=blob, EncryptionContext=CONTEXT)["Plaintext"] == "aGVsbG8="
    assert do.code("Decrypt", CiphertextBlob=blob) == "InvalidParameter"  # no client's context is silently dropped
    assert do.code("DescribeKey", KeyId="key-none") == "Forbidden.KeyNotFound"
    server.made.setdefault("blobs", []).append(blob)


def test_what_one_client_encrypts_the_others_decrypt(server: Server) -> None:
    for name in CLIENTS:
        for blob in server.made["blobs"]:
            assert (
                Scenario(server.client(name), "HSM")("Decrypt", CiphertextBlob=blob, EncryptionContext=CONTEXT)["Plaintext"] == "aGVsbG8="
            )


@pytest.mark.parametrize("name", CLIENTS)
def test_what_a_client_lacks_is_what_its_package_lacks(server: Server, name: str) -> None:
    client = server.client(name)
    assert {action for action in DOCUMENTED if not client.offers(action)} == client.missing


# --- everything --------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("level", ["SOFTWARE", "HSM"])
@pytest.mark.parametrize("name", CLIENTS)
def test_every_operation(server: Server, name: str, level: str) -> None:
    do = Scenario(server.client(name), level)
    for part in PARTS:
        part(do)
    assert do.called == DOCUMENTED - do.client.missing


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CLIENTS if name != "python-async"])
def test_eight_at_once(server: Server, name: str) -> None:
    client = server.client(name)
    do = Scenario(client, "HSM")
    key = do.key()

    def work(number: int) -> None:
        text = base64.b64encode(os.urandom(32)).decode()
        blob = client.call("Encrypt", {"KeyId": key, "Plaintext": text})["CiphertextBlob"]
        assert client.call("Decrypt", {"CiphertextBlob": blob})["Plaintext"] == text

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(80)))


ALPHABET = " +%&=~*'()!/\\\"?#@:;,$^|{}[]<>`.-_aZ09é中\u00a0\u2028\uff5e\U0001f600"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["python", "python-v1", "old-python", "node", "pop-core-post"])
def test_two_thousand_genuine_requests_are_all_taken(server: Server, name: str) -> None:
    """Of each client: texts that every client encodes in its own way, also as names of a flattened map."""
    client = server.client(name)
    key = Scenario(client, "SOFTWARE").key()
    draw = random.Random(name)

    def text() -> str:
        return "".join(draw.choices(ALPHABET, k=draw.randint(1, 24)))

    def work(params: dict[str, Any]) -> None:
        blob = client.call("Encrypt", params)["CiphertextBlob"]
        given = {name: value for name, value in params.items() if name == "EncryptionContext"}
        assert client.call("Decrypt", {"CiphertextBlob": blob, **given})["Plaintext"] == params["Plaintext"]

    contexts = [{text(): text() for _ in range(draw.randint(1, 4))} for _ in range(1000)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [{"KeyId": key, "Plaintext": text(), "EncryptionContext": context} for context in contexts]))


@pytest.mark.slow
def test_eight_at_once_in_one_loop(server: Server) -> None:
    client: AsyncPython = server.client("python-async")
    key = Scenario(client, "HSM").key()

    async def work(number: int) -> None:
        text = base64.b64encode(os.urandom(32)).decode()
        blob = (await client.call_async("Encrypt", {"KeyId": key, "Plaintext": text}))["CiphertextBlob"]
        assert (await client.call_async("Decrypt", {"CiphertextBlob": blob}))["Plaintext"] == text

    async def all_of_them() -> None:
        for _ in range(10):
            await asyncio.gather(*(work(number) for number in range(8)))

    asyncio.run(all_of_them())


@pytest.mark.slow
@pytest.mark.parametrize("name", CLIENTS)
def test_errors_have_the_type_and_the_status(server: Server, name: str) -> None:
    client = server.client(name)
    key = Scenario(client, "SOFTWARE").key()
    client.call("DisableKey", {"KeyId": key})
    for status, code, action, params in (
        (404, "Forbidden.KeyNotFound", "DescribeKey", {"KeyId": "key-none"}),
        (409, "Rejected.Disabled", "Encrypt", {"KeyId": key, "Plaintext": "x"}),
        (400, "InvalidParameter", "ListKeys", {"PageSize": 101}),
    ):
        with pytest.raises(ClientError) as refused:
            client.call(action, params)
        assert refused.value.code == code
        assert_typed(name, refused.value.error, status)


def assert_typed(name: str, error: Any, status: int) -> None:
    match name:
        case "python-acs4":  # in this mode it has no field for the status
            assert type(error).__name__ == "UnretryableException"
            assert f"code: {status}," in str(error)
        case "python" | "python-async" | "python-v1":
            assert type(error).__name__ == "ClientException"
            assert (error.status_code, error.data["HttpStatus"]) == (status, status)
            assert error.request_id == error.data["RequestId"]
        case "old-python":
            assert error.get_http_status() == status
            assert error.get_request_id()
        case "node":
            assert f"code: {status}," in error["message"]
        case _:
            assert error["status"] == status


@pytest.mark.slow
@pytest.mark.parametrize("mode", [{}, {"signature_algorithm": "v2"}, {"signature_version": "v4"}], ids=["acs3", "v1", "acs4"])
def test_an_endpoint_with_its_scheme(server: Server, mode: dict[str, str]) -> None:
    """The Host of such a client is http://ADDRESS, and is signed as that."""
    assert Scenario(Python(f"http://{server.host}", *server.access_key, **mode), "HSM")("ListKeys")["PageNumber"] == 1


@pytest.mark.slow
def test_a_wrong_secret(server: Server, modules: Path) -> None:
    access_key_id, _ = server.access_key
    wrong = (server.host, access_key_id, "wrong")
    with closing(Node(modules, *wrong)) as node:
        clients = (
            Python(*wrong),
            Python(*wrong, signature_algorithm="v2"),
            Python(*wrong, signature_version="v4"),
            NodePackage(node),
            PopCore(node, "get"),
            PopCore(node, "post"),
        )
        for client in clients:
            assert Scenario(client, "HSM").code("ListKeys") == "SignatureDoesNotMatch"
    with closing(OldPython(*wrong)) as old:
        # It compares what the service says it signed with what it did, and concludes that it is the secret.
        assert Scenario(old, "HSM").code("ListKeys") == "InvalidAccessKeySecret"
        with pytest.raises(ClientError) as refused:
            old.call("Encrypt", {"KeyId": "k", "Plaintext": "c2VjcmV0"})
        assert refused.value.code == "SignatureDoesNotMatch"
        assert "c2VjcmV0" not in str(refused.value.error)
    assert Scenario(Python(server.host, "KMSNONE", "x"), "HSM").code("ListKeys") == "InvalidAccessKeyId.NotFound"


@pytest.mark.slow
def test_throttling_is_typed_and_says_when_to_come_again(tmp_path: Path) -> None:
    kms = Command(tmp_path / "home", {"KMS_PKCS11_MODULE": "", "KMS_REQUESTS_PER_SECOND": "1"})
    with service(kms) as (_, url):
        client = Python(url.removeprefix("http://"), *read_credentials(kms.home / "credentials"))
        with pytest.raises(ClientError) as refused:
            for _ in range(4):
                client.call("ListKeys", {})
        assert refused.value.code == "Rejected.Throttling"
        error: Any = refused.value.error
        assert type(error).__name__ == "ThrottlingException"
        assert 0 < error.retry_after <= 1000
        assert error.status_code == 429


@pytest.mark.slow
def test_a_client_that_retries_gets_through_a_throttled_service(tmp_path: Path) -> None:
    """Every attempt has a nonce of its own and signed headers that count the attempts."""
    kms = Command(tmp_path / "home", {"KMS_PKCS11_MODULE": "", "KMS_REQUESTS_PER_SECOND": "2"})
    condition = {"maxAttempts": 4, "errorCode": ["Rejected.Throttling"], "exception": ["ThrottlingException"], "maxDelay": 1000}
    options = RetryOptions({"retryable": True, "retryCondition": [condition]})
    with service(kms) as (_, url):
        access_key = read_credentials(kms.home / "credentials")
        client = Python(url.removeprefix("http://"), *access_key, retry_options=options)
        for _ in range(6):  # four at once are let through
            client.call("ListKeys", {})
        with pytest.raises(ClientError, match="Throttling"):
            for _ in range(6):
                Python(url.removeprefix("http://"), *access_key).call("ListKeys", {})
