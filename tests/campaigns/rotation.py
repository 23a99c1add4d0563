"""Months of rotation in minutes: `make campaign-rotation CAMPAIGN="--keys N --hsm-keys M --months K"`.

Keys with rotation periods, on a clock that a file tells; two beats, two workers of two processes. Meanwhile processes and whole nodes are
killed, Redis is emptied and started anew, the clock goes forward in steps of days and back in small ones. In the end the events say, for
each instant at which each key was due: not missed, not twice, not early, and in the very step of the clock that passed it.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import kmscore
from kmscore.engine.kms import Kms
from kmscore.store.readmodel import SPREAD_STEPS, spot
from tests.integration.scheduler_helpers import ClockFile, Node, Redis, until

START = datetime(2030, 1, 1, tzinfo=UTC)
PERIODS = (7, 8, 10, 14, 30)  # days
TICK_SECONDS = 1.0
CLAIM_SECONDS = 6.0
SPREAD_SECONDS = 300
STEP_HOURS = (12, 72)
# What is due when the clock moves is done this soon, by the machine's clock, whatever is killed meanwhile: two claims in a row may be lost,
# then a node is started anew (and celery waits up to ten seconds before it comes back to a Redis that was gone); the rest is the work.
BOUND_SECONDS = 2 * CLAIM_SECONDS + 4 * TICK_SECONDS + 44.0


@dataclass
class Result:
    keys: int
    rotations: int = 0
    rounds: int = 0
    abandoned: int = 0  # attempts that a kill interrupted
    nemesis: Counter[str] = field(default_factory=Counter)
    drained: list[float] = field(default_factory=list)  # seconds of each round
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        times = sorted(self.drained)
        said = ", ".join(f"{count} {name}" for name, count in sorted(self.nemesis.items()))
        return (
            f"{self.keys} keys, {self.rotations} rotations in {self.rounds} rounds; {self.abandoned} interrupted attempts; {said}\n"
            f"due work done after the clock moved: median {statistics.median(times):.1f} s, p95 {times[int(len(times) * 0.95)]:.1f} s,"
            f" most {times[-1]:.1f} s (bound {BOUND_SECONDS:.0f} s)\n"
            f"missed, double, early or late: {len(self.wrong)}"
        )


class Campaign:
    def __init__(self, directory: Path, server: Redis, stack: ExitStack, seed: int) -> None:
        self.directory = directory
        self.redis = server
        self.chance = random.Random(seed)
        self.stack = stack
        self.home = directory / "home"
        self.home.mkdir(mode=0o700)
        (self.home / "kms.toml").write_text(
            f"tick_seconds = {TICK_SECONDS}\nclaim_seconds = {CLAIM_SECONDS}\nrotation_spread_seconds = {SPREAD_SECONDS}\n"
        )
        self.clock = ClockFile(directory / "clock", START)
        self.settings = {"KMS_REDIS_URL": server.url, "KMS_CLOCK_FILE": str(self.clock.path)}
        self.periods: dict[str, timedelta] = {}
        self.rounds: list[datetime] = []  # what the clock was set to

    def seed_keys(self, count: int, hsm: int) -> None:
        """Made over a week, so that there are many due instants."""
        made = sorted((self.chance.uniform(0, 7 * 24 * 60), number < hsm) for number in range(count + hsm))
        self.chance.shuffle(made)
        clock = kmscore.FixedClock(START)
        with kmscore.open_kms(self.home, clock=clock) as kms:
            for minutes, in_token in sorted(made):
                clock.set(START + timedelta(minutes=minutes))
                days = self.chance.choice(PERIODS)
                level = "HSM" if in_token else "SOFTWARE"
                key = kms.create_key(protection_level=level, enable_automatic_rotation=True, rotation_interval=f"{days}d")
                self.periods[key.key_id] = timedelta(days=days)

    def start(self) -> None:
        self.clock.set(START + timedelta(days=7) - timedelta(seconds=1))
        self.kms: Kms = self.stack.enter_context(
            kmscore.open_kms(self.home, ticker=False, clock_file=str(self.clock.path), redis_url=self.redis.url)
        )
        self.workers = [Node("worker", self.home, self.settings, "--concurrency=2", f"--hostname=node{n}@%h") for n in (1, 2)]
        self.beats = [Node("beat", self.home, self.settings) for _ in range(2)]
        for node in (*self.workers, *self.beats):
            self.stack.callback(node.kill)
        until(lambda: self.kms.due_status().workers_alive >= 4, 120, "the workers do not start")

    # --- what goes wrong -----------------------------------------------------------------------------------------------------------

    def strike(self, result: Result) -> None:
        """One misfortune."""
        what = self.chance.choice(["kill process", "kill process", "kill node", "kill beat", "empty Redis", "restart Redis", "clock back"])
        result.nemesis[what] += 1
        if what == "kill process":
            if children := self.chance.choice(self.workers).children():
                with suppress(ProcessLookupError):
                    os.kill(self.chance.choice(children), signal.SIGKILL)
        elif what in ("kill node", "kill beat"):
            node = self.chance.choice(self.workers if what == "kill node" else self.beats)
            node.kill()
            node.start()
        elif what == "empty Redis":
            self.redis.flush()
        elif what == "restart Redis":
            self.redis.kill()
            self.redis.start()
        else:
            now = self.clock.instant
            self.clock.set(now - timedelta(seconds=self.chance.uniform(1, 600)))
            time.sleep(self.chance.uniform(0, 0.5))
            self.clock.set(now)

    # --- time --------------------------------------------------------------------------------------------------------------------

    def run(self, months: int, strikes: float) -> Result:
        """`strikes`: how many misfortunes come in a round, on average."""
        result = Result(len(self.periods))
        end = START + timedelta(days=7 + 30 * months)
        while self.clock.instant < end:
            self.clock.set(self.clock.instant + timedelta(hours=self.chance.uniform(*STEP_HOURS)))
            self.rounds.append(self.clock.instant)
            begun = time.monotonic()
            left = int(strikes) + (self.chance.random() < strikes % 1)
            while left or self._backlog():
                if left and self.chance.random() < 0.3:
                    self.strike(result)
                    left -= 1
                self._supervise(result)
                if time.monotonic() - begun > BOUND_SECONDS:
                    result.wrong.append(f"round {len(self.rounds)}: {self._backlog()} are due after {BOUND_SECONDS} s")
                    break
                time.sleep(0.05)
            result.drained.append(time.monotonic() - begun)
        result.rounds = len(self.rounds)
        self._judge(result)
        return result

    def _supervise(self, result: Result) -> None:
        """Start anew what ended by itself: a service manager does it."""
        for node in (*self.workers, *self.beats):
            if node.process.poll() is not None:
                result.nemesis[f"{node.role} ended by itself"] += 1
                node.kill()
                node.start()

    def _backlog(self) -> int:
        status = self.kms.due_status()
        assert not status.parked, self.kms._s.attempts.parked(3)
        return status.backlog

    # --- what the events say -----------------------------------------------------------------------------------------------------

    def _judge(self, result: Result) -> None:
        until(lambda: not self.kms._s.queries.open_intents(), 2 * BOUND_SECONDS, "an interrupted attempt is not settled")
        for key_id, period in self.periods.items():
            self._judge_key(result, key_id, period, self.kms.history(key_id))
        report = self.kms.reconcile()
        result.wrong += [f"reconcile: {problem}" for problem in (*report.missing, *report.quarantined, *report.pending)]

    def _judge_key(self, result: Result, key_id: str, period: timedelta, events: list[dict[str, Any]]) -> None:
        spread = timedelta(microseconds=spot(key_id)[1] * SPREAD_SECONDS * 1_000_000 // SPREAD_STEPS)
        asked: dict[str, datetime] = {}
        last: datetime | None = None
        for event in events:
            if event["event"] == "MaterialRequested":
                asked[event["facts"]["material_id"]] = event["time"]
            elif event["event"] == "MaterialAbandoned":
                result.abandoned += 1
            elif event["event"] == "MaterialActivated":
                if last is not None:
                    result.rotations += 1
                    due, decided = last + period, asked[event["facts"]["material_id"]]
                    step = next(instant for instant in self.rounds if instant >= due + spread)
                    if decided < due:  # twice for one instant would be early for the next
                        result.wrong.append(f"{key_id}: rotated at {decided}, due at {due}")
                    if decided > step:
                        result.wrong.append(f"{key_id}: due at {due}, rotated at {decided}, after the step to {step}")
                last = event["time"]
        assert last is not None
        if last + period + spread <= self.clock.instant:
            result.wrong.append(f"{key_id}: missed {last + period}")


def campaign(keys: int, hsm_keys: int, months: int, *, strikes: float, seed: int, directory: Path) -> Result:
    with Redis(directory / "redis") as server, ExitStack() as stack:
        run = Campaign(directory, server, stack, seed)
        run.seed_keys(keys, hsm_keys)
        run.start()
        return run.run(months, strikes)


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.campaigns.rotation", description=__doc__)
    options.add_argument("--keys", type=int, default=420, help="of level SOFTWARE")
    options.add_argument("--hsm-keys", type=int, default=200)
    options.add_argument("--months", type=int, default=7)
    options.add_argument("--strikes", type=float, default=1.5, help="misfortunes in a round, on average")
    options.add_argument("--seed", type=int, default=1)
    chosen = options.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kms-rotation-") as directory:
        result = campaign(chosen.keys, chosen.hsm_keys, chosen.months, strikes=chosen.strikes, seed=chosen.seed, directory=Path(directory))
    print(result)
    for line in result.wrong[:20]:
        print(line)
    print(f"{time.monotonic() - begun:.0f} s, seed {chosen.seed}")
    return 1 if result.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
