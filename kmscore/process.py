"""Which process is which: names that stay true after a process identifier was given to another."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kmscore.clock import wall_seconds


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this machine since its boot. `start_time` is in clock ticks after boot (proc(5), stat field 22)."""

    boot: str
    pid: int
    start_time: int

    def __str__(self) -> str:
        return f"{self.boot}/{self.pid}/{self.start_time}"

    @classmethod
    def parse(cls, text: str) -> Process:
        boot, pid, start_time = text.split("/")
        return cls(boot, int(pid), int(start_time))

    def alive(self) -> bool:
        return self.boot == boot_id() and start_time(self.pid) == self.start_time


def this_process() -> Process:
    pid = os.getpid()
    started = start_time(pid)
    assert started is not None
    return Process(boot_id(), pid, started)


def start_time(pid: int) -> int | None:
    """When a process started, or None when there is no such process, or it is only waiting to be reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name, in parentheses, may hold anything: count from behind it.
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def started_at() -> float:
    """When this process was started, in seconds since 1970."""
    ago = time.clock_gettime(time.CLOCK_BOOTTIME) - this_process().start_time / os.sysconf("SC_CLK_TCK")
    return wall_seconds() - ago


def resident_bytes() -> int:
    """How much memory this process has in use (proc(5), statm)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@cache
def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
