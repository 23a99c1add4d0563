# Secret: bytes that stay in pages of the core's own. The pages come from secret.c.


@cython.final
@cython.no_gc
cdef class Secret:
    """Key material in memory that the core owns: locked where RLIMIT_MEMLOCK allows, not dumped, zero in a forked child, wiped on close.

    Made by `random`, `from_file` or `copy_of`. It has no buffer protocol, no copy, no pickle and a repr that says nothing. Usable until
    `close()`; a call that is using it at that moment finishes first, then it is wiped.
    """

    cdef unsigned char *data
    cdef size_t capacity  # what the slot was allocated with
    cdef size_t length
    cdef int pins         # calls that use it without the GIL
    cdef int made_in
    cdef bint closing
    cdef bint in_locked_pages

    def __init__(self):
        raise TypeError("a Secret is made by Secret.random, Secret.from_file or Secret.copy_of")

    def __dealloc__(self):
        self.wipe()

    def __repr__(self):
        return "<Secret>"

    def __reduce__(self):
        raise TypeError("a Secret cannot be pickled or copied")

    cdef void wipe(self) noexcept:
        if self.data != NULL and self.made_in == kms_forks:
            secret_free(self.data, self.capacity)
        self.data = NULL

    cdef int check(self) except -1:
        _check_fork(self.made_in, "the Secret")
        if self.data == NULL or self.closing:
            raise ValueError("the Secret is closed")
        return 0

    cdef void pin(self) noexcept:
        self.pins += 1

    cdef void unpin(self) noexcept:
        self.pins -= 1
        if self.pins == 0 and self.closing:
            self.wipe()

    cdef Secret move(self):
        """A new Secret that owns the bytes; this one is closed."""
        self.check()
        if self.pins:
            raise ValueError("the Secret is in use")
        cdef Secret other = Secret.__new__(Secret)
        other.data, other.capacity, other.length = self.data, self.capacity, self.length
        other.made_in, other.in_locked_pages = self.made_in, self.in_locked_pages
        self.data = NULL
        return other

    @staticmethod
    def random(Py_ssize_t size):
        """`size` bytes (1 to 8192) from getrandom. Raises ValueError, OSError."""
        if not 1 <= size <= 8192:
            raise ValueError("a Secret holds 1 to 8192 bytes")
        cdef Secret self = _new_secret(size)
        if random_fill(self.data, size):
            raise OSError(errno, "getrandom failed")
        return self

    @staticmethod
    def copy_of(data not None):
        """A copy of 1 to 8192 bytes; what it was copied from stays where it is, and is the caller's to wipe. Raises ValueError."""
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if not 1 <= view.len <= 8192:
                raise ValueError("a Secret holds 1 to 8192 bytes")
            self = _new_secret(view.len)
            memcpy((<Secret>self).data, view.buf, view.len)
        finally:
            PyBuffer_Release(&view)
        return self

    @staticmethod
    def from_file(str path not None):
        """The content of a file, 1 to 4096 bytes, read straight into the locked pages. One newline at the end is dropped.

        Raises SetupError when the file cannot be read or has another size.
        """
        cdef bytes name = os.fsencode(path)
        cdef const char *c_name = name
        cdef Secret self = _new_secret(4098)  # a full file, its newline, and one byte more that betrays a longer one
        cdef ssize_t got = 0
        cdef size_t total = 0
        cdef int fd = c_open(c_name, O_RDONLY | O_CLOEXEC)
        if fd < 0:
            raise SetupError(f"cannot read {path}: {os.strerror(errno)}")
        while total < 4098:
            got = c_read(fd, self.data + total, 4098 - total)
            if got < 0 and errno == EINTR:
                continue
            if got <= 0:
                break
            total += got
        error = errno
        c_close(fd)
        if got < 0:
            raise SetupError(f"cannot read {path}: {os.strerror(error)}")
        if total and self.data[total - 1] == c"\n":
            total -= 1
        if not 1 <= total <= 4096:
            raise SetupError(f"{path} must hold 1 to 4096 bytes")
        self.length = total
        return self

    def reveal(self):
        """The bytes, in memory of Python that nobody can wipe: for the plaintext of a data key that a caller asked for."""
        self.check()
        return PyBytes_FromStringAndSize(<char *>self.data, self.length)

    def close(self):
        """Wipe it. Idempotent; in a forked child it does nothing, the pages are zero there."""
        self.closing = True
        if self.pins == 0:
            self.wipe()

    @property
    def size(self):
        """How many bytes it holds."""
        self.check()
        return self.length

    @property
    def locked(self):
        """Whether its pages are locked in memory (mlock); False means that they could be swapped out."""
        return self.in_locked_pages


cdef Secret _new_secret(size_t size):
    """An open Secret of `size` zero bytes (up to SECRET_MAX; 0 is possible, for an empty plaintext)."""
    cdef Secret self = Secret.__new__(Secret)
    cdef int locked = 0
    self.capacity = size if size else 1
    self.data = secret_alloc(self.capacity, &locked)
    if self.data == NULL:
        raise MemoryError
    self.length = size
    self.made_in = kms_forks
    self.in_locked_pages = locked
    return self
