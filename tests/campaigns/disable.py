"""Races of disable against use over two nodes, with nodes that are stopped and links that are cut (RELIABILITY G6).

    python -m tests.campaigns.disable --races 20000

One clock, that of this process. Not one use that began after the acknowledgement of a disable may succeed before the enable is asked for;
after the acknowledgement of the enable each use must, but for errors that say "try again" while a node is in trouble.
"""

from __future__ import annotations

import argparse
import collections
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.campaigns.served_nodes import RETRYABLE, Client, ServedNodes, Trouble

from local_servers import Postgres  # isort: skip

GRACE_SECONDS = 6.0  # from the end of a trouble until a node must serve again: a stalled connection is given up, a lease is entered


class Use(NamedTuple):
    node: int
    began: float
    ended: float
    code: str


@dataclass
class History:
    """Of one key. `disabled`: (acknowledged at, enable asked for at); `enabled`: (acknowledged at, disable asked for at)."""

    uses: list[Use] = field(default_factory=list)
    disabled: list[tuple[float, float]] = field(default_factory=list)
    enabled: list[tuple[float, float]] = field(default_factory=list)

    def served_after_disable(self) -> list[Use]:
        return [use for use in self._within(self.disabled) if use.code == "OK"]

    def refused_after_enable(self) -> list[Use]:
        return [use for use in self._within(self.enabled) if use.code != "OK"]

    def within_disable(self) -> int:
        return len(self._within(self.disabled))

    def _within(self, spans: list[tuple[float, float]]) -> list[Use]:
        """Uses that began and ended in one of the spans, which follow one another."""
        found, at = [], 0
        for use in sorted(self.uses, key=lambda use: use.began):
            while at < len(spans) and spans[at][1] < use.began:
                at += 1
            if at < len(spans) and spans[at][0] < use.began and use.ended < spans[at][1]:
                found.append(use)
        return found


@dataclass
class Report:
    races: int
    seconds: float
    uses: int
    uses_while_disabled: int
    troubles: dict[str, int]
    longest_disable: float
    served_after_disable: list[Use]
    wrong_after_enable: list[Use]

    def __str__(self) -> str:
        return (
            f"{self.races} races in {self.seconds:.0f} s: {self.uses} uses, {self.uses_while_disabled} of them between the acknowledgement of a"
            f" disable and its enable, {len(self.served_after_disable)} of those served, {len(self.wrong_after_enable)} refused after an enable"
            f" without a reason; troubles {self.troubles}; longest disable {self.longest_disable:.2f} s"
        )


class Campaign:
    def __init__(self, served: ServedNodes, races: int, keys: int) -> None:
        self._served = served
        self._left = races
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._failed: list[BaseException] = []
        self._longest = 0.0
        first = served.client(0)
        self._keys = [first.until_done("CreateKey")["KeyMetadata"]["KeyId"] for _ in range(keys)]
        self._histories = [History() for _ in range(keys)]
        first.close()

    def run(self, seed: int, pause: float) -> Report:
        begun = time.monotonic()
        races = self._left
        trouble = Trouble(self._served, seed, pause)
        work = [lambda n=n: self._race(n) for n in range(len(self._keys))]  # type: ignore[misc]
        hammers = [lambda n=n: self._hammer(n) for n in range(len(self._served.nodes))]  # type: ignore[misc]
        racing, hammering = ([threading.Thread(target=self._guarded, args=(act,)) for act in acts] for acts in (work, hammers))
        for thread in (*racing, *hammering):
            thread.start()
        trouble.start()
        for thread in racing:
            thread.join()
        self._over.set()
        trouble.finish()
        for thread in hammering:
            thread.join()
        if self._failed:
            raise self._failed[0]
        wrong = []
        for history in self._histories:
            for use in history.refused_after_enable():
                if use.code not in RETRYABLE or not trouble.troubled(use.node, use.began, use.ended, GRACE_SECONDS):
                    wrong.append(use)
        return Report(
            races,
            time.monotonic() - begun,
            sum(len(history.uses) for history in self._histories),
            sum(history.within_disable() for history in self._histories),
            dict(collections.Counter(window[3] for window in trouble.windows)),
            self._longest,
            [use for history in self._histories for use in history.served_after_disable()],
            wrong,
        )

    def _guarded(self, act: object) -> None:
        try:
            act()  # type: ignore[operator]
        except BaseException as error:
            self._failed.append(error)
            self._over.set()

    def _use(self, client: Client, node: int, number: int) -> Use:
        began = time.monotonic()
        code = client.code("Encrypt", KeyId=self._keys[number], Plaintext="eA==")
        use = Use(node, began, time.monotonic(), code)
        self._histories[number].uses.append(use)
        return use

    def _hammer(self, node: int) -> None:
        client = self._served.client(node)
        number = node
        while not self._over.is_set():
            number = (number + 1) % len(self._keys)
            self._use(client, node, number)
            time.sleep(0.002)  # the races need the processor, too
        client.close()

    def _race(self, number: int) -> None:
        """Disable and enable, each through another node in turn; after each, one use through every node that begins after it."""
        clients = [self._served.client(node) for node in range(len(self._served.nodes))]
        history, turn = self._histories[number], number
        enabled_at = time.monotonic()
        while not self._over.is_set():
            with self._lock:
                if not self._left:
                    break
                self._left -= 1
            turn += 1
            asked = time.monotonic()
            history.enabled.append((enabled_at, asked))
            clients[turn % len(clients)].until_done("DisableKey", KeyId=self._keys[number])
            disabled_at = time.monotonic()
            self._longest = max(self._longest, disabled_at - asked)
            for node, client in enumerate(clients):
                self._use(client, node, number)
            history.disabled.append((disabled_at, time.monotonic()))
            clients[turn // 2 % len(clients)].until_done("EnableKey", KeyId=self._keys[number])
            enabled_at = time.monotonic()
            for node, client in enumerate(clients):
                self._use(client, node, number)
        history.enabled.append((enabled_at, time.monotonic()))
        for client in clients:
            client.close()


def campaign(directory: Path, postgres: Postgres, url: str, races: int, *, seed: int = 1, keys: int = 4, pause: float = 2.0) -> Report:
    """`pause`: the mean of the seconds between two troubles."""
    with ServedNodes(directory, postgres, url) as served:
        return Campaign(served, races, keys).run(seed, pause)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--races", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kmscore-disable-") as name, Postgres(Path(name) / "postgres", durable=False) as postgres:
        report = campaign(Path(name), postgres, postgres.create_database("kms"), chosen.races, seed=chosen.seed)
    print(f"seed {chosen.seed}: {report}")
    return 1 if report.served_after_disable or report.wrong_after_enable else 0


if __name__ == "__main__":
    raise SystemExit(main())
