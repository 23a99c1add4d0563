# Token: sessions, the login, and the objects that a token holds.
#
# Sessions are handed out under the GIL and used by one thread for the length of one call. Derived keys are session objects: they die with
# the session that made them, so those are made in nurseries, sessions that do nothing else and stay open while a key of theirs is alive.

cdef struct Nursery:
    CK_SESSION_HANDLE session
    long keys      # derived keys that live in it
    bint busy      # a thread is deriving in it
    bint spoiled   # a call failed in it: no more derivations (RELIABILITY R-2); closed with its last key
    Nursery *next


@cython.final
@cython.no_gc
cdef class Token:
    """A token of a Module: a pool of sessions, the login that they share, and the derived keys in order of use. Made by `Module.open`."""

    cdef _Library library
    cdef unsigned long generation
    cdef int made_in
    cdef readonly CK_SLOT_ID slot
    cdef readonly bint private_hot_keys
    cdef CK_FUNCTION_LIST_3_0 *messages  # NULL where the token does not take AES-GCM as messages (PKCS#11 3.0)
    cdef bint closed                # new calls are refused
    cdef bint swept                 # the sessions are closed
    cdef long calls                 # calls that are inside the module now; kept under the GIL
    cdef long open_sessions         # kept with atomic operations, also without the GIL
    cdef CK_SESSION_HANDLE anchor   # the session that keeps the login alive
    cdef CK_SESSION_HANDLE *idle
    cdef Py_ssize_t idle_count
    cdef Py_ssize_t idle_room
    cdef Nursery *nurseries
    cdef void *newest               # Derived keys in order of use, borrowed: each one's AeadKey owns it
    cdef void *oldest
    cdef Py_ssize_t listed
    cdef Py_ssize_t limit
    cdef readonly Py_ssize_t live_derived
    cdef readonly unsigned long long derivations  # SoftHSM leaks 240 bytes for each (HSM.md section 4)

    def __init__(self):
        raise TypeError("a Token is made by Module.open")

    def __reduce__(self):
        raise TypeError("a Token cannot be pickled or copied")

    def __dealloc__(self):
        cdef Nursery *nursery
        self.sweep()
        free(self.idle)
        while self.nurseries != NULL:
            nursery = self.nurseries
            self.nurseries = nursery.next
            free(nursery)

    cdef bint reachable(self) noexcept:
        """Whether the module may be called on this Token's behalf: its handles still mean what they meant."""
        return (self.library is not None and not self.swept and self.made_in == kms_forks
                and self.generation == self.library.generation)

    cdef int check(self) except -1:
        if not self.closed and self.reachable():
            return 0
        _check_fork(self.made_in, "the Token")
        raise _closed()

    # A lane is taken and given back with the GIL held; in between, `calls` keeps close() and finalize() waiting.

    cdef inline bint enter(self, hot_lane *lane, bint fresh) noexcept:
        """As `take`, for work that a closed Token refuses; False then. A call may have let others run since it checked."""
        if self.closed or not self.reachable():
            return False
        self.take(lane, fresh)
        return True

    cdef inline void take(self, hot_lane *lane, bint fresh) noexcept:
        lane.f, lane.messages = self.library.f, self.messages
        lane.slot = self.slot
        lane.open_sessions = &self.open_sessions
        lane.session = lane.message_key = CK_INVALID_HANDLE
        if self.idle_count and not fresh:
            self.idle_count -= 1
            lane.session = self.idle[self.idle_count]
        self.calls += 1
        self.library.calls += 1

    cdef inline void give(self, hot_lane *lane) noexcept:
        if lane.session != CK_INVALID_HANDLE:
            if self.idle_count < self.idle_room or self.more_room():
                self.idle[self.idle_count] = lane.session
                self.idle_count += 1
            else:
                hot_drop_session(lane)
        self.calls -= 1
        self.library.calls -= 1

    cdef bint more_room(self) noexcept:
        cdef Py_ssize_t room = 2 * self.idle_room + 8
        cdef void *grown = realloc(self.idle, room * sizeof(CK_SESSION_HANDLE))
        if grown == NULL:
            return False
        self.idle = <CK_SESSION_HANDLE *>grown
        self.idle_room = room
        return True

    cdef void sweep(self) noexcept:
        """Close every session of ours, the one of the login last."""
        cdef hot_lane lane
        cdef Nursery *nursery
        if not self.reachable():
            return
        lane.f, lane.slot, lane.open_sessions = self.library.f, self.slot, &self.open_sessions
        while self.idle_count:
            self.idle_count -= 1
            lane.session = self.idle[self.idle_count]
            hot_drop_session(&lane)
        nursery = self.nurseries
        while nursery != NULL:
            lane.session, nursery.session = nursery.session, CK_INVALID_HANDLE
            hot_drop_session(&lane)
            nursery = nursery.next
        lane.session, self.anchor = self.anchor, CK_INVALID_HANDLE
        hot_drop_session(&lane)
        self.swept = True

    def login(self, Secret pin not None):
        """Log the process in as user, on a session that stays open until `close`. CKR_USER_ALREADY_LOGGED_IN is success.

        SoftHSM rewrites its token file during a login (RELIABILITY 1.1): the caller holds the token's lock. Raises TokenError.
        """
        cdef hot_lane lane
        cdef CK_RV rv
        cdef bint opened
        self.check()
        pin.check()
        pin.pin()
        self.take(&lane, True)
        with nogil:
            rv = hot_session(&lane, 0)
            opened = rv == CKR_OK
            if opened:
                rv = lane.f.C_Login(lane.session, CKU_USER, pin.data, pin.length)
                if rv == CKR_USER_ALREADY_LOGGED_IN:
                    rv = CKR_OK
                if rv != CKR_OK:
                    hot_drop_session(&lane)
        pin.unpin()
        if rv == CKR_OK:
            # An earlier login's session joins the pool.
            self.anchor, lane.session = lane.session, self.anchor
        self.give(&lane)
        _check_rv(rv, "C_Login" if opened else "C_OpenSession")

    def close(self):
        """Close all sessions of this Token, which logs the process out unless others hold sessions of the slot too. Idempotent.

        Waits for calls in flight. Every AeadKey of this Token is dead at once, even where KmsError ServiceUnavailableTemporary says that a
        call was still in flight after 30 s; close it again then.
        """
        _check_fork(self.made_in, "the Token")
        self.closed = True
        if self.reachable():
            _wait_for_calls(&self.calls, "the token")
            self.sweep()

    def object_ids(self):
        """Every token object that this login sees, looked up on a new session: (handle, CKA_ID, CKA_LABEL, CKA_CLASS).

        What an object lacks or does not tell is b"", "" and -1: a killed SoftHSM leaves such fragments (RELIABILITY 1.1). So is an id or
        a label of more than 1,024 bytes. Raises TokenError.
        """
        cdef CK_BBOOL on_token = CK_TRUE
        cdef CK_ATTRIBUTE wanted[1]
        cdef hot_lane lane
        wanted[0].type, wanted[0].pValue, wanted[0].ulValueLen = CKA_TOKEN, &on_token, sizeof(on_token)
        self.check()
        self.take(&lane, True)
        try:
            rows = []
            gone = []
            for handle in _find(&lane, wanted, 1):
                row = _describe(&lane, handle)
                (gone if row is None else rows).append(row or handle)
            if gone:
                # Destroyed by another process meanwhile, or a fragment that cannot be read? The fragment is still listed.
                still = set(_find(&lane, wanted, 1))
                rows += [(handle, b"", "", -1) for handle in gone if handle in still]
            return rows
        finally:
            hot_drop_session(&lane)
            self.give(&lane)

    def find(self, bytes object_id not None, CK_ULONG object_class=4):
        """Handles of the token objects with this CKA_ID and CKA_CLASS (CKO_SECRET_KEY = 4), from a new session. Raises TokenError."""
        cdef CK_BBOOL on_token = CK_TRUE
        cdef CK_ATTRIBUTE wanted[3]
        cdef hot_lane lane
        wanted[0].type, wanted[0].pValue, wanted[0].ulValueLen = CKA_TOKEN, &on_token, sizeof(on_token)
        wanted[1].type, wanted[1].pValue, wanted[1].ulValueLen = CKA_CLASS, &object_class, sizeof(object_class)
        wanted[2].type, wanted[2].pValue, wanted[2].ulValueLen = CKA_ID, PyBytes_AS_STRING(object_id), len(object_id)
        self.check()
        self.take(&lane, True)
        try:
            return _find(&lane, wanted, 3)
        finally:
            hot_drop_session(&lane)
            self.give(&lane)

    def destroy(self, CK_OBJECT_HANDLE handle):
        """C_DestroyObject, on a new read-write session. The caller verifies by a fresh `find`. Raises TokenError."""
        cdef hot_lane lane
        cdef CK_RV rv
        self.check()
        self.take(&lane, True)
        with nogil:
            rv = hot_session(&lane, CKF_RW_SESSION)
            if rv == CKR_OK:
                rv = hot_destroy(&lane, handle)
            hot_drop_session(&lane)
        self.give(&lane)
        _check_rv(rv, "C_DestroyObject")

    def random(self, Py_ssize_t size):
        """1 to 65,536 bytes from C_GenerateRandom. Raises ValueError, TokenError."""
        cdef hot_lane lane
        cdef CK_RV rv
        cdef unsigned char *out
        if not 1 <= size <= 65536:
            raise ValueError("size must be 1 to 65536 bytes")
        self.check()
        answer = PyBytes_FromStringAndSize(NULL, size)
        out = <unsigned char *>PyBytes_AS_STRING(answer)
        self.take(&lane, False)
        with nogil:
            rv = hot_session(&lane, 0)
            if rv == CKR_OK:
                rv = lane.f.C_GenerateRandom(lane.session, out, size)
            if rv != CKR_OK:
                hot_drop_session(&lane)
        self.give(&lane)
        _check_rv(rv, "C_GenerateRandom")
        return answer

    def xaes_key(self, CK_OBJECT_HANDLE handle, unsigned long long epoch_messages=1 << 24):
        """Suite 1 on a resident 256-bit AES key that may only derive (docs/FORMAT.md).

        A derived key encrypts `epoch_messages` messages (1 to 2^32, SP 800-38D section 8.3), then another one takes over.
        Raises ValueError, TokenError.
        """
        if not 1 <= epoch_messages <= 1 << 32:
            raise ValueError("epoch_messages must be 1 to 2**32")
        return _new_token_key(self, handle, 1, epoch_messages)

    def gcm_key(self, CK_OBJECT_HANDLE handle):
        """Suite 2 on a resident AES key with ENCRYPT and DECRYPT. The token is not asked about it before its first use."""
        return _new_token_key(self, handle, 2, 0)

    def sign(self, CK_OBJECT_HANDLE handle, CK_MECHANISM_TYPE mechanism, data not None, Py_ssize_t size, str pss_hash not None=""):
        """C_SignInit and C_Sign: the signature or MAC of `data`, which has exactly `size` bytes (1 to 1,024).

        `pss_hash`, "SHA-256", "SHA-384" or "SHA-512", belongs to CKM_RSA_PKCS_PSS and to nothing else: MGF1 of that hash, a salt as long
        as it. Raises ValueError, TokenError; KmsError ServiceUnavailableTemporary once the Token is closed.
        """
        return _token_sign(self, handle, mechanism, data, size, pss_hash)

    def rsa_decrypt(self, CK_OBJECT_HANDLE handle, ciphertext not None, str hash not None, bint raw):
        """The message of an RSAES-OAEP ciphertext, as a Secret; it may be empty. `hash` ("SHA-1", "SHA-256") serves OAEP and MGF1.

        With `raw` the token only does the RSA (CKM_RSA_X_509) and the padding is taken off here, in constant time: for tokens that know
        OAEP with SHA-1 only. Raises KmsError InvalidParameter (CiphertextBlob) for whatever a ciphertext can cause, without saying why;
        ValueError, TokenError; KmsError ServiceUnavailableTemporary once the Token is closed.
        """
        return _token_rsa_decrypt(self, handle, ciphertext, hash, raw)

    def check_value(self, CK_OBJECT_HANDLE handle):
        """AES(K, 0^128), 16 bytes, of a resident AES key that may derive by CKM_AES_ECB_ENCRYPT_DATA. Raises TokenError."""
        cdef unsigned char l[16]
        self.check()
        _learn_l(self, handle, l)
        answer = PyBytes_FromStringAndSize(<char *>l, 16)
        explicit_bzero(l, 16)
        return answer

    @property
    def message_api(self):
        """Whether AES-GCM goes through the message functions of PKCS#11 3.0, because the module and the token offer them."""
        return self.messages != NULL

    @property
    def live_sessions(self):
        """How many sessions this Token has open."""
        return self.open_sessions

    @property
    def derived_limit(self):
        """How many derived keys are kept over all keys of this Token; calls in flight may hold some more. Default 4096."""
        return self.limit

    @derived_limit.setter
    def derived_limit(self, Py_ssize_t limit):
        if limit < 1:
            raise ValueError("derived_limit must be at least 1")
        self.limit = limit
        _shorten(self)


cdef list _find(hot_lane *lane, CK_ATTRIBUTE *wanted, CK_ULONG count):
    """Handles of all objects that match, on the lane's session."""
    cdef CK_OBJECT_HANDLE found[64]
    cdef CK_ULONG got = 64
    cdef CK_ULONG i
    cdef CK_RV rv
    with nogil:
        rv = hot_session(lane, 0)
        if rv == CKR_OK:
            rv = lane.f.C_FindObjectsInit(lane.session, wanted, count)
    _check_rv(rv, "C_FindObjectsInit")
    handles = []
    while got:
        with nogil:
            rv = lane.f.C_FindObjects(lane.session, found, 64, &got)
        _check_rv(rv, "C_FindObjects")
        for i in range(got):
            handles.append(found[i])
    with nogil:
        rv = lane.f.C_FindObjectsFinal(lane.session)
    _check_rv(rv, "C_FindObjectsFinal")
    return handles


cdef tuple _describe(hot_lane *lane, CK_OBJECT_HANDLE handle):
    """(handle, id, label, class) of one object, or None when its handle is refused."""
    cdef unsigned char object_id[1024]
    cdef unsigned char label[1024]
    cdef CK_ULONG object_class = 0
    cdef CK_ATTRIBUTE asked[3]
    cdef CK_RV rv
    asked[0].type, asked[0].pValue, asked[0].ulValueLen = CKA_ID, object_id, sizeof(object_id)
    asked[1].type, asked[1].pValue, asked[1].ulValueLen = CKA_LABEL, label, sizeof(label)
    asked[2].type, asked[2].pValue, asked[2].ulValueLen = CKA_CLASS, &object_class, sizeof(object_class)
    with nogil:
        rv = hot_session(lane, 0)
        if rv == CKR_OK:
            rv = lane.f.C_GetAttributeValue(lane.session, handle, asked, 3)
            if rv != CKR_OK:
                hot_drop_session(lane)
    if rv == CKR_OBJECT_HANDLE_INVALID:
        return None
    if rv in _AWAY and rv not in (CKR_GENERAL_ERROR, CKR_FUNCTION_FAILED):
        raise token_error(rv, "C_GetAttributeValue")
    if rv not in (CKR_OK, CKR_ATTRIBUTE_SENSITIVE, CKR_ATTRIBUTE_TYPE_INVALID, CKR_BUFFER_TOO_SMALL):
        return handle, b"", "", -1
    # PKCS#11 v2.40 C_GetAttributeValue: an attribute that could not be given has the length "unavailable"; the others are there.
    known = [asked[i].ulValueLen != CK_UNAVAILABLE_INFORMATION for i in range(3)]
    return (
        handle,
        object_id[:asked[0].ulValueLen] if known[0] else b"",
        label[:asked[1].ulValueLen].decode("utf-8", "replace") if known[1] else "",
        object_class if known[2] else -1,
    )
