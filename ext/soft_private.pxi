# SoftPrivateKey: an RSA or EC private key in this process, on OpenSSL.
#
# As in soft_key.pxi, an operation of OpenSSL serves one thread at a time: a call takes the one that lies ready, when it is of its sort, or
# makes its own, with the GIL held, so that `retire` cannot free the key under its hands. An operation keeps the key alive.

cdef tuple _KINDS = ("RSA_2048", "RSA_3072", "RSA_4096", "EC_P256", "EC_P256K", "EC_P384", "EC_P521")  # the order of soft_private.h
cdef tuple _SCHEMES = ("PKCS1", "PSS", "ECDSA")
cdef dict _HASH_OF_SIZE = {32: HASH_SHA256, 48: HASH_SHA384, 64: HASH_SHA512}


cdef object _openssl_failed():
    return KmsError("InternalFailure", "The operation could not be done: OpenSSL failed.")


@cython.final
@cython.no_gc
cdef class SoftPrivateKey:
    """A private key in memory of this process. Thread-safe. Made by soft_private_key.

    OpenSSL holds it in memory of its own, which is wiped when the key is freed but not locked. Every method raises SetupError in a forked
    child, and but for `retire` KmsError Rejected.Unavailable once the key is retired.
    """

    cdef EVP_PKEY *key          # NULL once retired
    cdef readonly str kind
    cdef readonly bytes public_key
    cdef size_t modulus         # bytes; 0 for EC
    cdef int made_in
    cdef long calls             # calls that have an operation now; kept under the GIL
    cdef EVP_PKEY_CTX *ready    # NULL while a call has it
    cdef int sort               # what `ready` does: a scheme and a hash, or _DECRYPT

    def __init__(self):
        raise TypeError("a SoftPrivateKey is made by soft_private_key")

    def __reduce__(self):
        raise TypeError("a SoftPrivateKey cannot be pickled or copied")

    def __dealloc__(self):
        EVP_PKEY_CTX_free(self.ready)
        EVP_PKEY_free(self.key)

    cdef int check(self) except -1:
        if self.kind is None:
            raise TypeError("the key was not made by soft_private_key")
        _check_fork(self.made_in, "the SoftPrivateKey")
        if self.key == NULL:
            raise _retired()
        return 0

    cdef EVP_PKEY_CTX *take(self, int sort) except NULL:
        cdef EVP_PKEY_CTX *op = NULL
        if self.ready != NULL and self.sort == sort:
            op, self.ready = self.ready, NULL
        elif sort == _DECRYPT:
            op = soft_decrypter(self.key)
        else:
            op = soft_signer(self.key, sort >> 8, sort & 255)
        if op == NULL:
            raise _openssl_failed()
        self.calls += 1
        return op

    cdef void give(self, EVP_PKEY_CTX *op, int sort) noexcept:
        self.calls -= 1
        if self.key == NULL:
            EVP_PKEY_CTX_free(op)
            return
        EVP_PKEY_CTX_free(self.ready)
        self.ready, self.sort = op, sort

    def sign(self, str scheme not None, bytes digest not None):
        """The signature of a digest of 32, 48 or 64 bytes (SHA-256, SHA-384, SHA-512) by "PKCS1", "PSS" or "ECDSA".

        PKCS1 and PSS (RSA keys) have as many bytes as the modulus; PSS takes MGF1 of the same hash and a salt as long as it. ECDSA (EC
        keys) answers DER. Raises ValueError for another scheme or size.
        """
        cdef unsigned char signature[512]
        cdef const unsigned char *data = <const unsigned char *>PyBytes_AS_STRING(digest)
        cdef size_t n = len(digest)
        cdef size_t size
        cdef EVP_PKEY_CTX *op
        cdef int sort
        self.check()
        if n not in _HASH_OF_SIZE:
            raise ValueError("a digest has 32, 48 or 64 bytes")
        if scheme not in _SCHEMES or (scheme == "ECDSA") != (self.modulus == 0):
            raise ValueError("the scheme does not fit the key")
        sort = _SCHEMES.index(scheme) << 8 | <int>_HASH_OF_SIZE[n]
        op = self.take(sort)
        with nogil:
            size = soft_sign(op, data, n, signature)
        self.give(op, sort)
        if size == 0:
            raise _openssl_failed()
        return PyBytes_FromStringAndSize(<char *>signature, size)

    def decrypt(self, str hash not None, ciphertext not None):
        """The message of an RSAES-OAEP ciphertext with an empty label, as a Secret; it may be empty. `hash` serves OAEP and MGF1.

        Raises KmsError InvalidParameter (CiphertextBlob) for whatever does not decrypt, without saying why; ValueError for another hash
        than "SHA-1", "SHA-256", "SHA-384", "SHA-512" and for an EC key.
        """
        return self.open(ciphertext, _hash(hash, _HASHES), 0)

    def decrypt_pkcs1(self, ciphertext not None, Py_ssize_t size):
        """The message of an RSAES-PKCS1-v1_5 ciphertext, known to have exactly `size` bytes, as a Secret. Constant time.

        Raises KmsError InvalidParameter (CiphertextBlob) for whatever does not decrypt to that size, without saying why: an attacker who
        may ask again and again still learns one bit each time, so its callers limit the attempts (RELIABILITY O2). ValueError for an EC
        key.
        """
        if size < 0:
            raise ValueError("size must not be negative")
        return self.open(ciphertext, -1, size)

    cdef Secret open(self, object ciphertext, int hash_id, size_t size):
        """RSA, and then the padding off: OAEP with the hash, or PKCS1 when that is -1."""
        cdef Source source
        cdef hot_item item
        cdef Secret message
        cdef EVP_PKEY_CTX *op
        cdef size_t k = self.modulus
        cdef int good = 0
        self.check()
        if k == 0:
            raise ValueError("the key is no RSA key")
        message = _new_secret(k)
        _take_blob(ciphertext, &item, &source)
        try:
            if item.in_len == k and (hash_id >= 0 or size <= k - 11):
                self.check()  # taking the buffer may have run code that retired it
                op = self.take(_DECRYPT)
                with nogil:
                    if soft_rsa(op, item.input, message.data, k) == 0:
                        good = oaep_open(message.data, k, hash_id, &size) if hash_id >= 0 else pkcs1_open(message.data, k, size)
                self.give(op, _DECRYPT)
        finally:
            _release_input(&source)
        if good != 1:
            message.close()
            raise _openssl_failed() if good < 0 else undecryptable()
        message.length = size
        return message

    def retire(self):
        """Refuse further use, and free the key when the last call in flight ends. True when none is in flight. Idempotent."""
        if self.kind is None:
            raise TypeError("the key was not made by soft_private_key")
        _check_fork(self.made_in, "the SoftPrivateKey")
        EVP_PKEY_CTX_free(self.ready)
        EVP_PKEY_free(self.key)
        self.ready, self.key = NULL, NULL
        return self.calls == 0


cdef int _DECRYPT = -1


cdef bytes _public_key(EVP_PKEY *key):
    cdef unsigned char out[SOFT_SPKI]
    cdef size_t size = soft_put_public(key, out)
    if size == 0:
        raise _openssl_failed()
    return PyBytes_FromStringAndSize(<char *>out, size)


def soft_generate_pair(str kind not None):
    """A new key pair: (PKCS#8 PrivateKeyInfo in DER, as a Secret; SubjectPublicKeyInfo in DER).

    `kind` is RSA_2048, RSA_3072, RSA_4096 (e = 65537), EC_P256, EC_P256K, EC_P384 or EC_P521 (named curve, uncompressed point). RSA takes
    up to some seconds, without the GIL. Raises ValueError.
    """
    if kind not in _KINDS:
        raise ValueError(f"the kind is one of {', '.join(_KINDS)}")
    cdef int number = _KINDS.index(kind)
    cdef Secret encoded = _new_secret(SOFT_PKCS8)
    cdef Secret private_key
    cdef EVP_PKEY *key
    cdef size_t size = 0
    with nogil:
        key = soft_generate(number)
        if key != NULL:
            size = soft_put_private(key, encoded.data)
    try:
        if size == 0:
            raise _openssl_failed()
        public_key = _public_key(key)
        # Into as little locked memory as it needs.
        private_key = _new_secret(size)
        memcpy(private_key.data, encoded.data, size)
        return private_key, public_key
    finally:
        EVP_PKEY_free(key)
        encoded.close()


def soft_private_key(Secret pkcs8 not None, *, bint known_good=False):
    """The private key in a PKCS#8 PrivateKeyInfo, strict DER with nothing behind it. Takes the bytes over: `pkcs8` is closed afterwards.

    It must be RSA of 2048, 3072 or 4096 bits with two primes and an odd e of 65537 or more and 256 bits at most, or EC on a named curve of
    soft_generate_pair, and must pass OpenSSL's check of consistency, which runs without the GIL and takes 40 to 300 ms for RSA. With
    `known_good`, for material that passed it before, an RSA key has only to open what its public half seals. Raises ValueError, with
    `pkcs8` still open and no word about what it holds.
    """
    cdef SoftPrivateKey self = SoftPrivateKey.__new__(SoftPrivateKey)
    cdef EVP_PKEY *key
    cdef int kind = -1
    pkcs8.check()
    pkcs8.pin()
    with nogil:
        key = soft_parse(pkcs8.data, pkcs8.length, known_good, &kind)
    pkcs8.unpin()
    if key == NULL:
        raise ValueError("it is no private key that can be used")
    self.key = key
    self.public_key = _public_key(key)
    self.kind = _KINDS[kind]
    self.modulus = EVP_PKEY_get_size(key) if kind <= RSA_4096 else 0
    self.made_in = kms_forks
    pkcs8.close()
    return self
