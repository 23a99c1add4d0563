# How key material comes in and goes out: AES-KWP, RSAES-OAEP, and the decoder of OAEP for those who test it.


def kwp_unwrap(Secret kek not None, wrapped not None):
    """What AES-KWP (RFC 5649, SP 800-38F) wrapped under `kek` (16, 24 or 32 bytes), as a Secret of 1 to 8,192 bytes.

    Raises KmsError InvalidParameter (CiphertextBlob) for whatever does not unwrap, without saying why; ValueError for a `kek` of another
    size.
    """
    cdef Py_buffer view
    cdef Secret material
    cdef const unsigned char *data
    cdef size_t size = 0
    cdef size_t n
    cdef int failed = 1
    kek.check()
    if kek.length not in (16, 24, 32):
        raise ValueError("a key of AES-KWP has 16, 24 or 32 bytes")
    PyObject_GetBuffer(wrapped, &view, PyBUF_SIMPLE)
    try:
        data, n = <const unsigned char *>view.buf, view.len
        if not 16 <= n <= 8192 + 8:
            raise undecryptable()
        kek.check()  # taking the buffer may have run code that closed it
        material = _new_secret(n)
        kek.pin()
        with nogil:
            failed = kwp_open(kek.data, kek.length, data, n, material.data, &size)
        kek.unpin()
    finally:
        PyBuffer_Release(&view)
    if failed:
        material.close()
        raise undecryptable()
    material.length = size
    return material


def oaep_encrypt(bytes public_key not None, str hash not None, data not None):
    """RSAES-OAEP of `data` (bytes-like or a Secret) with an empty label; `hash` serves OAEP and MGF1.

    `public_key` is the SubjectPublicKeyInfo of an RSA key of 2048 to 4096 bits, strict DER with nothing behind it. The answer has as many
    bytes as the modulus, and there is room for that many less 2 and two digests. Raises ValueError.
    """
    cdef int hash_id = _hash(hash, _HASHES)
    cdef const unsigned char *der = <const unsigned char *>PyBytes_AS_STRING(public_key)
    cdef EVP_PKEY *key = rsa_public(der, len(public_key))
    cdef hot_item item
    cdef Source source
    cdef unsigned char *out
    cdef size_t k
    cdef int failed
    if key == NULL:
        raise ValueError("it is no RSA public key of 2048 to 4096 bits")
    try:
        k = EVP_PKEY_get_size(key)
        answer = PyBytes_FromStringAndSize(NULL, k)
        out = <unsigned char *>PyBytes_AS_STRING(answer)
        _take_input(data, &item, &source)
        try:
            if item.in_len > k - 2 * hashes[hash_id].size - 2:
                raise ValueError("the data is too long for the key")
            with nogil:
                failed = oaep_seal(key, hash_id, item.input, item.in_len, out, k)
        finally:
            _release_input(&source)
        if failed:
            raise _openssl_failed()
        return answer
    finally:
        EVP_PKEY_free(key)


def oaep_decode(bytes encoded not None, str hash not None):
    """What the constant-time decoder makes of an encoded message (RFC 8017 7.1.2 step 3) of modulus length: the message, or None.

    For vectors and for the benchmark of its timing. Raises ValueError when `encoded` has more than 1,024 bytes or too few for the hash.
    """
    cdef int hash_id = _hash(hash, _HASHES)
    cdef size_t k = len(encoded)
    cdef size_t size = 0
    cdef Secret em
    cdef int good
    if not 2 * hashes[hash_id].size + 2 <= k <= 1024:
        raise ValueError("an encoded message has room for two digests and 2 bytes, and 1024 bytes at most")
    em = _new_secret(k)
    memcpy(em.data, PyBytes_AS_STRING(encoded), k)
    good = oaep_open(em.data, k, hash_id, &size)
    try:
        if good < 0:
            raise _openssl_failed()
        return PyBytes_FromStringAndSize(<char *>em.data, size) if good else None
    finally:
        em.close()
