"""Due work by real workers of the scheduler, on a clock that a file tells: Redis is lost, processes are killed, everything comes twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from clocks import ShiftedClock
from local_servers import free_port
from scheduler_helpers import ROOT, ClockFile, Node, Redis, until

import kmscore
from kmscore.engine.kms import Kms
from kmscore.process import Process

START = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
CLAIM_SECONDS = 3.0


class Cluster:
    """Two beats, two worker processes, one Redis; a token; an engine of the test's own, without a ticker."""

    def __init__(self, directory: Path, server: Redis, stack: ExitStack) -> None:
        self.home = directory / "home"
        self.redis = server
        self.clock = ClockFile(directory / "clock", START)
        self.settings = {"KMS_REDIS_URL": server.url, "KMS_CLOCK_FILE": str(self.clock.path)}
        self.home.mkdir(mode=0o700)
        (self.home / "kms.toml").write_text(f"tick_seconds = 0.5\nclaim_seconds = {CLAIM_SECONDS}\nrotation_spread_seconds = 60\n")
        self.kms: Kms = stack.enter_context(
            kmscore.open_kms(self.home, ticker=False, clock_file=str(self.clock.path), redis_url=server.url)
        )
        self.worker = Node("worker", self.home, self.settings, "--concurrency=2")
        stack.callback(self.worker.kill)
        for _ in range(2):
            stack.callback(Node("beat", self.home, self.settings).kill)
        until(lambda: self.kms.due_status().workers_alive == 2 and self.kms.due_status().last_sweep_seconds_ago is not None, 60)

    def rotating(self, count: int, level: str = "SOFTWARE") -> list[str]:
        make = self.kms.create_key
        return [make(protection_level=level, enable_automatic_rotation=True, rotation_interval="7d").key_id for _ in range(count)]

    def pass_time(self, by: timedelta) -> None:
        """Until after the jitter window of what is due then."""
        self.clock.set(self.clock.instant + by + timedelta(seconds=61))

    def versions(self, keys: list[str]) -> set[int]:
        return {self.kms.list_key_versions(key).total_count for key in keys}

    def served(self) -> bool:
        """Start a worker anew that has ended, as a service manager does: after a lost connection one may take nothing, and ends itself."""
        if self.worker.process.poll() is not None:
            self.worker.start()
        return True

    def pid_of(self, owner: str) -> int:
        if "/" in owner:
            return Process.parse(owner).pid
        with self.kms._s.queries._datastore.reading() as cursor:  # of a store that is shared
            cursor.execute("SELECT pid FROM processes WHERE process_id = ?", (owner,))
            row = cursor.fetchone()
        return int(row[0]) if row else 0

    def kms_command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "KMS_HOME": str(self.home), **self.settings}
        command = [sys.executable, "-m", "kmscore.cli", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("cluster")
    with Redis(directory / "redis") as server, ExitStack() as stack:
        yield Cluster(directory, server, stack)


def test_workers_rotate_and_destroy_what_is_due_once(cluster: Cluster) -> None:
    rotating = [*cluster.rotating(6), *cluster.rotating(2, "HSM")]
    dying = cluster.kms.create_key(protection_level="HSM").key_id
    cluster.kms.schedule_key_deletion(dying, pending_window_in_days=7)
    blob = cluster.kms.encrypt(rotating[-1], b"x").ciphertext_blob
    cluster.clock.set(START + 7 * DAY - timedelta(seconds=1))
    time.sleep(1)
    assert cluster.versions(rotating) == {1}
    cluster.pass_time(timedelta())
    until(lambda: cluster.versions(rotating) == {2} and cluster.kms.history(dying)[-1]["event"] == "KeyDestroyed")
    assert cluster.kms.decrypt(blob).plaintext == b"x"
    # Twenty times more, by hand: each of two beats sends a sweep of its own, and Redis may deliver what it likes.
    with cluster.redis.client() as client:
        for _ in range(20):
            client.lpush("kmscore", message("kmscore.work", ["rotate", rotating[0]]))
            client.lpush("kmscore", message("kmscore.work", ["no such kind", "no such key"]))
        until(lambda: client.llen("kmscore") == 0)
    time.sleep(1)
    assert cluster.versions(rotating) == {2}
    assert cluster.kms.due_status().backlog == 0


def message(task: str, arguments: list[str]) -> str:
    """A task as celery puts it into Redis (message protocol 2)."""
    import base64
    import uuid

    task_id = str(uuid.uuid4())
    body = base64.b64encode(json.dumps([arguments, {}, {}]).encode()).decode()
    properties = {"correlation_id": task_id, "delivery_mode": 2, "delivery_tag": task_id, "body_encoding": "base64", "priority": 0}
    properties["delivery_info"] = {"exchange": "", "routing_key": "kmscore"}  # type: ignore[assignment]
    headers = {"lang": "py", "task": task, "id": task_id}
    return json.dumps(
        {"body": body, "content-type": "application/json", "content-encoding": "utf-8", "headers": headers, "properties": properties}
    )


def test_kms_workers_tells_of_them(cluster: Cluster) -> None:
    told = cluster.kms_command("workers")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.splitlines()[0].split() == ["HOST", "PID", "SINCE", "LAST", "SEEN", "LAST", "WORK", "DONE", "FAILED"]
    children = {str(pid) for pid in cluster.worker.children()}
    assert {line.split()[1] for line in told.stdout.splitlines()[1:3]} == children
    assert "2 workers alive; last sweep " in told.stdout
    assert "0 due, the oldest for 0 s; 0 parked" in told.stdout


def test_what_a_killed_worker_left_is_done_once(cluster: Cluster) -> None:
    """A process is killed with an intent open; the token holds what that one was making."""
    keys = cluster.rotating(30, "HSM")
    cluster.pass_time(7 * DAY)
    killed = 0
    deadline = time.monotonic() + 60
    while cluster.versions(keys) != {2} and time.monotonic() < deadline:
        for intent in cluster.kms._s.queries.open_intents():
            if killed < 2 and (pid := cluster.pid_of(intent.owner)) in cluster.worker.children():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                killed += 1
    assert cluster.versions(keys) == {2}
    assert killed
    until(lambda: not cluster.kms._s.queries.open_intents())
    report = cluster.kms.reconcile()
    assert (report.missing, report.quarantined) == ((), ())
    activated = [[event["event"] for event in cluster.kms.history(key)].count("MaterialActivated") for key in keys]
    assert activated == [2] * len(keys)


def test_what_redis_forgets_is_done(cluster: Cluster) -> None:
    keys = cluster.rotating(20)
    cluster.pass_time(7 * DAY)
    until(lambda: cluster.versions(keys) != {1})
    cluster.redis.flush()
    cluster.redis.kill()
    cluster.redis.start()
    until(lambda: cluster.served() and cluster.versions(keys) == {2}, 60)


def test_a_worker_that_ends_says_so(cluster: Cluster) -> None:
    until(lambda: cluster.served() and cluster.kms.due_status().workers_alive >= 2)
    for worker in cluster.kms.scheduler_workers():  # of the killed ones, too
        if worker.pid not in cluster.worker.children():
            cluster.kms.worker_left(next(row.id for row in cluster.kms._s.scheduling._workers.all() if row.pid == worker.pid))
    assert cluster.worker.stop() == 0
    assert cluster.kms.scheduler_workers() == ()
    told = cluster.kms_command("workers")
    assert (told.returncode, told.stdout.splitlines()[0][:18]) == (1, "0 workers alive; l")


# --- without a broker --------------------------------------------------------------------------------------------------------------


def test_a_dead_broker_delays_and_stops_nothing(tmp_path: Path) -> None:
    clock = ShiftedClock()
    with kmscore.open_kms(
        tmp_path / "home",
        clock=clock,
        pkcs11_module="none",
        tick_seconds=0.1,
        fallback_seconds=1.0,
        rotation_spread_seconds=0,
        redis_url=f"redis://127.0.0.1:{free_port()}/0",
    ) as kms:
        key = kms.create_key(enable_automatic_rotation=True, rotation_interval="7d").key_id
        dying = kms.create_key().key_id
        kms.schedule_key_deletion(dying, pending_window_in_days=7)
        clock.offset = 7 * DAY
        waited = until(lambda: kms.list_key_versions(key).total_count == 2 and kms.history(dying)[-1]["event"] == "KeyDestroyed")
        assert 0.8 < waited < 10  # on a busy machine; the bound is fallback_seconds and a tick


def test_a_scheduler_without_redis_says_what_it_needs(tmp_path: Path) -> None:
    environment = {**os.environ, "KMS_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-m", "scheduler", "worker"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "InternalFailure: the scheduler needs Redis: set KMS_REDIS_URL; an engine without one does due work by itself\n"
    assert not (tmp_path / "home").exists()


def test_a_worker_that_takes_nothing_ends_itself(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KMS_HOME", str(cluster.home))
    monkeypatch.setenv("KMS_REDIS_URL", cluster.redis.url)
    from scheduler.watch import Watch

    ended = threading.Event()
    for waiting, ends in ((lambda: 0, False), (lambda: 1, True)):
        watch = Watch(waiting, 0.4, ended.set)
        watch.start()
        time.sleep(0.3)
        watch.taken()
        time.sleep(0.2)
        assert not ended.is_set()  # it took one a while ago
        assert ended.wait(2) == ends
