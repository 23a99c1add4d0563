"""Nodes of `kms serve` that share one home and one PostgreSQL, each behind a link that can be cut."""

from __future__ import annotations

import http.client
import os
import random
import re
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from command import Command
from local_servers import Postgres, free_port
from tcp_proxy import TcpProxy
from wire import Answer, Wire

UNREACHABLE = "Unreachable"
KINDS = ("stop", "cut", "stall", "down")
RETRYABLE = (UNREACHABLE, "ServiceUnavailableTemporary")


class ServedNode:
    def __init__(self, home: Path, url: str, postgres: Postgres, log: Path) -> None:
        self.proxy = TcpProxy("127.0.0.1", postgres.port)
        through = url.replace(f":{postgres.port}/", f":{self.proxy.port}/")
        self.command = Command(home, {"KMS_DATABASE_URL": through, "KMS_PKCS11_MODULE": "none"})
        self.address = f"127.0.0.1:{free_port()}"
        self._log = log
        self.start()

    def start(self) -> None:
        """Returns when it serves."""
        with open(self._log, "ab") as log:
            self.process: subprocess.Popen[bytes] = self.command.start(
                "serve", "--listen", self.address, stdout=subprocess.PIPE, stderr=log
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        assert re.search(re.escape(self.address), line), (line, self._log.read_text())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def stop(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        self.proxy.close()


class ServedNodes:
    def __init__(self, directory: Path, postgres: Postgres, url: str, number: int = 2) -> None:
        self.home = directory / "home"
        self.nodes = [ServedNode(self.home, url, postgres, directory / f"node{n}.log") for n in range(number)]

    def client(self, node: int) -> Client:
        return Client(Wire.of(f"http://{self.nodes[node].address}", self.home))

    def __enter__(self) -> ServedNodes:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.close()


class Client:
    """Of one thread. Never gives a request up before its answer: what a node does late is seen, too."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def ask(self, action: str, **params: Any) -> Answer:
        """An answer with the code Unreachable where there was none."""
        try:
            return self._wire.ask(action, **params)
        except (OSError, http.client.HTTPException):
            self._wire.close()
            return Answer(0, {"Code": UNREACHABLE}, {})

    def code(self, action: str, **params: Any) -> str:
        return self.ask(action, **params).code or "OK"

    def until_done(self, action: str, seconds: float = 60, **params: Any) -> dict[str, Any]:
        """Asked again as long as it is refused for now."""
        deadline = time.monotonic() + seconds
        while (answer := self.ask(action, **params)).code in RETRYABLE:
            assert time.monotonic() < deadline, answer
            time.sleep(0.005)
        assert answer.status == 200, answer
        return answer.body

    def close(self) -> None:
        self._wire.close()


class Trouble(threading.Thread):
    """Stops nodes, cuts their links, lets them go on; remembers when."""

    def __init__(self, served: ServedNodes, seed: int, pause: float) -> None:
        super().__init__(daemon=True)
        self._served = served
        self._chance = random.Random(seed)
        self._pause = pause
        self._end = threading.Event()
        self.windows: list[tuple[int, float, float, str]] = []  # node, from, to, what

    def run(self) -> None:
        while not self._end.wait(self._chance.uniform(0.2, 1.8) * self._pause):
            number = self._chance.randrange(len(self._served.nodes))
            node = self._served.nodes[number]
            index = len(self.windows)
            what = KINDS[index % len(KINDS)]
            begun = time.monotonic()
            self.windows.append((number, begun, float("inf"), what))
            if what == "stop":
                node.stop()
            elif what == "stall":
                node.proxy.stall()
            else:
                node.proxy.cut_now(stay_down=what == "down")
            if what != "cut":
                self._end.wait(self._chance.uniform(0.05, 2.5))
            node.go_on()
            node.proxy.accept()
            node.proxy.resume()
            self.windows[index] = (number, begun, time.monotonic(), what)

    def finish(self) -> None:
        self._end.set()
        self.join()

    def troubled(self, node: int, begun: float, ended: float, grace: float) -> bool:
        """Whether something was done to a node between these instants, or so long before that it may not have come back."""
        return any(which == node and at <= ended and begun <= to + grace for which, at, to, _ in self.windows)
