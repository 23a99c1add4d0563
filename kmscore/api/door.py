"""The door of the wire: one request in, one JSON answer out. What it lets in was signed by a known access key, now, once, and is permitted.

Order of checks: read, signature, time, nonce, throttle, action, parameters, permission; then the engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from kmscore import tracing
from kmscore.api import answers
from kmscore.api.metrics import Metrics
from kmscore.api.nonces import Nonces
from kmscore.api.request import Receive, Request, Scope, has_body, make_request, read_body
from kmscore.api.signatures import check_time, claim_of
from kmscore.api.throttle import Throttle
from kmscore.domain.names import plain_reference
from kmscore.errors import KmsError, internal_failure
from kmscore.ids import new_request_id
from kmscore.logs import access_log, log_fault, told
from kmscore.operations import OPERATIONS, find, invoke
from kmscore.operations.table import SECRETS

if TYPE_CHECKING:
    from kmscore.engine.kms import Kms

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# Done where the request was read: they take microseconds, and a way through a thread takes as long again. All else goes to a thread.
QUICK = frozenset({"DescribeKey", "Encrypt", "Decrypt", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "GenerateMac", "VerifyMac"})
THREADS = 16
MAX_HOST_CHARS = 255  # of what a client calls us, said back in errors
MAX_WAITING = 256  # operations in threads and waiting for one; more are refused at once


class Door:
    """An ASGI application for the path of the API. Called from one event loop."""

    def __init__(
        self,
        kms: Kms,
        nonces: Nonces,
        throttle: Throttle,
        metrics: Metrics,
        *,
        body_seconds: float,
        quick: bool = True,
        access_log: bool = False,
    ) -> None:
        """`body_seconds`: how long a body may take. `quick`: the token answers within microseconds, so QUICK operations need no thread.

        `access_log`: a line for each request.
        """
        self._kms = kms
        self._nonces = nonces
        self._throttle = throttle
        self._metrics = metrics
        self._body_seconds = body_seconds
        self._quick = QUICK if quick else frozenset()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="kms-wire")
        self._waiting = 0
        self._access_log = access_log

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        return self._in_a_span(scope, receive, send) if tracing.on() else self._serve(scope, receive, send, None)

    async def _in_a_span(self, scope: Scope, receive: Receive, send: Send) -> None:
        with tracing.serving(scope["headers"]) as span:
            await self._serve(scope, receive, send, span)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, span: tracing.Served | None) -> None:
        request_id = new_request_id()
        started = time.perf_counter()
        operation, code, whole = "", "OK", False
        host = access_key_id = ""
        request: Request | None = None
        answer: dict[str, Any] = {}
        self._metrics.in_flight += 1
        try:
            body = b""
            if has_body(scope):
                async with asyncio.timeout(self._body_seconds):
                    body = await read_body(receive)
            whole = True
            request = make_request(scope, body)
            host = request.headers.get("host", "")[:MAX_HOST_CHARS]
            caller, name = self._let_in(request)
            access_key_id = caller.access_key_id
            operation = name if name in OPERATIONS else ""
            answer = await self._carry_out(request, caller, name, request_id)
            status, headers, data = answers.success(answer, request_id, 0 if name in QUICK else self._kms.position)
        except Exception as error:
            refusal = self._refusal(error, request_id, operation)
            code = refusal.code
            status, headers, data = answers.failure(refusal, request_id, host, close=not whole)
        finally:
            self._metrics.in_flight -= 1
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": data})
        seconds = time.perf_counter() - started
        self._metrics.answered(operation, code, seconds)
        if span is None and not self._access_log:
            return
        key_id = _key_id(request, answer)
        if span is not None:
            span.answered(operation=operation, code=code, status=status, request_id=request_id, key_id=key_id)
        if self._access_log:
            outcome = told(
                operation=operation,
                code=code,
                status=status,
                key_id=key_id,
                duration_ms=round(seconds * 1000, 3),
                request_id=request_id,
                access_key_id=access_key_id,
            )
            access_log.info("%s %s", operation or "request", code, extra=outcome)

    def _let_in(self, request: Request) -> tuple[Any, str]:
        """Who calls, and what. Raises KmsError for a request that is not genuine, not of now, or seen before."""
        claim = claim_of(request)
        credential = self._kms.credential(claim.access_key_id)
        claim.verify(credential.secret, SECRETS)
        check_time(claim.stamp)
        self._nonces.take(claim.access_key_id, claim.nonce)
        self._throttle.take(claim.access_key_id)
        self._kms.note_use(claim.access_key_id)
        return credential.caller, request.action(by_header=claim.by_header)

    async def _carry_out(self, request: Request, caller: Any, name: str, request_id: str) -> dict[str, Any]:
        operation = find(name)
        params = request.business(operation.takes_region)
        if least := request.least_position:
            await self._in_a_thread(self._kms.be_at, least)
        if name in self._quick:
            return invoke(self._kms, name, params, request_id, caller)
        answer: dict[str, Any] = await self._in_a_thread(invoke, self._kms, name, params, request_id, caller)
        return answer

    async def _in_a_thread(self, act: Callable[..., Any], *arguments: Any) -> Any:
        if self._waiting >= MAX_WAITING:
            raise KmsError("ServiceUnavailableTemporary", "The service is busy; try again.")
        self._waiting += 1
        try:
            # In the context of this request, and so in its span.
            run = partial(copy_context().run, act, *arguments)
            return await asyncio.get_running_loop().run_in_executor(self._threads, run)
        finally:
            self._waiting -= 1

    def _refusal(self, error: Exception, request_id: str, operation: str) -> KmsError:
        """What a caller is told."""
        if isinstance(error, KmsError):
            if error.status >= 500:
                log_fault(f"request {request_id}", error, request_id=request_id, operation=operation)
            return error
        if isinstance(error, TimeoutError):
            return KmsError("ParseRequestParameterException", f"The request did not arrive within {self._body_seconds:g} seconds.")
        log_fault(f"request {request_id}", error, request_id=request_id, operation=operation)
        return internal_failure()


def _key_id(request: Request | None, answer: dict[str, Any]) -> str:
    """The key that a request was about: as the answer names it, else as the request does, if that is a name at all."""
    found = answer.get("KeyId") or answer.get("KeyMetadata", {}).get("KeyId")
    if found is None and request is not None:
        found = plain_reference(request.params.get("KeyId", ""))
    return found or ""
