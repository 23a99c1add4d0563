"""Serves an engine over HTTP: in this process, or in several that share one listening socket and are started again when they die."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import shutil
import signal
import socket
from collections.abc import Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.supervisors import Multiprocess

import kmscore
from kmscore.config import Settings

if TYPE_CHECKING:
    from kmscore.api.app import App
    from kmscore.engine.kms import Kms

DRAIN_SECONDS = 10  # how long requests in progress may take to end
KEEP_ALIVE_SECONDS = 75  # an idle connection; clients and proxies let go earlier
PARENT_POLL_SECONDS = 0.5
OPEN_FILES = 4096  # of one process: its connections, and room for tables, databases and a token
# Tell a worker what to open, and who its parent is, which may be gone when it can ask; set by its parent only.
WORKER_HOME = "KMS_WORKER_HOME"
WORKER_PARENT = "KMS_WORKER_PARENT"


def make_server(kms: Kms) -> uvicorn.Server:
    """One that runs in this process. It does not close the engine."""
    from kmscore.api.app import build_app

    return uvicorn.Server(_config(kms.settings, build_app(kms)))


def run_workers(settings: Settings, listener: socket.socket) -> None:
    """Serve with `settings.workers` processes, each with an engine of its own, until SIGTERM or SIGINT; then drain and return.

    SIGHUP starts them anew, one after the other. Workers read their settings from the home and the environment.
    """
    os.environ[WORKER_HOME] = str(settings.home)
    os.environ[WORKER_PARENT] = str(os.getpid())
    os.environ["KMS_WORKERS"] = str(settings.workers)
    metrics = settings.home / "run" / "metrics"
    shutil.rmtree(metrics, ignore_errors=True)
    metrics.mkdir(mode=0o700)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
    config = _config(settings, "kmscore.api.server:worker", factory=True, workers=settings.workers, lifespan="on")
    logging.getLogger("uvicorn.error").setLevel(logging.INFO)  # of this process: it tells of workers that end and are replaced
    Multiprocess(config, sockets=[listener]).run()


def worker() -> App:
    """The application of a worker process. It opens the engine at its start, and ends when its parent does."""
    from kmscore.api.app import build_app

    inner: list[App] = []

    @asynccontextmanager
    async def opened() -> Any:
        kmscore.protect_process()
        with kmscore.open_kms(Path(os.environ[WORKER_HOME])) as kms:
            inner.append(build_app(kms, kms.settings.workers))
            watch = asyncio.create_task(_end_with_parent(int(os.environ[WORKER_PARENT])))
            yield
            watch.cancel()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(opened, receive, send)
        else:
            await inner[0](scope, receive, send)

    return app


async def _lifespan(opened: Callable[[], Any], receive: Any, send: Any) -> None:
    await receive()
    started = False
    try:
        async with opened():
            started = True
            await send({"type": "lifespan.startup.complete"})
            await receive()
    except Exception as error:
        await send({"type": f"lifespan.{'shutdown' if started else 'startup'}.failed", "message": str(error)})
    else:
        await send({"type": "lifespan.shutdown.complete"})


async def _end_with_parent(parent: int) -> None:
    """A parent that was killed cannot say so: its workers would hold the port for ever."""
    while os.getppid() == parent:
        await asyncio.sleep(PARENT_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _config(settings: Settings, app: Any, **more: Any) -> uvicorn.Config:
    from kmscore.api.protocol import Protocol

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES if most == resource.RLIM_INFINITY else min(OPEN_FILES, most), most))
    protocol: Any = partial(Protocol, header_seconds=settings.header_seconds)
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        loop="uvloop",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        ssl_certfile=settings.tls_certificate or None,
        ssl_keyfile=settings.tls_key or None,
        **more,
    )
