# Derived: one session key in the token, and the order in which a Token's derived keys were used.


@cython.final
@cython.no_gc
cdef class Derived:
    """Kx for one nonce prefix, a session object of the token. Destroyed when the last reference goes: a call in flight holds one."""

    cdef Token token
    cdef void *key               # its TokenKey, borrowed: the key outlives it or clears this (TokenKey.__dealloc__)
    cdef Nursery *home
    cdef CK_OBJECT_HANDLE handle
    cdef unsigned long long used  # messages encrypted under it by this process
    cdef unsigned char prefix[12]
    cdef bint listed
    cdef void *newer
    cdef void *older

    def __dealloc__(self):
        cdef hot_lane lane
        cdef Token token = self.token
        if self.handle == CK_INVALID_HANDLE:
            return
        _unlist(self)
        if token.reachable():
            token.take(&lane, False)
            with nogil:
                # A failure leaves an object that ends with its session; there is no one to tell.
                hot_destroy(&lane, self.handle)
            token.give(&lane)
        token.live_derived -= 1
        if self.key != NULL:
            (<TokenKey>self.key).live -= 1
        if self.home != NULL:
            self.home.keys -= 1
            _close_spoiled(token, self.home)


cdef void _close_spoiled(Token token, Nursery *nursery) noexcept:
    """Close a nursery that may not be used again once nothing lives in it."""
    cdef hot_lane lane
    if not nursery.spoiled or nursery.busy or nursery.keys or nursery.session == CK_INVALID_HANDLE or not token.reachable():
        return
    token.take(&lane, True)
    lane.session, nursery.session = nursery.session, CK_INVALID_HANDLE
    hot_drop_session(&lane)
    token.give(&lane)


cdef Nursery *_free_nursery(Token token) noexcept:
    """A nursery for one derivation, marked busy; NULL when there is no memory. A closed one is used anew."""
    cdef Nursery *nursery = token.nurseries
    while nursery != NULL:
        if not nursery.busy and (not nursery.spoiled or nursery.session == CK_INVALID_HANDLE):
            break
        nursery = nursery.next
    if nursery == NULL:
        nursery = <Nursery *>calloc(1, sizeof(Nursery))
        if nursery == NULL:
            return NULL
        nursery.next = token.nurseries
        token.nurseries = nursery
    nursery.busy = True
    nursery.spoiled = False
    return nursery


cdef Derived _derive(TokenKey key, const unsigned char *prefix, CK_RV *rv, bint again=True):
    """A new Kx of `key`, or None with *rv set. It is in no list yet, so junk that no key opens pushes no useful key out."""
    cdef Token token = key.token
    cdef Derived derived
    cdef Nursery *nursery
    cdef hot_lane lane
    cdef unsigned char blocks[32]
    cdef CK_OBJECT_HANDLE handle = CK_INVALID_HANDLE
    cdef CK_OBJECT_HANDLE master = key.master
    cdef bint private_hot_keys = token.private_hot_keys
    if key.retired or not token.enter(&lane, True):
        rv[0] = KMS_RV_RETIRED if key.retired else KMS_RV_CLOSED
        return None
    derived = Derived.__new__(Derived)
    nursery = _free_nursery(token)
    if nursery == NULL:
        token.give(&lane)
        rv[0] = KMS_RV_MEMORY
        return None
    xaes_blocks(key.k1, prefix, blocks)
    lane.session = nursery.session
    # Counted before it exists: `retire` must not answer that nothing is left while a derivation is on its way.
    key.live += 1
    token.live_derived += 1
    with nogil:
        rv[0] = hot_derive(&lane, master, blocks, private_hot_keys, &handle)
    token.derivations += 1
    nursery.session, lane.session = lane.session, CK_INVALID_HANDLE
    nursery.busy = False
    token.give(&lane)
    if rv[0] != CKR_OK:
        key.live -= 1
        token.live_derived -= 1
        nursery.spoiled = True
        _close_spoiled(token, nursery)
        if again and (rv[0] == CKR_SESSION_HANDLE_INVALID or rv[0] == CKR_SESSION_CLOSED):
            return _derive(key, prefix, rv, False)
        return None
    nursery.keys += 1
    derived.token, derived.key, derived.home, derived.handle = token, <void *>key, nursery, handle
    memcpy(derived.prefix, prefix, 12)
    if key.retired:
        rv[0] = KMS_RV_RETIRED
        return None  # the object is destroyed with `derived`
    return derived


# The list of a Token runs from the key used last to the one used longest ago. Its pointers are borrowed.

cdef void _unlist(Derived derived) noexcept:
    cdef Token token = derived.token
    if not derived.listed:
        return
    if derived.newer != NULL:
        (<Derived>derived.newer).older = derived.older
    else:
        token.newest = derived.older
    if derived.older != NULL:
        (<Derived>derived.older).newer = derived.newer
    else:
        token.oldest = derived.newer
    derived.newer = derived.older = NULL
    derived.listed = False
    token.listed -= 1


cdef void _list(Derived derived) noexcept:
    """Put it in front. Its AeadKey holds a reference already."""
    cdef Token token = derived.token
    derived.older = token.newest
    if derived.older != NULL:
        (<Derived>derived.older).newer = <void *>derived
    else:
        token.oldest = <void *>derived
    token.newest = <void *>derived
    derived.listed = True
    token.listed += 1


cdef inline void _touch(Derived derived) noexcept:
    """Make it the one used last, if it is in the list at all."""
    if derived.newer != NULL:  # neither the newest nor unlisted
        _unlist(derived)
        _list(derived)


cdef int _shorten(Token token) except -1:
    """Let go of the keys used longest ago until the limit holds."""
    cdef Derived derived
    while token.listed > token.limit:
        derived = <Derived>token.oldest
        (<TokenKey>derived.key).drop(derived)
    return 0
