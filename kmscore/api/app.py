"""The HTTP service: the wire on `/`, and beside it `/healthz` and `/metrics`. Whatever else is asked for is refused in the wire's form."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kmscore import __version__
from kmscore.api import answers, metrics
from kmscore.api.door import Door
from kmscore.api.nonces import Nonces
from kmscore.api.throttle import Throttle
from kmscore.errors import KmsError, api_not_found, internal_failure
from kmscore.ids import new_request_id
from kmscore.logs import log_fault

if TYPE_CHECKING:
    from kmscore.engine.kms import Kms

App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]


def build_app(kms: Kms, workers: int = 1, told: metrics.Metrics | None = None) -> App:
    """An ASGI application on an open engine, which it does not close. `workers`: how many processes share the limits of an access key."""
    settings = kms.settings
    told = told or metrics.Metrics(kms.gauges)
    door = Door(
        kms,
        Nonces(settings.home / "run"),
        Throttle(settings.requests_per_second / workers),
        told,
        body_seconds=settings.body_seconds,
        quick=settings.owns_token or not settings.has_token,
        access_log=settings.access_log,
    )
    others = _others(kms, told)

    async def app(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/":
            await door(scope, receive, send)
        else:
            await others(scope, receive, send)

    return app


def _others(kms: Kms, told: metrics.Metrics) -> Starlette:
    async def healthz(_: Request) -> JSONResponse:
        """200 when the engine answers from its store, 503 when it cannot; the reason is for the log, not for strangers."""
        try:
            await run_in_threadpool(kms.list_keys, page_size=1)
        except KmsError as error:
            log_fault("not healthy", error)
            return JSONResponse({"status": "unavailable", "code": error.code}, 503)
        except Exception as error:
            log_fault("not healthy", error)
            return JSONResponse({"status": "unavailable", "code": "InternalFailure"}, 503)
        return JSONResponse({"status": "ok", "version": __version__})

    async def telling(_: Request) -> Response:
        return Response(await run_in_threadpool(told.render), media_type=metrics.CONTENT_TYPE)

    async def refused(request: Request, error: Exception) -> Response:
        request_id = new_request_id()
        if isinstance(error, HTTPException) and error.status_code == 404:
            refusal = api_not_found()
        elif isinstance(error, HTTPException) and error.status_code == 405:
            refusal = KmsError("UnsupportedHTTPMethod", "This HTTP method is not supported; use GET.")
        else:
            log_fault(f"request {request_id}", error, request_id=request_id)
            refusal = internal_failure()
        status, headers, body = answers.failure(refusal, request_id, request.headers.get("host", ""), close=True)
        return Response(body, status, {name.decode(): value.decode() for name, value in headers})

    app = Starlette(
        routes=[Route("/healthz", healthz), Route("/metrics", telling)],
        exception_handlers={HTTPException: refused, Exception: refused},
    )
    app.router.redirect_slashes = False
    return app
