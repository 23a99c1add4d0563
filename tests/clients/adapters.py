"""The official clients behind one face: `call(action, params)` with the wire's names, the code of an error as `ClientError`.

Parameters are as a user of the client passes them: a context is a map, numbered parameters are lists, JSON texts are text.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import os
import queue
import subprocess
import threading
import warnings
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kmscore.operations.kinds import snake_case

with warnings.catch_warnings():  # of the clients themselves, and of what they import
    warnings.simplefilter("ignore")
    from alibabacloud_kms20160120 import models
    from alibabacloud_kms20160120.client import Client as KmsClient
    from alibabacloud_tea_openapi.models import Config
    from aliyunsdkcore.acs_exception.exceptions import ServerException
    from aliyunsdkcore.client import AcsClient

HERE = Path(__file__).parent
Params = Mapping[str, Any]


class ClientError(Exception):
    def __init__(self, code: str, error: object) -> None:
        super().__init__(code)
        self.code = code
        self.error = error


class Python:
    """alibabacloud-kms20160120, the current SDK."""

    missing: frozenset[str] = frozenset()

    def __init__(self, host: str, access_key_id: str, secret: str, **config: Any) -> None:
        self.client = KmsClient(Config(endpoint=host, protocol="http", access_key_id=access_key_id, access_key_secret=secret, **config))

    def offers(self, action: str) -> bool:
        return hasattr(self.client, snake_case(action))

    def call(self, action: str, params: Params) -> dict[str, Any]:
        method = getattr(self.client, snake_case(action))
        try:
            return dict(method(*self._request(method, action, params)).body.to_map())
        except Exception as error:
            raise ClientError(getattr(error, "code", ""), error) from error

    def _request(self, method: Any, action: str, params: Params) -> list[Any]:
        if not inspect.signature(method).parameters:
            assert not params
            return []
        request = getattr(models, f"{action}Request")()
        request.from_map(dict(params))
        assert set(params) <= set(request.to_map()), (action, params, request.to_map())  # from_map drops what it does not know
        return [request]


class AsyncPython(Python):
    """Its other half: `..._async`."""

    def offers(self, action: str) -> bool:
        return hasattr(self.client, f"{snake_case(action)}_async")

    def call(self, action: str, params: Params) -> dict[str, Any]:
        return asyncio.run(self.call_async(action, params))

    async def call_async(self, action: str, params: Params) -> dict[str, Any]:
        method = getattr(self.client, f"{snake_case(action)}_async")
        try:
            return dict((await method(*self._request(method, action, params))).body.to_map())
        except Exception as error:
            raise ClientError(getattr(error, "code", ""), error) from error


class OldPython:
    """aliyun-python-sdk-kms."""

    missing = frozenset({"GenerateMac", "VerifyMac", "GetDefaultKmsInstance"})

    def __init__(self, host: str, access_key_id: str, secret: str) -> None:
        self.host = host
        self.client = AcsClient(access_key_id, secret, "cn-hangzhou")

    def close(self) -> None:
        """It closes its connections when it is collected, but a socket may be collected before it, and warns in whatever test runs then."""
        self.client.session.close()

    def offers(self, action: str) -> bool:
        return find_spec(f"aliyunsdkkms.request.v20160120.{action}Request") is not None

    def call(self, action: str, params: Params) -> dict[str, Any]:
        request = getattr(import_module(f"aliyunsdkkms.request.v20160120.{action}Request"), f"{action}Request")()
        request.set_endpoint(self.host)
        request.set_protocol_type("http")
        for name, value in params.items():
            set_it = getattr(request, f"set_{name}", None) or getattr(request, f"set_{name}s")
            set_it(json.dumps(value) if isinstance(value, dict) else value)
        try:
            return dict(json.loads(self.client.do_action_with_exception(request)))
        except ServerException as error:
            raise ClientError(error.get_error_code(), error) from error


class Node:
    """A process of Node.js with the npm packages in it; `client` says which: kms, get (pop-core) or post."""

    def __init__(self, modules: Path, host: str, access_key_id: str, secret: str) -> None:
        self._process = subprocess.Popen(
            ["node", str(HERE / "node" / "client.js"), host, access_key_id, secret],
            env={**os.environ, "NODE_PATH": str(modules), "NODE_NO_WARNINGS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._numbers = itertools.count()
        self._writing = threading.Lock()
        self._waiting: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            said = json.loads(line)
            self._waiting.pop(said["id"]).put(said)

    def call(self, client: str, action: str, params: Params) -> dict[str, Any]:
        number, answered = next(self._numbers), queue.SimpleQueue[dict[str, Any]]()
        self._waiting[number] = answered
        assert self._process.stdin
        line = json.dumps({"id": number, "client": client, "action": action, "params": dict(params)}) + "\n"
        with self._writing:
            self._process.stdin.write(line)
        said = answered.get(timeout=60)
        if "error" in said:
            raise ClientError(said["error"]["code"], said["error"])
        return dict(said["answer"])

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(20)
        self._reader.join()
        self._process.stdout.close()


class NodePackage:
    """@alicloud/kms20160120. Codes of errors have `Error` behind them."""

    missing = frozenset(
        "DescribeAccountKmsStatus ExportDataKey GenerateAndExportDataKey GenerateMac GetDefaultKmsInstance GetKeyPolicy GetKmsInstance"
        " ListKmsInstances ListTagResources OpenKmsService ReEncrypt SetDeletionProtection SetKeyPolicy TagResources UntagResources VerifyMac".split()
    )

    def __init__(self, node: Node) -> None:
        self.node = node

    def offers(self, action: str) -> bool:
        return action in self.node.call("offers", "", {})["actions"]

    def call(self, action: str, params: Params) -> dict[str, Any]:
        try:
            return self.node.call("kms", action, params)
        except ClientError as error:
            assert error.code.endswith("Error"), error.error
            raise ClientError(error.code.removesuffix("Error"), error.error) from None


class PopCore:
    """@alicloud/pop-core, generic: maps go as JSON text."""

    missing: frozenset[str] = frozenset()

    def __init__(self, node: Node, method: str) -> None:
        self.node = node
        self.method = method

    def offers(self, action: str) -> bool:
        return True  # whatever it is told

    def call(self, action: str, params: Params) -> dict[str, Any]:
        given = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in params.items()}
        return self.node.call(self.method, action, given)
