# What the core asks of the operating system for others: durability, and a process that does not spill its memory.


def syncfs(str path not None):
    """Flush the file system that holds `path` (syncfs(2)): the durability barrier after a token wrote its files. Raises OSError."""
    cdef bytes name = os.fsencode(path)
    cdef const char *c_name = name
    cdef int error = 0
    cdef int fd
    with nogil:
        fd = c_open(c_name, O_RDONLY | O_CLOEXEC)
        if fd < 0:
            error = errno
        else:
            if c_syncfs(fd):
                error = errno
            c_close(fd)
    if error:
        raise OSError(error, os.strerror(error), path)


def protect_process():
    """RLIMIT_CORE = 0 and PR_SET_DUMPABLE = 0 for this process (RELIABILITY H1); says which took effect."""
    cdef rlimit none
    none.rlim_cur = none.rlim_max = 0
    return {"no_core_file": setrlimit(RLIMIT_CORE, &none) == 0, "not_dumpable": prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0}


def live_secrets():
    """How many Secrets of this process hold bytes now: for tests that look for leaks."""
    return secret_live()
