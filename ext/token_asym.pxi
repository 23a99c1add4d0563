# What a Token does with private keys and HMAC keys that it holds.

cdef dict _HASHES = {"SHA-1": HASH_SHA1, "SHA-256": HASH_SHA256, "SHA-384": HASH_SHA384, "SHA-512": HASH_SHA512}
cdef tuple _NO_SHA1 = ("SHA-256", "SHA-384", "SHA-512")


cdef int _hash(str name, known) except -1:
    """Its number in hash.h, when it is one of the names `known`."""
    if name not in known:
        raise ValueError(f"the hash is one of {', '.join(known)}")
    return _HASHES[name]


cdef bytes _token_sign(Token token, CK_OBJECT_HANDLE handle, CK_MECHANISM_TYPE mechanism, object data, Py_ssize_t size, str pss_hash):
    cdef int hash_id = HASH_SHA256
    cdef hot_item item
    cdef hot_lane lane
    cdef Source source
    if not 1 <= size <= 1024:
        raise ValueError("size must be 1 to 1024 bytes")
    if mechanism == CKM_RSA_PKCS_PSS:
        hash_id = _hash(pss_hash, _NO_SHA1)
    elif pss_hash:
        raise ValueError("pss_hash is for CKM_RSA_PKCS_PSS only")
    token.check()
    signature = PyBytes_FromStringAndSize(NULL, size)
    _take_blob(data, &item, &source)
    item.out, item.out_len, item.key = <unsigned char *>PyBytes_AS_STRING(signature), size, handle
    if token.enter(&lane, False):
        with nogil:
            hot_sign(&lane, &item, mechanism, hash_id)
        token.give(&lane)
    else:
        item.rv = KMS_RV_CLOSED
    _release_input(&source)
    if item.rv != CKR_OK:
        raise _item_error(&item)
    return signature


# More than any modulus has, so that a ciphertext of the wrong length is told from an output that does not fit.
cdef Py_ssize_t _RSA_ROOM = 1024


cdef Secret _token_rsa_decrypt(Token token, CK_OBJECT_HANDLE handle, object ciphertext, str hash, bint raw):
    cdef int hash_id = _hash(hash, ("SHA-1", "SHA-256"))
    cdef size_t size = 0
    cdef int good = 1
    cdef hot_item item
    cdef hot_lane lane
    cdef Source source
    cdef Secret message
    token.check()
    message = _new_secret(_RSA_ROOM)
    _take_blob(ciphertext, &item, &source)
    item.out, item.out_len, item.key = message.data, _RSA_ROOM, handle
    # The lengths of the moduli that we have.
    if item.in_len != 256 and item.in_len != 384 and item.in_len != 512:
        item.rv = KMS_RV_MALFORMED
    elif token.enter(&lane, False):
        with nogil:
            if hot_rsa_decrypt(&lane, &item, hash_id, raw) == CKR_OK and raw:
                good = oaep_open(message.data, item.out_len, hash_id, &size)
                item.out_len = size
        token.give(&lane)
    else:
        item.rv = KMS_RV_CLOSED
    _release_input(&source)
    if item.rv != CKR_OK and item.step == STEP_DECRYPT and hot_ciphertext_refused(item.rv):
        item.rv = KMS_RV_MALFORMED
    elif good < 0:
        item.rv = KMS_RV_CRYPTO
    elif good == 0:
        item.rv = KMS_RV_MALFORMED
    if item.rv != CKR_OK:
        message.close()
        raise _item_error(&item)
    message.length = item.out_len
    return message
