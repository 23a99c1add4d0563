# The C core: secrets in memory of its own, PKCS#11 sessions, the hot path of encryption, and private keys.
#
# It knows nothing of keys, versions, states, events or contexts: callers hand it handles, headers and associated data. One C unit, so that
# the parts call each other directly; each .pxi holds one subject.
"""The compiled core of kmscore.custody: Secret, Module, Token and the keys. Its face is _p11.pyi, its C parts lie in ext/."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from libc.errno cimport EINTR, errno
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy, memset
from posix.fcntl cimport O_RDONLY
from posix.resource cimport rlimit, setrlimit
from posix.unistd cimport usleep

from ck cimport *
from core cimport *

import os

from kmscore.errors import KmsError, SetupError, TokenError, invalid, undecryptable

cdef extern from *:
    """
    #include <fcntl.h>
    #include <sys/prctl.h>
    #include <sys/resource.h>
    #include <unistd.h>
    """
    int O_CLOEXEC
    int RLIMIT_CORE
    int PR_SET_DUMPABLE
    int c_open "open"(const char *path, int flags, ...) nogil
    ssize_t c_read "read"(int fd, void *to, size_t size) nogil
    int c_close "close"(int fd) nogil
    int c_syncfs "syncfs"(int fd) nogil
    int prctl(int option, ...) nogil
    # A bytes object before anyone else can see it may be filled and resized; these see it as a bare pointer.
    PyObject *raw_bytes_new "PyBytes_FromStringAndSize"(const char *from_where, Py_ssize_t size) except NULL
    char *raw_bytes_at "PyBytes_AS_STRING"(PyObject *raw)
    int raw_bytes_resize "_PyBytes_Resize"(PyObject **raw, Py_ssize_t size) except -1

if kms_fork_watch():
    raise SetupError("pthread_atfork failed")
if soft_init():
    raise SetupError("OpenSSL offers no AES-GCM")
if hash_init() or mac_init():
    raise SetupError("OpenSSL lacks a hash function or HMAC")

include "rv.pxi"
include "secret.pxi"
include "module.pxi"
include "token.pxi"
include "derived.pxi"
include "aead.pxi"
include "token_key.pxi"
include "soft_key.pxi"
include "token_asym.pxi"
include "soft_private.pxi"
include "mac.pxi"
include "wrap.pxi"
include "host.pxi"
