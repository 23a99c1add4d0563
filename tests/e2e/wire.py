"""A client of the wire for tests: signs as the SDKs do (ACS3), keeps its connection, shows whatever comes back."""

from __future__ import annotations

import http.client
import json
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from command import Command
from test_serve import service

from kmscore import signing
from kmscore.config import read_credentials


@dataclass
class Answer:
    status: int
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def code(self) -> str:
        return str(self.body.get("Code", ""))


class Wire:
    def __init__(self, url: str, access_key_id: str, secret: str) -> None:
        self.host = url.removeprefix("http://")
        self.access_key_id = access_key_id
        self.secret = secret
        self._connection = http.client.HTTPConnection(self.host, timeout=60)

    def close(self) -> None:
        self._connection.close()

    @classmethod
    def of(cls, url: str, home: Path) -> Wire:
        """As the account itself."""
        return cls(url, *read_credentials(home / "credentials"))

    def signed(self, action: str, params: dict[str, str], **changed: str) -> tuple[str, dict[str, str]]:
        """(target, headers) of a POST; `changed` replaces headers before they are signed, with _ for -."""
        headers = {
            "host": self.host,
            "x-acs-version": "2016-01-20",
            "x-acs-action": action,
            "x-acs-date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "x-acs-signature-nonce": uuid.uuid4().hex,
            "x-acs-content-sha256": signing.EMPTY_SHA256,
            **{name.replace("_", "-"): value for name, value in changed.items()},
        }
        query = signing.canonical_query(params)
        names = sorted(headers)
        request = signing.canonical_request("POST", query, [(n, headers[n]) for n in names], headers["x-acs-content-sha256"])
        signature = signing.acs_signature(self.secret.encode(), signing.acs_string_to_sign(signing.ACS3, request))
        credential = f"Credential={self.access_key_id},SignedHeaders={';'.join(names)},Signature={signature}"
        return f"/?{query}", {**headers, "authorization": f"{signing.ACS3} {credential}", "content-length": "0"}

    def send(self, target: str, headers: dict[str, str], method: str = "POST") -> Answer:
        self._connection.request(method, target, headers=headers)
        answer = self._connection.getresponse()
        return Answer(answer.status, json.loads(answer.read()), {name.lower(): value for name, value in answer.getheaders()})

    def ask(self, action: str, **params: Any) -> Answer:
        return self.send(*self.signed(action, {name.replace("__", "."): str(value) for name, value in params.items()}))

    def call(self, action: str, **params: Any) -> dict[str, Any]:
        """What a call that must succeed answers."""
        answer = self.ask(action, **params)
        assert answer.status == 200, answer
        assert "Code" not in answer.body
        assert len(answer.body["RequestId"]) == 36
        return answer.body

    def code(self, action: str, **params: Any) -> str:
        """The code of a call that must be refused."""
        answer = self.ask(action, **params)
        assert answer.status >= 400, answer
        assert answer.body["HttpStatus"] == answer.status
        assert answer.headers["content-type"].startswith("application/json")
        return answer.code


@contextmanager
def served(kms: Command, *arguments: str) -> Iterator[Wire]:
    with service(kms, *arguments) as (_, url), closing(Wire.of(url, kms.home)) as wire:
        yield wire
