"""Engines in processes of their own, that share one PostgreSQL: told what to do a line at a time, and stopped, cut off or killed meanwhile."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

# Answers each line, a JSON list of a method and its arguments, with [code, seconds, instant of the answer by the clock of all processes].
# "slow S" before the method lets the custody stall for S seconds where it is asked for new material, once.
PROGRAM = """
import json, sys, time
import kmscore
from kmscore.custody.software import SoftwareKeeper

home, url, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
generate, stall = SoftwareKeeper.generate, []

def stalling(self, ref):
    where = stall.pop(0) if stall else ("", 0)
    if where[0] == "before":
        print("stalled", flush=True)
        time.sleep(where[1])
    facts = generate(self, ref)
    if where[0] == "after":
        print("stalled", flush=True)
        time.sleep(where[1])
    return facts

SoftwareKeeper.generate = stalling
with kmscore.open_kms(home, database_url=url, pkcs11_module="none", **settings) as kms:
    print("ready", flush=True)
    for line in sys.stdin:
        method, arguments, named = json.loads(line)
        begun = time.monotonic()
        if method == "stall":
            stall.append(tuple(arguments))
            answer = "OK"
        elif method == "use":
            try:
                kms.encrypt(arguments[0], b"x")
                answer = "OK"
            except kmscore.KmsError as error:
                answer = error.code
        else:
            try:
                result = getattr(kms, method)(*arguments, **named)
                answer = "OK " + str(getattr(result, "key_id", "")) if result is not None else "OK"
            except kmscore.KmsError as error:
                answer = error.code
        print(json.dumps([answer.strip(), time.monotonic() - begun]), flush=True)
"""


class Node:
    def __init__(self, home: Path, url: str, **settings: Any) -> None:
        settings.setdefault("ticker", False)
        command = [sys.executable, "-c", PROGRAM, str(home), url, json.dumps(settings)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert self.line() == "ready"

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self, seconds: float = 60) -> str:
        """The next line it says."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        assert ready, f"no answer in {seconds} seconds"
        return self.process.stdout.readline().decode().strip()

    def tell(self, method: str, *arguments: Any, **named: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([method, arguments, named]).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self) -> tuple[str, float]:
        """(code and, of a key, its id; seconds)."""
        code, seconds = json.loads(self.line())
        return code, seconds

    def ask(self, method: str, *arguments: Any, **named: Any) -> str:
        self.tell(method, *arguments, **named)
        return self.answer()[0]

    def use(self, key: str) -> str:
        return self.ask("use", key)

    def create(self) -> str:
        code, _, key = self.ask("create_key").partition(" ")
        assert code == "OK", code
        return key

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        while Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.001)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(20) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()

    def until(self, wanted: str, method: str, *arguments: Any, seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while (code := self.ask(method, *arguments)) != wanted:
            assert time.monotonic() < deadline, code
            time.sleep(0.02)
