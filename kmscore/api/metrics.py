"""What `/metrics` tells, in the format of Prometheus. Names of operations, codes and errors only: no key, no caller, no value.

With several worker processes each writes into files of its own in the directory that PROMETHEUS_MULTIPROC_DIR names, and any of them
answers for all; that variable is set before this module is imported. What is of the store, the one that answers asks for itself.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from kmscore import counts
from kmscore.logs import log_fault
from kmscore.process import resident_bytes, start_time, started_at

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FILE_BYTES = 1 << 20  # more than all operations with all codes take
GAUGE_FILE_BYTES = 1 << 16
REFRESH_SECONDS = 1.0  # how old what the other workers say of themselves may be
STORE_SECONDS = 2.0  # how long a scrape waits for the store
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

# Without the prefix kms_, as kmscore/counts.py has them: what it is, and its labels.
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    counts.TOKEN_ERRORS: ("Errors of PKCS#11 calls, by return value; a start makes some, when it tries what a token can do.", ("error",)),
    counts.STORE_ERRORS: ("Reads and writes that the store could not do.", ("action",)),
    counts.KEY_LOADS: ("Loads of key material out of its custody: uses that found none cached.", ("level", "outcome")),
    counts.KEY_VIEWS_BUILT: ("Views of keys built from their events: new keys in use, and changes to keys in use.", ()),
}
# Of a process: what it is, and what the numbers of several workers come to (prometheus_client's name for it).
OWN: dict[str, tuple[str, str]] = {
    "processes": ("Processes that serve.", "livesum"),
    "process_start_time_seconds": ("When the youngest process began to serve, in Unix time.", "livemax"),
    "process_resident_memory_bytes": ("Resident memory of all processes that serve.", "livesum"),
    "requests_in_flight": ("Requests that are being read or answered.", "livesum"),
    "key_views": ("Views of keys that are held.", "livesum"),
    "keys_loaded": ("Key versions whose material is loaded for use.", "livesum"),
    "token_sessions": ("PKCS#11 sessions that are open.", "livesum"),
    "token_session_keys": ("Session keys derived in the token that are held.", "livesum"),
    "lease_age_seconds": ("Since a process last knew that its views are fresh; the oldest of all.", "livemax"),
}
STORED: dict[str, str] = {
    "store_up": "1 when the store could be read for this answer, else 0.",
    "log_position": "Events in the log.",
    "open_intents": "Changes that are under way or were interrupted.",
    "open_intent_oldest_seconds": "For how long the oldest of them has been open.",
    "due_backlog": "Rotations, deletions and expiries whose time has come.",
    "due_oldest_seconds": "Since the time of the oldest of them.",
    "due_parked": "Due work that failed so often that it waits for a person.",
    "workers_alive": "Processes of the scheduler's workers that were seen within half a minute.",
    "sweep_age_seconds": "Since due work was last swept by the scheduler; absent where it never was.",
}


class Gauges(Protocol):
    """What an engine says of itself: names of OWN, and of STORED; what it leaves out is not told."""

    def own(self) -> Mapping[str, float]: ...
    def stored(self) -> Mapping[str, float]:
        """May block, and may raise."""
        ...


class Metrics:
    """One for each process that serves."""

    def __init__(self, gauges: Gauges | None = None) -> None:
        self._gauges = gauges
        self._shared = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        if self._shared:
            _reserve(_directory())
        self._registry = CollectorRegistry()
        self._requests = Counter("kms_requests", "Requests answered.", ["operation", "code"], registry=self._registry)
        self._seconds = Histogram(
            "kms_request_seconds",
            "From headers to answer.",
            ["operation"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        # Looked up once: names and codes are few.
        self._children: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        self.in_flight = 0  # changed by the one thread that serves
        self._counters = {name: Counter(f"kms_{name}", text, labels, registry=self._registry) for name, (text, labels) in COUNTERS.items()}
        self._told: dict[counts.Counted, int] = {}
        self._own: dict[str, Gauge] = {}
        self._lock = threading.Lock()
        self._started = started_at()
        self._stored = StoreCollector(gauges)

    def answered(self, operation: str, code: str, seconds: float) -> None:
        """`operation` is a name that is known, or empty; `code` is OK or the code of the error."""
        children = self._children.get((operation, code))
        if children is None:
            children = (self._requests.labels(operation, code), self._seconds.labels(operation))
            self._children[operation, code] = children
        children[0].inc()
        children[1].observe(seconds)

    def render(self) -> bytes:
        """May wait STORE_SECONDS."""
        self.refresh()
        registry = self._registry
        if self._shared:
            _forget_the_dead(_directory())
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        stored = CollectorRegistry()
        stored.register(self._stored)
        return generate_latest(registry) + generate_latest(stored)

    def refresh(self) -> None:
        """Take in what this process has counted, and how it is now."""
        own = {} if self._gauges is None else dict(self._gauges.own())
        own |= {
            "processes": 1,
            "process_start_time_seconds": self._started,
            "process_resident_memory_bytes": resident_bytes(),
            "requests_in_flight": self.in_flight,
        }
        with self._lock:
            for (name, labels), number in counts.counted().items():
                counter = self._counters[name]
                (counter.labels(*labels) if labels else counter).inc(number - self._told.get((name, labels), 0))
                self._told[name, labels] = number
            for name, value in own.items():
                if name not in self._own:
                    text, mode = OWN[name]
                    self._own[name] = Gauge(f"kms_{name}", text, multiprocess_mode=mode, registry=self._registry)  # type: ignore[arg-type]
                self._own[name].set(value)

    async def keep_fresh(self) -> None:
        """For ever: another worker may answer for this one at any time."""
        while True:
            try:
                self.refresh()
            except Exception as error:
                log_fault("metrics are not refreshed", error)
            await asyncio.sleep(REFRESH_SECONDS)


class StoreCollector(Collector):
    """Asks the store at the time of a scrape, in a thread of its own: one that does not answer holds up neither the scrape nor the next."""

    def __init__(self, gauges: Gauges | None) -> None:
        self._gauges = gauges
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kms-gauges")
        self._asked: Future[Mapping[str, float]] | None = None
        self._lock = threading.Lock()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        if self._gauges is None:
            return
        values: dict[str, float] = {"store_up": 0}
        try:
            with self._lock:
                if self._asked is None:
                    self._asked = self._thread.submit(self._gauges.stored)
                asked = self._asked
            found = asked.result(STORE_SECONDS)
            values = {"store_up": 1, **found}
        except TimeoutError:
            pass
        except Exception as error:
            log_fault("the store does not tell its gauges", error)
        with self._lock:
            if asked.done() and self._asked is asked:
                self._asked = None
        for name, value in values.items():
            yield GaugeMetricFamily(f"kms_{name}", STORED[name], value=value)


def _directory() -> Path:
    return Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])


def _reserve(directory: Path) -> None:
    """The files that this process is about to map, with their blocks: what is written into a mapping must not find the disk full."""
    kinds = {"counter": FILE_BYTES, "histogram": FILE_BYTES, **{f"gauge_{mode}": GAUGE_FILE_BYTES for _, mode in OWN.values()}}
    for kind, size in kinds.items():
        handle = os.open(directory / f"{kind}_{os.getpid()}.db", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(handle, 0, size)
        finally:
            os.close(handle)


def _forget_the_dead(directory: Path) -> None:
    """How a worker was is of no interest once it is gone; what it counted is."""
    for path in directory.glob("gauge_live*.db"):
        pid = path.stem.rpartition("_")[2]
        if start_time(int(pid)) is None:
            path.unlink(missing_ok=True)
