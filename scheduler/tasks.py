"""The two tasks. Both may be lost, delivered twice or late: neither knows anything that the store does not."""

from __future__ import annotations

import logging

from kmscore.errors import KmsError
from scheduler.app import app
from scheduler.engine import worker

log = logging.getLogger("kmscore.scheduler")


@app.task(name="kmscore.sweep")
def sweep(shard: int) -> None:
    """Hand out what is due in a shard, a task for each piece. With shard 0, once a round, also what dead processes left is settled."""
    kms = worker().kms
    if shard == 0:
        try:
            for problem in kms.recover().pending:
                log.warning("recovery: %s", problem)
        except KmsError as error:
            log.warning("recovery is postponed: %s", error)
    handed_out = kms.hand_out_due(shard)
    sent = 0
    try:
        with app.producer_or_acquire() as producer:
            for kind, key_id in handed_out:
                work.apply_async((kind, key_id), expires=app.conf.claim_seconds, producer=producer)
                sent += 1
    finally:
        if sent < len(handed_out):  # the broker went away meanwhile
            kms.give_back_due(handed_out[sent:])


@app.task(name="kmscore.work")
def work(kind: str, key_id: str) -> None:
    """Do one piece of due work, if it is still to be done."""
    this = worker()
    try:
        done = this.kms.do_due(kind, key_id)
    except KmsError as error:
        this.count(failed=True)
        log.warning("%s of %s failed: %s", kind, key_id, error)
        return
    if done:
        this.count(failed=False)
