"""How many requests an access key may make: a token bucket for each, in this process. Off unless a rate is set."""

from __future__ import annotations

import time
from collections.abc import Callable

from kmscore.errors import KmsError

BURST_SECONDS = 2.0  # how much of its rate an access key may use at once


class Throttled(KmsError):
    """`retry_after`: seconds until the next request would be let through."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("Rejected.Throttling", "The request was denied due to request throttling.")
        self.retry_after = retry_after


class Throttle:
    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`rate`: requests a second for each access key, of this process; 0: no limit."""
        self._rate = rate
        self._burst = max(1.0, rate * BURST_SECONDS)
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens left, and when that was so

    def take(self, access_key_id: str) -> None:
        """Raises Throttled. Access keys are few, and only known ones come here: the buckets need no end."""
        if not self._rate:
            return
        now = self._clock()
        tokens, at = self._buckets.get(access_key_id, (self._burst, now))
        tokens = min(self._burst, tokens + (now - at) * self._rate)
        if tokens < 1:
            self._buckets[access_key_id] = (tokens, now)
            raise Throttled((1 - tokens) / self._rate)
        self._buckets[access_key_id] = (tokens - 1, now)
