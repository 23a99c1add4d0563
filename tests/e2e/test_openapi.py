"""docs/openapi.json against a running service: what it says may be sent is answered as it says, and whatever else is sent is refused so."""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from command import Command
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_serve import service

from kmscore import signing
from kmscore.api.params import decode_params
from kmscore.config import read_credentials
from kmscore.errors import KmsError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import schemathesis
    from schemathesis import checks
    from schemathesis.specs.openapi import checks as of_openapi

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = schemathesis.openapi.from_path(ROOT / "docs" / "openapi.json")
OPERATIONS = [result.ok() for result in SCHEMA.get_all_operations()]
CHECKS = [
    checks.not_a_server_error,
    checks.response_schema_conformance,
    of_openapi.status_code_conformance,
    of_openapi.content_type_conformance,
]


class Signed(requests.auth.AuthBase):
    """ACS3. The action is that of the query, where a header says it too; a query that cannot be read is signed as if it were empty."""

    def __init__(self, access_key_id: str, secret: str) -> None:
        self._access_key_id = access_key_id
        self._secret = secret

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        parts = urlsplit(str(request.url))
        body = request.body or b""
        body = body.encode() if isinstance(body, str) else body
        try:
            params = decode_params(parts.query.encode())
        except KmsError:
            params = {}
        headers = {
            "host": parts.netloc,
            "x-acs-action": params.get("Action", "none").encode("latin-1", "replace").decode("latin-1"),
            "x-acs-content-sha256": hashlib.sha256(body).hexdigest(),
            "x-acs-date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "x-acs-signature-nonce": uuid.uuid4().hex,
            "x-acs-version": params.get("Version", "none").encode("latin-1", "replace").decode("latin-1"),
        }
        signed = sorted(headers.items())
        text = signing.canonical_request(str(request.method), signing.canonical_query(params), signed, headers["x-acs-content-sha256"])
        signature = signing.acs_signature(self._secret.encode(), signing.acs_string_to_sign(signing.ACS3, text))
        names = signing.signed_names(name for name, _ in signed)
        request.headers.update(headers)
        request.headers["authorization"] = f"{signing.ACS3} Credential={self._access_key_id},SignedHeaders={names},Signature={signature}"
        return request


@dataclass
class Service:
    url: str
    auth: Signed
    errors: Path

    def ask(self, action: str, **params: str) -> dict[str, Any]:
        query = {"Action": action, "Version": "2016-01-20", **params}
        answer = requests.post(self.url, params=query, auth=self.auth, timeout=60)
        found: dict[str, Any] = answer.json()
        assert answer.status_code == 200, found
        return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("openapi")
    kms = Command(folder / "home", {"KMS_PKCS11_MODULE": "none"})
    with (folder / "errors").open("wb") as errors, service(kms, stderr=errors) as (_, url):
        yield Service(url, Signed(*read_credentials(kms.home / "credentials")), folder / "errors")


KINDS = {
    "crypto-mac": {"KeySpec": "HMAC_256"},
    "crypto-asymmetric": {"KeySpec": "EC_P256", "KeyUsage": "SIGN/VERIFY"},
    "import": {"Origin": "EXTERNAL"},
}


@pytest.fixture
def real(served: Service, operation: Any) -> dict[str, str]:
    """Values by which an operation finds something."""
    group = operation.tags[0]
    key = served.ask("CreateKey", ProtectionLevel="SOFTWARE", **KINDS.get(group, {}))["KeyMetadata"]["KeyId"]
    values = dict.fromkeys(("KeyId", "SourceKeyId", "DestinationKeyId", "ResourceId.1"), key)
    if group == "crypto-asymmetric":
        values["KeyVersionId"] = served.ask("ListKeyVersions", KeyId=key)["KeyVersions"]["KeyVersion"][0]["KeyVersionId"]
        values |= {"Algorithm": "ECDSA_SHA_256", "Digest": base64.b64encode(bytes(32)).decode()}
    if group == "crypto-mac":
        values |= {"Algorithm": "HMAC_SHA_256", "Message": "AAAA"}
    if group == "crypto-symmetric":
        values["Plaintexts"] = '["AAAA"]'
        values["CiphertextBlob"] = served.ask("Encrypt", KeyId=key, Plaintext="a")["CiphertextBlob"]
        values["CiphertextBlobs"] = json.dumps(served.ask("EncryptBatch", KeyId=key, Plaintexts='["AAAA"]')["CiphertextBlobs"])
    if group == "alias":
        values["AliasName"] = f"alias/{operation.label.rpartition('=')[2]}"
    return values


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label.rpartition("=")[2])
def test_an_operation(served: Service, operation: Any, real: dict[str, str]) -> None:
    """Parameters as they may be, some of them such that something is found; then parameters as they may not be."""
    told: Counter[int] = Counter()
    modes = schemathesis.GenerationMode
    cases = st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in (modes.POSITIVE, modes.POSITIVE, modes.NEGATIVE)))
    with requests.Session() as session:

        @given(case=cases, found=st.sets(st.sampled_from(sorted(real))))
        @settings(
            max_examples=40,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def ask(case: Any, found: set[str]) -> None:
            if isinstance(case.query, dict):
                case.query |= {name: real[name] for name in found if name in case.query}
            try:
                response = case.call(base_url=served.url, session=session, auth=served.auth)
            except (requests.exceptions.InvalidHeader, UnicodeError):
                return  # what no client can send
            case.validate_response(response, checks=CHECKS)
            assert response.json()["RequestId"]
            told[response.status_code] += 1

        ask()
    assert told.total() > 20
    log = served.errors.read_text()
    assert "Traceback" not in log
    assert "unexpected" not in log
