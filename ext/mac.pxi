# SoftMacKey: an HMAC key in this process, on OpenSSL. Its contexts come and go as those of a SoftKey do.


@cython.final
@cython.no_gc
cdef class SoftMacKey:
    """An HMAC key in memory of this process. Thread-safe. Made by soft_mac_key.

    Every method raises SetupError in a forked child, and `mac` KmsError Rejected.Unavailable once the key is retired.
    """

    cdef Secret secret
    cdef int hash_id
    cdef int made_in
    cdef bint retired
    cdef long calls           # calls that have a context now; kept under the GIL
    cdef EVP_MAC_CTX *ready   # NULL while a call has it

    def __init__(self):
        raise TypeError("a SoftMacKey is made by soft_mac_key")

    def __reduce__(self):
        raise TypeError("a SoftMacKey cannot be pickled or copied")

    def __dealloc__(self):
        mac_free(self.ready)

    def mac(self, message not None):
        """HMAC of a message, 32, 48 or 64 bytes."""
        cdef hot_item item
        cdef Source source
        if self.secret is None:
            raise TypeError("the key was not made by soft_mac_key")
        _take_blob(message, &item, &source)
        try:
            _check_fork(self.made_in, "the SoftMacKey")
            if self.retired:
                raise _retired()
            return self.take(&item)
        finally:
            _release_input(&source)

    cdef bytes take(self, hot_item *item):
        cdef size_t size = hashes[self.hash_id].size
        cdef EVP_MAC_CTX *ctx = self.ready
        cdef int failed
        tag = PyBytes_FromStringAndSize(NULL, size)
        cdef unsigned char *out = <unsigned char *>PyBytes_AS_STRING(tag)
        self.ready = NULL
        if ctx == NULL:
            ctx = mac_new(self.secret.data, self.secret.length, self.hash_id)
        if ctx == NULL:
            raise _openssl_failed()
        if item.in_len < _SOFT_NOGIL:
            failed = mac_take(ctx, item.input, item.in_len, out, size)
        else:
            self.calls += 1
            with nogil:
                failed = mac_take(ctx, item.input, item.in_len, out, size)
            self.calls -= 1
        if self.retired or self.ready != NULL:
            mac_free(ctx)
        else:
            self.ready = ctx
        if failed:
            raise _openssl_failed()
        return tag

    def retire(self):
        """Refuse further use and wipe the key, the copy of a call in flight when it ends. True when none is in flight. Idempotent."""
        if self.secret is None:
            raise TypeError("the key was not made by soft_mac_key")
        _check_fork(self.made_in, "the SoftMacKey")
        self.retired = True
        mac_free(self.ready)
        self.ready = NULL
        self.secret.close()
        return self.calls == 0


def soft_mac_key(Secret secret not None, str hash not None):
    """An HMAC key with "SHA-256", "SHA-384" or "SHA-512". Takes the bytes over: `secret` is closed afterwards. Raises ValueError."""
    cdef SoftMacKey key = SoftMacKey.__new__(SoftMacKey)
    key.hash_id = _hash(hash, _NO_SHA1)
    key.secret = secret.move()
    key.made_in = kms_forks
    return key
