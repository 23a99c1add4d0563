# AeadKey: what all keys share: arguments, memory and errors. How a message is sealed is the business of TokenKey and SoftKey.

# FORMAT.md: a blob whose plaintext would be longer is refused before a key is touched.
cdef Py_ssize_t _MAX_PLAINTEXT = 8192
# A batch is worked off in slices, so that the time between two looks at the key does not grow with it.
cdef Py_ssize_t _SLICE = 256

# What empty data points to: NULL makes SoftHSM fail or crash (RELIABILITY O6).
cdef unsigned char[1] _NOTHING = [0]

cdef enum:
    SOURCE_BYTES
    SOURCE_BUFFER
    SOURCE_SECRET

# One input of a call, from before the GIL is released until after. Objects are kept alive by the call's own arguments.
cdef struct Source:
    int kind
    void *secret
    Py_buffer view


cdef inline int _take_input(object data, hot_item *item, Source *source) except -1:
    source.kind = SOURCE_BYTES
    item.rv = CKR_OK
    item.step = STEP_NONE
    if PyBytes_CheckExact(data):
        item.input = <const unsigned char *>PyBytes_AS_STRING(data)
        item.in_len = PyBytes_GET_SIZE(data)
        return 0
    return _take_other_input(data, item, source)


cdef int _take_other_input(object data, hot_item *item, Source *source) except -1:
    if type(data) is Secret:
        (<Secret>data).check()
        (<Secret>data).pin()
        source.kind = SOURCE_SECRET
        source.secret = <void *>data
        item.input = (<Secret>data).data
        item.in_len = (<Secret>data).length
        return 0
    PyObject_GetBuffer(data, &source.view, PyBUF_SIMPLE)
    source.kind = SOURCE_BUFFER
    item.input = <const unsigned char *>source.view.buf if source.view.buf != NULL else _NOTHING
    item.in_len = source.view.len
    return 0


cdef inline void _release_input(Source *source) noexcept:
    if source.kind == SOURCE_BUFFER:
        PyBuffer_Release(&source.view)
    elif source.kind == SOURCE_SECRET:
        (<Secret>source.secret).unpin()


cdef void _fail(hot_item *items, Py_ssize_t n, CK_RV rv, int step) noexcept:
    cdef Py_ssize_t i
    for i in range(n):
        items[i].rv = rv
        items[i].step = step


# A bytes object that a plaintext is written into, before anyone else can see it. SoftHSM wants room for the tag as well (HSM.md section 5),
# so it is made that much too long and cut to size afterwards, which moves nothing.

cdef inline bytes _plaintext(hot_item *item):
    """The object of an item that came out well, cut to size."""
    cdef PyObject *raw = <PyObject *>item.plaintext
    item.plaintext = NULL
    raw_bytes_resize(&raw, item.out_len)  # on failure it has freed the object itself
    plaintext = <object>raw
    Py_DECREF(plaintext)
    return plaintext


cdef inline void _drop_plaintext(hot_item *item) noexcept:
    """The object of an item that did not: a module may have left unverified plaintext in it."""
    if item.plaintext != NULL:
        explicit_bzero(item.out, item.in_len)
        Py_DECREF(<object>item.plaintext)
        item.plaintext = NULL


cdef struct Work:
    hot_item *items
    Source *sources
    Py_ssize_t taken  # sources that must be released
    Py_ssize_t count  # items that are ready to run


cdef int _start_work(Work *work, Py_ssize_t n) except -1:
    cdef Py_ssize_t room = min(n, _SLICE)
    memset(work, 0, sizeof(Work))
    work.items = <hot_item *>PyMem_Calloc(room, sizeof(hot_item))
    work.sources = <Source *>PyMem_Malloc(room * sizeof(Source))
    if work.items == NULL or work.sources == NULL:
        _end_work(work)
        raise MemoryError
    return 0


cdef void _release_work(Work *work) noexcept:
    """Let go of what a slice held."""
    cdef Py_ssize_t i
    for i in range(work.taken):
        _release_input(&work.sources[i])
    for i in range(work.count):
        _drop_plaintext(&work.items[i])
    work.taken = work.count = 0


cdef void _end_work(Work *work) noexcept:
    _release_work(work)
    PyMem_Free(work.items)
    PyMem_Free(work.sources)


cdef class AeadKey:
    """One key version, ready to encrypt. Thread-safe. Made by Token.xaes_key, Token.gcm_key or soft_key.

    A blob is `header || nonce || ciphertext || tag` (docs/FORMAT.md): the nonce has 24 bytes in suite 1 (C2SP XAES-256-GCM) and 12 in
    suite 2 (AES-GCM, SP 800-38D), the tag 16. Nonces are random, from getrandom. `aad` is complete: it begins with the header.

    Every method raises SetupError in a forked child, KmsError Rejected.Unavailable once the key is retired or gone from the token, and
    TokenError where the token fails.
    """

    cdef readonly int suite
    cdef readonly Py_ssize_t live  # derived session keys in the token now; 0 for suite 2 and for software keys
    cdef bint retired
    cdef Py_ssize_t nonce_size

    def __init__(self):
        raise TypeError("an AeadKey is made by Token.xaes_key, Token.gcm_key or soft_key")

    def __reduce__(self):
        raise TypeError("an AeadKey cannot be pickled or copied")

    # Each subclass fills these in. `seal` draws the nonces; both take at least one item, leave in each how it fared, and raise only for
    # lack of memory.

    cdef int check(self) except -1:
        raise TypeError("not a usable AeadKey")

    cdef int seal(self, hot_item *items, Py_ssize_t n, const unsigned char *aad, Py_ssize_t aad_len) except -1:
        raise NotImplementedError

    cdef int unseal(self, hot_item *items, Py_ssize_t n, const unsigned char *aad, Py_ssize_t aad_len) except -1:
        raise NotImplementedError

    def retire(self):
        """Refuse further use and let go of the material. True when no session key is left in a token. Idempotent."""
        raise NotImplementedError

    def derive_subkey_for_test(self, bytes nonce not None):
        """The handle of Kx for a 24-byte nonce: for vectors and benchmarks, on a token's suite 1 key only. Raises ValueError elsewhere."""
        raise ValueError("only suite 1 in a token has derived subkeys")

    cdef inline bytes new_blob(self, bytes header, hot_item *item):
        """A blob with its header in place and the item pointed at its other parts."""
        cdef Py_ssize_t header_size = PyBytes_GET_SIZE(header)
        blob = PyBytes_FromStringAndSize(NULL, header_size + self.nonce_size + item.in_len + GCM_TAG)
        cdef unsigned char *at = <unsigned char *>PyBytes_AS_STRING(blob)
        memcpy(at, PyBytes_AS_STRING(header), header_size)
        item.nonce = at + header_size
        item.out = item.nonce + self.nonce_size
        return blob

    cdef inline bint parse_blob(self, Py_ssize_t header_size, hot_item *item) noexcept:
        """Turn an item that holds a blob into one that holds its parts; False, with the item failed, when it cannot be a blob."""
        cdef Py_ssize_t rest = <Py_ssize_t>item.in_len - header_size - self.nonce_size
        if header_size < 0 or rest < GCM_TAG or rest > _MAX_PLAINTEXT + GCM_TAG:
            item.rv = KMS_RV_MALFORMED
            return False
        item.nonce = <unsigned char *>item.input + header_size
        item.input = item.nonce + self.nonce_size
        item.in_len = rest
        return True

    def encrypt(self, bytes header not None, bytes aad not None, plaintext not None):
        """The blob for up to 8,192 bytes of plaintext. Raises KmsError InvalidParameter when it is longer."""
        cdef hot_item item
        cdef Source source
        self.check()
        _take_input(plaintext, &item, &source)
        try:
            if <Py_ssize_t>item.in_len > _MAX_PLAINTEXT:
                item.rv = KMS_RV_TOO_LONG
            else:
                blob = self.new_blob(header, &item)
                self.seal(&item, 1, <const unsigned char *>PyBytes_AS_STRING(aad), PyBytes_GET_SIZE(aad))
        finally:
            _release_input(&source)
        if item.rv != CKR_OK:
            raise _item_error(&item)
        return blob

    def decrypt(self, Py_ssize_t header_size, bytes aad not None, blob not None):
        """The plaintext of a blob whose header has `header_size` bytes.

        Raises KmsError InvalidParameter (CiphertextBlob) for whatever is not a blob of this key with this `aad`, without saying why.
        """
        cdef hot_item item
        cdef Source source
        self.check()
        item.plaintext = NULL
        _take_blob(blob, &item, &source)
        try:
            if self.parse_blob(header_size, &item):
                item.plaintext = <void *>raw_bytes_new(NULL, item.in_len)
                item.out = <unsigned char *>raw_bytes_at(<PyObject *>item.plaintext)
                self.unseal(&item, 1, <const unsigned char *>PyBytes_AS_STRING(aad), PyBytes_GET_SIZE(aad))
            if item.rv != CKR_OK:
                raise _item_error(&item)
            return _plaintext(&item)
        finally:
            _release_input(&source)
            _drop_plaintext(&item)

    def decrypt_secret(self, Py_ssize_t header_size, bytes aad not None, blob not None):
        """As `decrypt`, but the plaintext goes straight into a new Secret."""
        cdef hot_item item
        cdef Source source
        cdef Secret secret = None
        self.check()
        _take_blob(blob, &item, &source)
        try:
            if self.parse_blob(header_size, &item):
                secret = _new_secret(item.in_len)
                item.out = secret.data
                self.unseal(&item, 1, <const unsigned char *>PyBytes_AS_STRING(aad), PyBytes_GET_SIZE(aad))
        finally:
            _release_input(&source)
        if item.rv != CKR_OK:
            raise _item_error(&item)
        secret.length = item.out_len
        return secret

    def encrypt_batch(self, bytes header not None, bytes aad not None, plaintexts not None):
        """One blob for each plaintext, in order. One that fails has its KmsError in its place and spoils no other."""
        cdef tuple inputs = tuple(plaintexts)  # our own references: a list could change while the GIL is released
        cdef list results = [None] * len(inputs)
        cdef Py_ssize_t n = len(inputs)
        cdef Py_ssize_t start = 0
        cdef Work work
        cdef hot_item *item
        self.check()
        if n == 0:
            return results
        _start_work(&work, n)
        try:
            while start < n:
                while start < n and work.taken < _SLICE:
                    item = &work.items[work.count]
                    _take_input(inputs[start], item, &work.sources[work.taken])
                    work.taken += 1
                    item.index = start
                    if <Py_ssize_t>item.in_len > _MAX_PLAINTEXT:
                        item.rv = KMS_RV_TOO_LONG
                        results[start] = _item_error(item)
                    else:
                        results[start] = self.new_blob(header, item)
                        work.count += 1
                    start += 1
                if work.count:
                    self.seal(work.items, work.count, <const unsigned char *>PyBytes_AS_STRING(aad), PyBytes_GET_SIZE(aad))
                for i in range(work.count):
                    if work.items[i].rv != CKR_OK:
                        results[work.items[i].index] = _item_error(&work.items[i])
                _release_work(&work)
            return results
        finally:
            _end_work(&work)

    def decrypt_batch(self, Py_ssize_t header_size, bytes aad not None, blobs not None):
        """The plaintext of each blob, in order. One that fails has its KmsError in its place and spoils no other."""
        cdef tuple inputs = tuple(blobs)
        cdef list results = [None] * len(inputs)
        cdef Py_ssize_t n = len(inputs)
        cdef Py_ssize_t start = 0
        cdef Work work
        cdef hot_item *item
        self.check()
        if n == 0:
            return results
        _start_work(&work, n)
        try:
            while start < n:
                while start < n and work.taken < _SLICE:
                    item = &work.items[work.count]
                    _take_blob(inputs[start], item, &work.sources[work.taken])
                    work.taken += 1
                    item.index = start
                    if self.parse_blob(header_size, item):
                        item.plaintext = <void *>raw_bytes_new(NULL, item.in_len)
                        item.out = <unsigned char *>raw_bytes_at(<PyObject *>item.plaintext)
                        work.count += 1
                    else:
                        results[start] = _item_error(item)
                    start += 1
                if work.count:
                    self.unseal(work.items, work.count, <const unsigned char *>PyBytes_AS_STRING(aad), PyBytes_GET_SIZE(aad))
                for i in range(work.count):
                    item = &work.items[i]
                    results[item.index] = _plaintext(item) if item.rv == CKR_OK else _item_error(item)
                _release_work(&work)
            return results
        finally:
            _end_work(&work)


cdef inline int _take_blob(object blob, hot_item *item, Source *source) except -1:
    """As _take_input; a Secret is no blob."""
    if type(blob) is Secret:
        raise TypeError("a blob is bytes-like, not a Secret")
    return _take_input(blob, item, source)
