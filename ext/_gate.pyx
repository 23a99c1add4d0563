# The freshness gate: a generation counter and a slot for each process, in a file that all processes of a home map.
#
# Every word is 8 bytes, aligned, and read and written atomically; there is no lock. What a generation means is the store's business.
"""The compiled part of kmscore.store: Gate. Its face is _gate.pyi."""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR, ETIMEDOUT, errno
from libc.stdint cimport uint64_t
from posix.fcntl cimport O_RDWR
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, clockid_t, timespec

import os

from kmscore.errors import SetupError

cdef extern from "fork.h" nogil:
    int kms_forks
    int kms_fork_watch()

cdef extern from "<time.h>" nogil:
    clockid_t CLOCK_BOOTTIME

cdef extern from "gate.h" nogil:
    uint64_t gate_load(const uint64_t *at)
    void gate_store(uint64_t *at, uint64_t value)
    uint64_t gate_add(uint64_t *at)
    uint64_t gate_claim(uint64_t *at, uint64_t value)
    int gate_sleep(uint64_t *at, uint64_t seen, const timespec *deadline)
    void gate_wake(uint64_t *at)

if kms_fork_watch():
    raise SetupError("pthread_atfork failed")

SLOTS = 1024
SIZE = 4096 + 1024 * 64

cdef enum:
    _SLOTS = 1024
    _SIZE = 4096 + 1024 * 64
    _GENERATION = 8       # index of the word at byte 64
    _FIRST_SLOT = 512     # index of the word at byte 4096
    _SLOT = 8             # words in a slot
    _PID = 0
    _START = 1
    _SEEN = 2

# "KMSGATE" and the version of the layout, 1, in the byte order of the machine: the file never leaves it.
cdef uint64_t _MAGIC = 0x4b4d534741544501


@cython.final
@cython.no_gc
cdef class Gate:
    """The gate in a mapped file, which exists and is SIZE bytes. Thread-safe.

    Writes the magic number into a file of zeros. Raises SetupError for a file of another kind or size, OSError when it cannot be opened.
    The file must not be truncated while it is mapped. A forked child may read, wait and bump; for a slot it opens a Gate of its own.
    """

    cdef uint64_t *words
    cdef uint64_t *mine     # the claimed slot, or NULL
    cdef int made_in
    cdef int waiters
    cdef int closed
    cdef uint64_t lease     # nanoseconds of the boot-time clock, or 0

    def __init__(self, str path not None):
        cdef uint64_t *words
        if self.words != NULL:
            raise ValueError("the Gate is open already")
        fd = os.open(path, O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_size != SIZE:
                raise SetupError(f"{path} is not a gate file of {SIZE} bytes")
            words = <uint64_t *>mmap(NULL, _SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
            if <void *>words == MAP_FAILED:
                raise OSError(errno, os.strerror(errno), path)
        finally:
            os.close(fd)
        if gate_load(words) == 0 and _all_zero(words + 1):
            gate_claim(words, _MAGIC)
        if gate_load(words) != _MAGIC:
            munmap(words, _SIZE)
            raise SetupError(f"{path} is not a gate file of this version")
        self.words = words
        self.made_in = kms_forks

    def __dealloc__(self):
        if self.words != NULL:
            munmap(self.words, _SIZE)

    def __reduce__(self):
        raise TypeError("a Gate cannot be pickled or copied")

    cdef int check(self) except -1:
        if self.words == NULL or self.closed:
            raise SetupError("this engine is closed")
        return 0

    cdef int check_owner(self) except -1:
        self.check()
        if self.made_in != kms_forks:
            raise SetupError("the Gate was opened before fork; open it again in the child")
        return 0

    @property
    def generation(self):
        """The generation now (atomic, acquire)."""
        self.check()
        return gate_load(self.words + _GENERATION)

    @property
    def fresh(self):
        """The generation now; 0, of which no view is, once the lease of this Gate is over."""
        cdef timespec now
        cdef uint64_t lease
        self.check()
        lease = gate_load(&self.lease)
        if lease:
            clock_gettime(CLOCK_BOOTTIME, &now)
            if <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec >= lease:
                return 0
        return gate_load(self.words + _GENERATION)

    def lease_until(self, uint64_t lease):
        """Let `fresh` be 0 from that many nanoseconds of CLOCK_BOOTTIME on; of this Gate, not of the file."""
        gate_store(&self.lease, lease)

    def bump(self):
        """Add 1 to the generation, wake every waiter of every process, return the new value."""
        self.check()
        cdef uint64_t now = gate_add(self.words + _GENERATION)
        gate_wake(self.words + _GENERATION)
        return now

    def wait(self, uint64_t seen, double timeout):
        """Wait without the GIL until the generation is not `seen`, at most `timeout` seconds; returns the generation.

        Returns early when the Gate is closed meanwhile.
        """
        cdef timespec deadline
        cdef uint64_t *at
        cdef uint64_t now
        cdef int error = 0
        self.check()
        if timeout != timeout:
            raise ValueError("the time-out is not a number")
        at = self.words + _GENERATION
        clock_gettime(CLOCK_MONOTONIC, &deadline)
        # Longer than ten years is for ever; the addition must not overflow.
        timeout = min(max(timeout, 0.0), 3.2e8)
        deadline.tv_sec += <long>timeout
        deadline.tv_nsec += <long>((timeout - <long>timeout) * 1e9)
        if deadline.tv_nsec >= 1000000000:
            deadline.tv_sec += 1
            deadline.tv_nsec -= 1000000000
        self.waiters += 1
        try:
            while True:
                with nogil:
                    now = gate_load(at)
                    error = 0
                    while now == seen and error == 0 and not self.closed:
                        error = gate_sleep(at, seen, &deadline)
                        # EAGAIN: the word changed before the sleep began.
                        if error != EINTR and error != ETIMEDOUT:
                            error = 0
                        now = gate_load(at)
                if now != seen or error == ETIMEDOUT or self.closed:
                    return now
                PyErr_CheckSignals()
        finally:
            self.waiters -= 1
            if self.closed and self.waiters == 0:
                self.unmap()

    def read(self, Py_ssize_t slot):
        """(pid, start time, generation seen) of a slot, each as of one moment at which the slot had that pid."""
        cdef uint64_t *at = self.slot_at(slot)
        cdef uint64_t pid = gate_load(at + _PID)
        cdef uint64_t start
        cdef uint64_t seen
        while True:
            start = gate_load(at + _START)
            seen = gate_load(at + _SEEN)
            again = gate_load(at + _PID)
            if again == pid:
                return pid, start, seen
            pid = again

    def claim(self, Py_ssize_t slot, uint64_t pid, uint64_t start_time):
        """Take a slot for this process; the caller holds the lock of the home. It has seen generation 0 until `publish`.

        Raises ValueError when this Gate has another slot, SetupError in a forked child.
        """
        cdef uint64_t *at = self.slot_at(slot)
        self.check_owner()
        if self.mine != NULL and self.mine != at:
            raise ValueError("this Gate has claimed another slot")
        # No reader may take the old owner's words for ours: the pid goes first and comes back last.
        gate_store(at + _PID, 0)
        gate_store(at + _SEEN, 0)
        gate_store(at + _START, start_time)
        gate_store(at + _PID, pid)
        self.mine = at

    def publish(self, uint64_t seen):
        """Say in the claimed slot which generation this process has seen. Raises ValueError without one, SetupError in a forked child."""
        self.check_owner()
        if self.mine == NULL:
            raise ValueError("no slot is claimed")
        gate_store(self.mine + _SEEN, seen)

    def release(self):
        """Clear the claimed slot, if there is one. Raises SetupError in a forked child."""
        self.check_owner()
        if self.mine != NULL:
            gate_store(self.mine + _PID, 0)
            gate_store(self.mine + _START, 0)
            gate_store(self.mine + _SEEN, 0)
            self.mine = NULL

    def close(self):
        """Unmap the file; a claimed slot stays as it is, `release` it first. Waiters of this Gate return. Idempotent."""
        if self.closed or self.words == NULL:
            return
        self.closed = 1
        if self.waiters:
            # Other processes' waiters wake too, look again and go back to sleep. The last waiter of ours unmaps. One that was about to
            # fall asleep when the wake came sleeps on until its time-out or the next bump.
            gate_wake(self.words + _GENERATION)
        else:
            self.unmap()

    cdef void unmap(self) noexcept:
        munmap(self.words, _SIZE)
        self.words = NULL
        self.mine = NULL

    cdef uint64_t *slot_at(self, Py_ssize_t slot) except NULL:
        self.check()
        if not 0 <= slot < _SLOTS:
            raise ValueError(f"slots are 0 to {_SLOTS - 1}")
        return self.words + _FIRST_SLOT + _SLOT * slot


cdef bint _all_zero(const uint64_t *words) noexcept:
    """Whether all words but the first are zero."""
    cdef Py_ssize_t i
    for i in range(_SIZE // 8 - 1):
        if gate_load(words + i):
            return False
    return True
