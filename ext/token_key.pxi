# TokenKey: an AeadKey whose material lies in a token.


@cython.final
@cython.no_gc
cdef class TokenKey(AeadKey):
    """Suite 1 on a master that only derives, or suite 2 on a resident AES key."""

    cdef Token token
    cdef CK_OBJECT_HANDLE master
    cdef unsigned long long epoch_messages
    cdef unsigned char k1[16]
    cdef Derived epoch         # what encrypts now; also on the shelf
    cdef dict shelf            # prefix (12 bytes) -> Derived

    def __dealloc__(self):
        # Derived keys outlive this by the moment it takes to clear the shelf: they must not look back.
        if self.shelf is not None:
            for derived in self.shelf.values():
                _unlist(<Derived>derived)
                (<Derived>derived).key = NULL
        explicit_bzero(self.k1, sizeof(self.k1))

    cdef int check(self) except -1:
        if self.token is None:
            raise TypeError("the key was not made by a Token")
        if self.retired:
            raise _retired()
        return self.token.check()

    def retire(self):
        """Refuse further use and drop every derived key; idempotent.

        True when none is left in the token: calls in flight still hold theirs, so call it again to learn when the last one has gone.
        """
        if self.token is None:
            raise TypeError("the key was not made by a Token")
        _check_fork(self.token.made_in, "the AeadKey")
        self.retired = True
        self.epoch = None
        for derived in list(self.shelf.values()):
            self.drop(derived)
        # The loop variable would keep the last one alive.
        derived = None
        return self.live == 0

    def derive_subkey_for_test(self, bytes nonce not None):
        """The handle of Kx for a 24-byte nonce, kept as long as the token's limit allows. For vectors and benchmarks. Raises TokenError."""
        cdef CK_RV rv = CKR_OK
        cdef Derived derived
        if self.suite != 1 or len(nonce) != 24:
            raise ValueError("a subkey needs suite 1 and a nonce of 24 bytes")
        self.check()
        prefix = nonce[:12]
        derived = self.shelf.get(prefix)
        if derived is None:
            derived = _derive(self, <const unsigned char *>PyBytes_AS_STRING(prefix), &rv)
            if derived is None:
                raise token_error(rv, "C_DeriveKey")
            self.keep(derived, False)
        return derived.handle

    cdef int keep(self, Derived derived, bint as_epoch) except -1:
        """Put it on the shelf, unless the key is retired or another thread was faster."""
        prefix = PyBytes_FromStringAndSize(<char *>derived.prefix, 12)
        if self.retired or prefix in self.shelf:
            return 0
        self.shelf[prefix] = derived
        _list(derived)
        if as_epoch:
            self.epoch = derived
        # Last, because destroying what goes over the limit lets other threads run.
        return _shorten(self.token)

    cdef int drop(self, Derived derived) except -1:
        """Take it off the shelf. It is destroyed when the last call that uses it ends."""
        _unlist(derived)
        if self.epoch is derived:
            self.epoch = None
        prefix = PyBytes_FromStringAndSize(<char *>derived.prefix, 12)
        if self.shelf.get(prefix) is derived:
            del self.shelf[prefix]
        return 0

    cdef size_t run(self, hot_item *items, Py_ssize_t n, const unsigned char *aad, Py_ssize_t aad_len, bint sealing) noexcept:
        """One stretch without the GIL; a token may stall. Returns how many items failed."""
        cdef hot_lane lane
        cdef Py_ssize_t nonce_size = self.nonce_size
        cdef size_t bad
        if not self.token.enter(&lane, False):
            _fail(items, n, KMS_RV_CLOSED, STEP_NONE)
            return n
        with nogil:
            if sealing:
                bad = hot_seal(&lane, items, n, nonce_size, aad, aad_len)
            else:
                bad = hot_open(&lane, items, n, nonce_size, aad, aad_len)
        self.token.give(&lane)
        return bad

    # Encrypting: under the key of the epoch.

    cdef Derived current_epoch(self, CK_RV *rv):
        """The derived key that encrypts now, with room for a message unless other threads came first; None with *rv set."""
        cdef unsigned char prefix[12]
        cdef Derived epoch = self.epoch
        if epoch is not None and epoch.used < self.epoch_messages:
            return epoch
        if nonce_take(prefix):
            rv[0] = KMS_RV_RANDOM
            return None
        epoch = _derive(self, prefix, rv)
        if epoch is None:
            return None
        if self.epoch is not None and self.epoch.used < self.epoch_messages:
            return self.epoch  # another thread was faster
        self.keep(epoch, True)
        return epoch

    cdef int seal(self, hot_item *items, Py_ssize_t n, const unsigned char *aad, Py_ssize_t aad_len) except -1:
        return self.seal_some(items, n, aad, aad_len, True)

    cdef int seal_some(self, hot_item *items, Py_ssize_t n, const unsigned char *aad, Py_ssize_t aad_len, bint again) except -1:
        cdef Py_ssize_t m
        cdef Py_ssize_t i
        cdef CK_RV rv = CKR_OK
        cdef Derived epoch = None
        cdef CK_OBJECT_HANDLE handle = self.master
        while n:
            if self.retired:
                _fail(items, n, KMS_RV_RETIRED, STEP_NONE)
                return 0
            m = n
            if self.suite == 1:
                epoch = self.current_epoch(&rv)
                if epoch is None:
                    _fail(items, n, rv, STEP_DERIVE)
                    return 0
                m = min(n, <Py_ssize_t>(self.epoch_messages - epoch.used))
                if m == 0:
                    continue  # others used it up while this thread destroyed a key that had to make room
                epoch.used += m
                handle = epoch.handle
                _touch(epoch)
            for i in range(m):
                if epoch is not None:
                    memcpy(items[i].nonce, epoch.prefix, 12)
                if nonce_take(items[i].nonce + self.nonce_size - GCM_IV):
                    _fail(items, n, KMS_RV_RANDOM, STEP_NONE)
                    return 0
                items[i].key = handle
            if self.run(items, m, aad, aad_len, True) and epoch is not None and again:
                for i in range(m):
                    if hot_key_gone(items[i].rv):
                        # The session key went, with its session perhaps; the master may still be there.
                        self.drop(epoch)
                        items[i].rv = CKR_OK
                        self.seal_some(&items[i], 1, aad, aad_len, False)
            items += m
            n -= m
        return 0

    # Decrypting: under the key that each nonce asks for.

    cdef Derived known(self, const unsigned char *nonce, dict held):
        """The derived key for a nonce, if this call or the shelf has it."""
        if self.epoch is not None and memcmp(self.epoch.prefix, nonce, 12) == 0:
            return self.epoch
        prefix = PyBytes_FromStringAndSize(<const char *>nonce, 12)
        found = held.get(prefix) if held is not None else None
        return found if found is not None else self.shelf.get(prefix)

    cdef int unseal(self, hot_item *items, Py_ssize_t n, const unsigned char *aad, Py_ssize_t aad_len) except -1:
        return self.unseal_some(items, n, aad, aad_len, True)

    cdef int unseal_some(self, hot_item *items, Py_ssize_t n, const unsigned char *aad, Py_ssize_t aad_len, bint again) except -1:
        cdef Py_ssize_t i
        cdef Py_ssize_t start = 0
        cdef CK_RV rv = CKR_OK
        cdef Derived derived = None
        cdef dict held
        if self.retired:
            _fail(items, n, KMS_RV_RETIRED, STEP_NONE)
            return 0
        if self.suite == 2:
            for i in range(n):
                items[i].key = self.master
            self.run(items, n, aad, aad_len, False)
            return 0
        # Most often all were written in one epoch, whose key is there.
        derived = self.known(items[0].nonce, None)
        if derived is not None and _fit(derived, items, n):
            _touch(derived)
            if self.run(items, n, aad, aad_len, False) and again:
                for i in range(n):
                    if hot_key_gone(items[i].rv):
                        self.drop(derived)
                        items[i].rv = CKR_OK
                        self.unseal_some(&items[i], 1, aad, aad_len, False)
            return 0
        held = {}
        derived = None
        for i in range(n):
            if derived is None or memcmp(derived.prefix, items[i].nonce, 12):
                derived = self.known(items[i].nonce, held)
                if derived is None:
                    if len(held) >= self.token.limit:
                        # A batch may not hold more derived keys at once than the token keeps.
                        self.unseal_held(&items[start], i - start, aad, aad_len, held, again)
                        start = i
                    # No nonce makes a derivation fail, so one failure stands for all that would follow in this slice.
                    if rv == CKR_OK:
                        derived = _derive(self, items[i].nonce, &rv)
                    if derived is None:
                        _fail(&items[i], 1, rv, STEP_DERIVE)
                        continue
                held[PyBytes_FromStringAndSize(<char *>derived.prefix, 12)] = derived
                _touch(derived)
            items[i].key = derived.handle
        return self.unseal_held(&items[start], n - start, aad, aad_len, held, again)

    cdef int unseal_held(self, hot_item *items, Py_ssize_t n, const unsigned char *aad, Py_ssize_t aad_len, dict held,
                         bint again) except -1:
        """Decrypt with the keys in `held` (prefix -> Derived), keep those that opened something, and empty it."""
        cdef Py_ssize_t i
        cdef Derived derived
        cdef size_t bad = self.run(items, n, aad, aad_len, False)
        for derived in held.values():
            if derived.listed and not bad:
                continue
            for i in range(n):
                if items[i].key != derived.handle:
                    continue
                if items[i].rv == CKR_OK and not derived.listed:
                    self.keep(derived, False)
                elif again and hot_key_gone(items[i].rv):
                    self.drop(derived)
                    items[i].rv = CKR_OK
                    self.unseal_some(&items[i], 1, aad, aad_len, False)
        held.clear()
        return 0


cdef bint _fit(Derived derived, hot_item *items, Py_ssize_t n) noexcept:
    """Point the items at the derived key; False when the nonce of one asks for another."""
    cdef Py_ssize_t i
    for i in range(n):
        if memcmp(derived.prefix, items[i].nonce, 12):
            return False
        items[i].key = derived.handle
    return True


cdef TokenKey _new_token_key(Token token, CK_OBJECT_HANDLE master, int suite, unsigned long long epoch_messages):
    cdef TokenKey key = TokenKey.__new__(TokenKey)
    cdef unsigned char l[16]
    token.check()
    key.token, key.master, key.suite, key.epoch_messages = token, master, suite, epoch_messages
    key.nonce_size = 24 if suite == 1 else 12
    key.shelf = {}
    if suite == 1:
        _learn_l(token, master, l)
        xaes_k1(l, key.k1)
        explicit_bzero(l, sizeof(l))
    return key


cdef int _learn_l(Token token, CK_OBJECT_HANDLE master, unsigned char *l) except -1:
    """L = AES(K, 0^128), 16 bytes. Raises TokenError."""
    cdef hot_lane lane
    cdef CK_RV rv
    cdef int step = STEP_NONE
    token.take(&lane, False)
    with nogil:
        rv = hot_learn_l(&lane, master, l, &step)
        if rv != CKR_OK:
            hot_drop_session(&lane)
    token.derivations += 1
    token.give(&lane)
    return _check_rv(rv, _FUNCTIONS[step])
