"""What `/metrics` tells, in the format of Prometheus. Names of operations and codes only: no key, no caller, no value.

With several worker processes each writes into files of its own in the directory that PROMETHEUS_MULTIPROC_DIR names, and any of them
answers for all; that variable is set before this module is imported.
"""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, multiprocess

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FILE_BYTES = 1 << 20  # more than all operations with all codes take
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """One for each process that serves."""

    def __init__(self) -> None:
        self._shared = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        if self._shared:
            _reserve(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]))
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

    def answered(self, operation: str, code: str, seconds: float) -> None:
        """`operation` is a name that is known, or empty; `code` is OK or the code of the error."""
        children = self._children.get((operation, code))
        if children is None:
            children = (self._requests.labels(operation, code), self._seconds.labels(operation))
            self._children[operation, code] = children
        children[0].inc()
        children[1].observe(seconds)

    def render(self) -> bytes:
        if not self._shared:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def _reserve(directory: Path) -> None:
    """The files that this process is about to map, with their blocks: what is written into a mapping must not find the disk full."""
    for kind in ("counter", "histogram"):
        handle = os.open(directory / f"{kind}_{os.getpid()}.db", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(handle, 0, FILE_BYTES)
        finally:
            os.close(handle)
