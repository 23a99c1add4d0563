# SoftKey: an AeadKey whose material lies in this process, on OpenSSL.
#
# A context of OpenSSL serves one thread at a time. A call takes the cached one out of its place, or makes its own when another call has
# it, and puts it back if the place is still free: no locks. Small calls keep the GIL, because giving it up costs more than the work;
# contexts are always made with the GIL held, so that `retire` cannot wipe the key under someone's hands.

# Bytes of plaintext and associated data from which a call gives up the GIL: about 10 us of work.
cdef size_t _SOFT_NOGIL = 16384
# As the default of Token.xaes_key; FORMAT.md.
cdef unsigned long long _SOFT_EPOCH = 1 << 24


@cython.final
@cython.no_gc
cdef class SoftKey(AeadKey):
    """Suite 1 (32 bytes) or suite 2 (16, 24 or 32 bytes) in memory of this process."""

    cdef Secret secret
    cdef int made_in
    cdef soft_ctx *sealing          # NULL while a call has it
    cdef unsigned char epoch[12]    # the nonce prefix that `sealing` is for (suite 1)
    cdef unsigned long long left    # messages that the epoch has room for
    cdef soft_ctx *opening
    cdef unsigned char opens[12]    # the nonce prefix that `opening` is for (suite 1)

    def __dealloc__(self):
        soft_free(self.sealing)
        soft_free(self.opening)

    cdef int check(self) except -1:
        if self.secret is None:
            raise TypeError("the key was not made by soft_key")
        _check_fork(self.made_in, "the AeadKey")
        if self.retired:
            raise _retired()
        return 0

    def retire(self):
        """Refuse further use and wipe the key; always True. Calls in flight finish. Idempotent."""
        if self.secret is None:
            raise TypeError("the key was not made by soft_key")
        _check_fork(self.made_in, "the AeadKey")
        self.retired = True
        soft_free(self.sealing)
        soft_free(self.opening)
        self.sealing = self.opening = NULL
        self.secret.close()
        return True

    cdef soft_ctx *context(self, const unsigned char *prefix, bint sealing) noexcept:
        if self.suite == 1:
            return soft_xaes(self.secret.data, prefix, sealing)
        return soft_gcm(self.secret.data, self.secret.length, sealing)

    cdef int seal(self, hot_item *items, Py_ssize_t n, const unsigned char *aad, Py_ssize_t aad_len) except -1:
        cdef soft_ctx *ctx
        cdef unsigned char prefix[12]
        cdef Py_ssize_t i
        cdef Py_ssize_t m
        while n:
            if self.retired:
                # In the middle of a batch, while another stretch ran without the GIL.
                _fail(items, n, KMS_RV_RETIRED, STEP_NONE)
                return 0
            m = n
            if self.suite == 1:
                if self.left == 0:
                    if nonce_take(self.epoch):
                        _fail(items, n, KMS_RV_RANDOM, STEP_NONE)
                        return 0
                    self.left = _SOFT_EPOCH
                    soft_free(self.sealing)
                    self.sealing = NULL
                m = min(n, <Py_ssize_t>self.left)
                self.left -= m
            memcpy(prefix, self.epoch, 12)
            ctx, self.sealing = self.sealing, NULL
            if ctx == NULL:
                ctx = self.context(prefix, True)
            if ctx == NULL:
                _fail(items, n, KMS_RV_CRYPTO, STEP_SOFT)
                return 0
            for i in range(m):
                if self.suite == 1:
                    memcpy(items[i].nonce, prefix, 12)
                if nonce_take(items[i].nonce + self.nonce_size - GCM_IV):
                    soft_free(ctx)
                    _fail(items, n, KMS_RV_RANDOM, STEP_NONE)
                    return 0
            self.run(ctx, items, m, aad, aad_len, True)
            if self.sealing == NULL and not self.retired and memcmp(prefix, self.epoch, 12) == 0:
                self.sealing = ctx
            else:
                soft_free(ctx)
            items += m
            n -= m
        return 0

    cdef int unseal(self, hot_item *items, Py_ssize_t n, const unsigned char *aad, Py_ssize_t aad_len) except -1:
        cdef soft_ctx *ctx
        cdef unsigned char prefix[12]
        cdef Py_ssize_t m
        memset(prefix, 0, 12)
        while n:
            if self.retired:
                _fail(items, n, KMS_RV_RETIRED, STEP_NONE)
                return 0
            # A stretch of messages under one key.
            m = n
            if self.suite == 1:
                memcpy(prefix, items[0].nonce, 12)
                m = 1
                while m < n and memcmp(prefix, items[m].nonce, 12) == 0:
                    m += 1
            ctx = NULL
            if self.opening != NULL and memcmp(prefix, self.opens, 12) == 0:
                ctx, self.opening = self.opening, NULL
            else:
                ctx = self.context(prefix, False)
            if ctx == NULL:
                _fail(items, n, KMS_RV_CRYPTO, STEP_SOFT)
                return 0
            self.run(ctx, items, m, aad, aad_len, False)
            if self.retired:
                soft_free(ctx)
            else:
                soft_free(self.opening)
                self.opening = ctx
                memcpy(self.opens, prefix, 12)
            items += m
            n -= m
        return 0

    cdef void run(self, soft_ctx *ctx, hot_item *items, Py_ssize_t n, const unsigned char *aad, Py_ssize_t aad_len, bint sealing) noexcept:
        cdef size_t work = n * aad_len
        cdef Py_ssize_t nonce_size = self.nonce_size
        cdef Py_ssize_t i
        for i in range(n):
            work += items[i].in_len
        if work < _SOFT_NOGIL:
            if sealing:
                soft_seal(ctx, items, n, nonce_size, aad, aad_len)
            else:
                soft_open(ctx, items, n, nonce_size, aad, aad_len)
            return
        with nogil:
            if sealing:
                soft_seal(ctx, items, n, nonce_size, aad, aad_len)
            else:
                soft_open(ctx, items, n, nonce_size, aad, aad_len)


def soft_key(Secret secret not None, int suite):
    """An AeadKey in this process's memory, on OpenSSL. Takes the bytes over: `secret` is closed afterwards.

    Suite 1 needs 32 bytes, suite 2 needs 16, 24 or 32. Raises ValueError.
    """
    secret.check()
    if suite not in (1, 2):
        raise ValueError("the suite is 1 or 2")
    if secret.length != 32 and (suite == 1 or secret.length not in (16, 24)):
        raise ValueError("suite 1 needs a key of 32 bytes, suite 2 one of 16, 24 or 32")
    cdef SoftKey key = SoftKey.__new__(SoftKey)
    key.secret = secret.move()
    key.suite = suite
    key.nonce_size = 24 if suite == 1 else 12
    key.made_in = kms_forks
    return key
