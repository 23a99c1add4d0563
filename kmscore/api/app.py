"""The HTTP service. Until the wire stands it answers one question: is it ready?"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from kmscore import __version__
from kmscore.errors import KmsError

if TYPE_CHECKING:
    from kmscore.engine.kms import Kms

log = logging.getLogger("kmscore")


def build_app(kms: Kms) -> Starlette:
    """An ASGI application on an open engine, which it does not close."""

    async def healthz(_: Request) -> JSONResponse:
        """200 when the engine answers from its store, 503 when it cannot; the reason is for the log, not for strangers."""
        try:
            await run_in_threadpool(kms.list_keys, page_size=1)
        except KmsError as error:
            log.warning("not healthy: %s", error)
            return JSONResponse({"status": "unavailable", "code": error.code}, 503)
        except Exception:
            log.exception("not healthy")
            return JSONResponse({"status": "unavailable", "code": "InternalFailure"}, 503)
        return JSONResponse({"status": "ok", "version": __version__})

    return Starlette(routes=[Route("/healthz", healthz)])
