"""Typed face of the freshness gate (ext/_gate.pyx): a few shared words in a memory-mapped file of the home."""

SLOTS: int  # 1024
SIZE: int  # bytes of the file: 4096 + SLOTS * 64

class Gate:
    """Header: u64 magic+version at 0, u64 generation at 64. Slot i at 4096 + 64*i: u64 pid, u64 start time, u64 generation seen."""

    def __init__(
        self, path: str
    ) -> None: ...  # file exists and is SIZE bytes; writes the magic into an all-zero file, refuses a foreign one
    @property
    def generation(self) -> int: ...  # atomic acquire load
    @property
    def fresh(self) -> int: ...  # the same; 0, of which no view is, once the lease of this Gate is over
    def lease_until(self, lease: int) -> None: ...  # nanoseconds of CLOCK_BOOTTIME; of this Gate, not of the file
    def bump(self) -> int: ...  # atomic add 1, wakes every waiter (futex), returns the new value
    def wait(self, seen: int, timeout: float) -> int: ...  # without the GIL, until generation != seen or time-out; returns generation
    def read(self, slot: int) -> tuple[int, int, int]: ...  # (pid, start time, seen)
    def claim(self, slot: int, pid: int, start_time: int) -> None: ...  # this process's slot from now on; caller holds the home lock
    def publish(self, seen: int) -> None: ...  # atomic release store into the claimed slot
    def release(self) -> None: ...  # clears the claimed slot
    def close(self) -> None: ...
