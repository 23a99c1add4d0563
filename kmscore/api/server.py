"""Serves an engine over HTTP: in this process, or in several that share one listening socket and are started again when they die."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
import uvloop
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

import kmscore
from kmscore import logs, tracing
from kmscore.config import Settings, load_settings
from kmscore.errors import SetupError
from kmscore.process import start_time, this_process

if TYPE_CHECKING:
    from kmscore.api.app import App
    from kmscore.engine.kms import Kms

log = logging.getLogger("kmscore")

DRAIN_SECONDS = 10  # how long requests in progress may take to end
KEEP_ALIVE_SECONDS = 75  # an idle connection; clients and proxies let go earlier
PARENT_POLL_SECONDS = 0.5
HANDSHAKE_SECONDS = 15.0  # of TLS
HEALTH_SECONDS = 30  # a worker that does not answer for so long is replaced
RESTART_SECONDS, MOST_RESTART_SECONDS = 0.5, 30.0  # before a worker that could not start is started again, and again
OPEN_FILES = 16384  # of one process: connections, also half-made ones, a table for each access key, databases and a token
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
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(_metrics_directory(settings.home / "run"))
    config = _config(settings, "kmscore.api.server:worker", factory=True, workers=settings.workers, lifespan="on")
    supervisor = Supervisor(config, sockets=[listener])
    supervisor.run()
    if supervisor.failed:
        raise SetupError("no worker could be started; what each said stands above")


def _metrics_directory(run: Path) -> Path:
    """One of this service's own; those of services that are gone are removed."""
    for old in run.glob("metrics-*"):
        _, pid, started = old.name.split("-")
        if start_time(int(pid)) != int(started):
            shutil.rmtree(old, ignore_errors=True)
    me = this_process()
    directory = run / f"metrics-{me.pid}-{me.start_time}"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory


class Supervisor(Multiprocess):
    """Starts workers again when they end. uvicorn's own ends the whole service when one cannot be started; here that is so only before any
    has served: later it may be the disk or the token that fails for a while, and the others go on."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self.failed = False
        self._served = False
        self._again: dict[int, tuple[float, float]] = {}  # worker -> (not before, how long after the next failure)

    def keep_subprocess_alive(self) -> None:
        for index, process in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if process.is_alive(timeout=HEALTH_SECONDS):
                if process.is_ready(timeout=HEALTH_SECONDS):
                    self._served = True
                    self._again.pop(index, None)
                continue
            now = time.monotonic()
            not_before, wait = self._again.get(index, (0.0, RESTART_SECONDS))
            if now < not_before:
                continue
            process.kill()
            process.join()
            if process.exitcode == STARTUP_FAILURE and not self._served:
                self.failed = True
                self.should_exit.set()
                return
            log.warning("worker %d ended (%s); another takes its place", process.pid, process.exitcode)
            self._again[index] = (now + wait, min(2 * wait, MOST_RESTART_SECONDS))
            self.processes[index] = Process(self.config, self.sockets)
            self.processes[index].start()


class Loop(uvloop.Loop):
    """uvloop's, which gives up on a TLS client that says nothing; uvicorn does not ask it to."""

    async def create_server(self, *arguments: Any, ssl: Any = None, **more: Any) -> Any:
        if ssl is not None:
            more.setdefault("ssl_handshake_timeout", HANDSHAKE_SECONDS)
        return await super().create_server(*arguments, ssl=ssl, **more)


def worker() -> App:
    """The application of a worker process. It opens the engine at its start, and ends when its parent does."""
    from kmscore.api.app import build_app
    from kmscore.api.metrics import Metrics

    inner: list[App] = []

    @asynccontextmanager
    async def opened() -> Any:
        kmscore.protect_process()
        settings = load_settings(Path(os.environ[WORKER_HOME]))
        logs.configure(settings)
        tracing.start(settings)
        try:
            with kmscore.open_kms(settings.home) as kms:
                told = Metrics(kms.gauges)
                inner.append(build_app(kms, settings.workers, told))
                tasks = [asyncio.create_task(_end_with_parent(int(os.environ[WORKER_PARENT]))), asyncio.create_task(told.keep_fresh())]
                yield
                for task in tasks:
                    task.cancel()
        finally:
            tracing.stop()

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

    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(now, OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))
    protocol: Any = partial(Protocol, header_seconds=settings.header_seconds)
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        loop="kmscore.api.server:Loop",
        log_config=None,  # its loggers go the way of ours
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        timeout_worker_healthcheck=HEALTH_SECONDS,
        ssl_certfile=settings.tls_certificate or None,
        ssl_keyfile=settings.tls_key or None,
        **more,
    )
