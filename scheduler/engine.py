"""The engine of one worker process: opened after the fork, closed at its end; and the thread that says the process is there."""

from __future__ import annotations

import logging
import os
import platform
import threading
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from celery.signals import worker_process_init, worker_process_shutdown

import kmscore
from kmscore.clock import wall_seconds
from kmscore.errors import KmsError

if TYPE_CHECKING:
    from kmscore.engine.kms import Kms

log = logging.getLogger("kmscore.scheduler")

SEEN_SECONDS = 5.0


class Worker:
    """An open engine, what was done with it, and its row in the store."""

    def __init__(self) -> None:
        kmscore.protect_process()
        self.pid, self._parent = os.getpid(), os.getppid()
        self.kms: Kms = kmscore.open_kms(ticker=False)
        self._id = f"{platform.node()}/{self.pid}/{uuid.uuid4().hex[:8]}"
        self._started_at = _now()
        self._worked_at: datetime | None = None
        self._done = self._failed = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._say_so, name="kmscore-presence", daemon=True)
        self._thread.start()

    def count(self, *, failed: bool) -> None:
        self._worked_at = _now()
        self._failed += failed
        self._done += not failed

    def close(self) -> None:
        self._end.set()
        self._thread.join()
        try:
            self.kms.worker_left(self._id)
        except KmsError as error:
            log.warning("this worker is taken for silent, not for gone: %s", error)
        self.kms.close()

    def _say_so(self) -> None:
        while True:
            if os.getppid() != self._parent:
                os._exit(1)  # nobody gives this process work any more, and nobody ends it; what it is at is recovered like any kill's
            try:
                self.kms.worker_seen(self._id, self._started_at, self._worked_at, self._done, self._failed)
            except Exception as error:  # a thread of ours outlives whatever happens to it
                log.warning("cannot say that this worker is there: %s", error)
            if self._end.wait(SEEN_SECONDS):
                return


_lock = threading.Lock()
_worker: Worker | None = None


def worker() -> Worker:
    """That of this process. Raises KmsError while the home cannot be opened: the next task tries again."""
    global _worker
    with _lock:
        if _worker is None:
            _worker = Worker()
        return _worker


@worker_process_init.connect
def _open(**_: Any) -> None:
    try:
        worker()
    except KmsError as error:
        log.error("cannot open the home: %s", error.message)


@worker_process_shutdown.connect
def _close(**_: Any) -> None:
    global _worker
    with _lock:
        ended, _worker = _worker, None
    if ended is not None and ended.pid == os.getpid():
        ended.close()


def _now() -> datetime:
    return datetime.fromtimestamp(wall_seconds(), UTC)
