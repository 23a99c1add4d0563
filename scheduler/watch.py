"""Ends a worker that has stopped consuming, so that whoever started it starts it anew.

Celery now and then is connected to Redis and takes nothing any more (celery issues 8030, 10205); one run of tests/campaigns/rotation.py, in
which Redis is emptied and restarted and processes are killed, saw it once. Nothing in it notices: its processes are there, and idle.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any

from celery.signals import task_received, worker_ready

from kmscore.clock import boot_seconds
from scheduler.app import QUEUE, app

log = logging.getLogger("kmscore.scheduler")


class Watch(threading.Thread):
    """Calls `end` once tasks have been waiting for `patience` seconds, at every look, and none was taken."""

    def __init__(self, waiting: Callable[[], int], patience: float, end: Callable[[], None]) -> None:
        super().__init__(name="kmscore-watch", daemon=True)
        self._waiting = waiting
        self._patience = patience
        self._end = end
        self._taken_at = boot_seconds()

    def taken(self) -> None:
        self._taken_at = boot_seconds()

    def run(self) -> None:
        pause = threading.Event()
        while not pause.wait(self._patience / 8):
            if not self._waiting():
                self.taken()
            elif boot_seconds() - self._taken_at > self._patience:
                self._end()
                return


def _waiting() -> int:
    """How many tasks Redis holds; none while it cannot be asked."""
    try:
        with app.connection_for_read() as connection:
            return int(connection.default_channel.queue_declare(QUEUE, passive=True).message_count)
    except Exception:  # whatever the driver makes of a broker that is not there: this worker is not the one to blame
        return 0


def _end() -> None:
    log.critical("tasks are waiting and this worker takes none: it ends, to be started anew")
    os._exit(1)  # an orderly end waits for the very loop that is stuck; the children follow (scheduler/engine.py)


@worker_ready.connect
def _watch(**_: Any) -> None:
    # A task ends, or is ended, well within claim_seconds: by then a worker that is only busy has taken the next.
    watch = Watch(_waiting, app.conf.claim_seconds, _end)
    task_received.connect(lambda **_: watch.taken(), weak=False)
    watch.start()
