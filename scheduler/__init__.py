"""The scheduler of a deployed service: beat asks for sweeps, workers sweep and do due work, Redis carries the asking and nothing else.

Due times, holds and failures live in the store (kmscore/store/attempts.py): whatever Redis loses, forgets or delivers twice, each piece of
work is done once. `python -m scheduler worker|beat`, or `celery -A scheduler worker|beat`, with KMS_HOME and KMS_REDIS_URL set.
"""

from kmscore.errors import SetupError

try:
    from scheduler.app import app
except SetupError as error:  # this is a program, whichever way it was started
    raise SystemExit(f"{error.code}: {error.message}") from None

__all__ = ["app"]
