"""The Celery application: what it is told of Redis, of time, and of how little to trust either (RELIABILITY 1.4 and 4.5)."""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.schedules import schedule

from kmscore.config import SHARDS, Settings, load_settings
from kmscore.errors import SetupError

QUEUE = "kmscore"


class Every(schedule):
    """Every so many seconds; at once when the machine's clock was set back, where celery's own would be silent until it has caught up."""

    def is_due(self, last_run_at: Any) -> tuple[bool, float]:
        due, wait = super().is_due(last_run_at)
        return (True, self.seconds) if wait > self.seconds else (due, wait)


def make_app(settings: Settings) -> Celery:
    """Raises SetupError where no Redis is named."""
    if not settings.redis_url:
        raise SetupError("the scheduler needs Redis: set KMS_REDIS_URL; an engine without one does due work by itself")
    app = Celery("kmscore", broker=settings.redis_url, include=["scheduler.tasks", "scheduler.watch"], set_as_current=False)
    # All times follow from one: a task ends before its work is offered again, and Redis delivers nothing again that has not expired.
    hard_limit = settings.claim_seconds * 0.75
    app.conf.update(
        task_default_queue=QUEUE,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],  # whoever can write to Redis can ask for work that is due anyway, and for nothing else
        worker_enable_remote_control=False,
        # Acknowledged after the work, so that a clean stop gives back what it has not done. What a kill interrupts is not delivered again
        # by Redis (reject_on_worker_lost): a task that kills its process would be, for ever and uncounted. The store offers it again after
        # claim_seconds, counts each try before it is made, and parks it in the end.
        task_acks_late=True,
        task_reject_on_worker_lost=False,
        task_acks_on_failure_or_timeout=True,
        worker_prefetch_multiplier=1,
        task_soft_time_limit=settings.claim_seconds * 0.5,
        task_time_limit=hard_limit,
        worker_max_tasks_per_child=1000,  # SoftHSM leaks a little with each derived key
        worker_proc_alive_timeout=60.0,  # a child opens the home first: a login in turn with every other process
        worker_soft_shutdown_timeout=min(10.0, hard_limit),
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # for ever
        broker_connection_timeout=5.0,
        broker_transport_options={
            "visibility_timeout": max(1, int(5 * hard_limit)),
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            "socket_timeout": 10.0,
            "socket_connect_timeout": 5.0,
            "socket_keepalive": True,
            "health_check_interval": 15,
        },
        # The schedule is always the same: nothing is worth a file, which a kill could tear.
        beat_scheduler="celery.beat:Scheduler",
        beat_max_loop_interval=settings.tick_seconds,
        beat_schedule={
            f"sweep-{shard}": {
                "task": "kmscore.sweep",
                "schedule": Every(settings.tick_seconds),
                "args": (shard,),
                "options": {"expires": settings.tick_seconds},  # where no worker was there, one sweep is enough afterwards
            }
            for shard in range(SHARDS)
        },
    )
    app.conf.claim_seconds = settings.claim_seconds
    return app


app = make_app(load_settings())
