# CK_RV -> exception, the only place that decides it. Names and numbers: PKCS#11 v2.40 base specification, pkcs11t.h.

# The token, or the way to it, is out of order: the same call may succeed later.
cdef dict _AWAY = {
    0x001: "CKR_CANCEL", 0x002: "CKR_HOST_MEMORY", 0x003: "CKR_SLOT_ID_INVALID", 0x005: "CKR_GENERAL_ERROR", 0x006: "CKR_FUNCTION_FAILED",
    0x030: "CKR_DEVICE_ERROR", 0x031: "CKR_DEVICE_MEMORY", 0x032: "CKR_DEVICE_REMOVED", 0x050: "CKR_FUNCTION_CANCELED",
    0x0b0: "CKR_SESSION_CLOSED", 0x0b1: "CKR_SESSION_COUNT", 0x0b3: "CKR_SESSION_HANDLE_INVALID",
    0x0e0: "CKR_TOKEN_NOT_PRESENT", 0x0e1: "CKR_TOKEN_NOT_RECOGNIZED", 0x101: "CKR_USER_NOT_LOGGED_IN",
    0x190: "CKR_CRYPTOKI_NOT_INITIALIZED", 0x200: "CKR_FUNCTION_REJECTED",
}

# The key is not in the token any more.
cdef dict _GONE = {0x060: "CKR_KEY_HANDLE_INVALID", 0x082: "CKR_OBJECT_HANDLE_INVALID"}

# Everything else: a set-up that cannot work, or a mistake of ours.
cdef dict _WRONG = {
    0x007: "CKR_ARGUMENTS_BAD", 0x009: "CKR_NEED_TO_CREATE_THREADS", 0x00a: "CKR_CANT_LOCK",
    0x010: "CKR_ATTRIBUTE_READ_ONLY", 0x011: "CKR_ATTRIBUTE_SENSITIVE", 0x012: "CKR_ATTRIBUTE_TYPE_INVALID",
    0x013: "CKR_ATTRIBUTE_VALUE_INVALID", 0x01b: "CKR_ACTION_PROHIBITED", 0x020: "CKR_DATA_INVALID", 0x021: "CKR_DATA_LEN_RANGE",
    0x040: "CKR_ENCRYPTED_DATA_INVALID", 0x041: "CKR_ENCRYPTED_DATA_LEN_RANGE", 0x042: "CKR_AEAD_DECRYPT_FAILED",
    0x051: "CKR_FUNCTION_NOT_PARALLEL", 0x054: "CKR_FUNCTION_NOT_SUPPORTED",
    0x062: "CKR_KEY_SIZE_RANGE", 0x063: "CKR_KEY_TYPE_INCONSISTENT", 0x064: "CKR_KEY_NOT_NEEDED", 0x065: "CKR_KEY_CHANGED",
    0x066: "CKR_KEY_NEEDED", 0x067: "CKR_KEY_INDIGESTIBLE", 0x068: "CKR_KEY_FUNCTION_NOT_PERMITTED", 0x069: "CKR_KEY_NOT_WRAPPABLE",
    0x06a: "CKR_KEY_UNEXTRACTABLE", 0x070: "CKR_MECHANISM_INVALID", 0x071: "CKR_MECHANISM_PARAM_INVALID",
    0x090: "CKR_OPERATION_ACTIVE", 0x091: "CKR_OPERATION_NOT_INITIALIZED",
    0x0a0: "CKR_PIN_INCORRECT", 0x0a1: "CKR_PIN_INVALID", 0x0a2: "CKR_PIN_LEN_RANGE", 0x0a3: "CKR_PIN_EXPIRED", 0x0a4: "CKR_PIN_LOCKED",
    0x0b4: "CKR_SESSION_PARALLEL_NOT_SUPPORTED", 0x0b5: "CKR_SESSION_READ_ONLY", 0x0b6: "CKR_SESSION_EXISTS",
    0x0b7: "CKR_SESSION_READ_ONLY_EXISTS", 0x0b8: "CKR_SESSION_READ_WRITE_SO_EXISTS",
    0x0c0: "CKR_SIGNATURE_INVALID", 0x0c1: "CKR_SIGNATURE_LEN_RANGE", 0x0d0: "CKR_TEMPLATE_INCOMPLETE", 0x0d1: "CKR_TEMPLATE_INCONSISTENT",
    0x0e2: "CKR_TOKEN_WRITE_PROTECTED", 0x0f0: "CKR_UNWRAPPING_KEY_HANDLE_INVALID", 0x0f1: "CKR_UNWRAPPING_KEY_SIZE_RANGE",
    0x0f2: "CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT", 0x100: "CKR_USER_ALREADY_LOGGED_IN", 0x102: "CKR_USER_PIN_NOT_INITIALIZED",
    0x103: "CKR_USER_TYPE_INVALID", 0x104: "CKR_USER_ANOTHER_ALREADY_LOGGED_IN", 0x105: "CKR_USER_TOO_MANY_TYPES",
    0x110: "CKR_WRAPPED_KEY_INVALID", 0x112: "CKR_WRAPPED_KEY_LEN_RANGE", 0x113: "CKR_WRAPPING_KEY_HANDLE_INVALID",
    0x114: "CKR_WRAPPING_KEY_SIZE_RANGE", 0x115: "CKR_WRAPPING_KEY_TYPE_INCONSISTENT", 0x120: "CKR_RANDOM_SEED_NOT_SUPPORTED",
    0x121: "CKR_RANDOM_NO_RNG", 0x130: "CKR_DOMAIN_PARAMS_INVALID", 0x140: "CKR_CURVE_NOT_SUPPORTED", 0x150: "CKR_BUFFER_TOO_SMALL",
    0x160: "CKR_SAVED_STATE_INVALID", 0x170: "CKR_INFORMATION_SENSITIVE", 0x180: "CKR_STATE_UNSAVEABLE",
    0x191: "CKR_CRYPTOKI_ALREADY_INITIALIZED", 0x1a0: "CKR_MUTEX_BAD", 0x1a1: "CKR_MUTEX_NOT_LOCKED",
    KMS_RV_LENGTH: "an output of the wrong length",
}

cdef dict _FUNCTIONS = {
    STEP_OPEN: "C_OpenSession", STEP_ENCRYPT_INIT: "C_EncryptInit", STEP_ENCRYPT: "C_Encrypt", STEP_DECRYPT_INIT: "C_DecryptInit",
    STEP_DECRYPT: "C_Decrypt", STEP_DERIVE: "C_DeriveKey", STEP_READ: "C_GetAttributeValue", STEP_DESTROY: "C_DestroyObject",
    STEP_SIGN_INIT: "C_SignInit", STEP_SIGN: "C_Sign",
    STEP_MESSAGE_ENCRYPT_INIT: "C_MessageEncryptInit", STEP_ENCRYPT_MESSAGE: "C_EncryptMessage",
    STEP_MESSAGE_DECRYPT_INIT: "C_MessageDecryptInit", STEP_DECRYPT_MESSAGE: "C_DecryptMessage",
}


def token_error(rv, str function not None):
    """The TokenError for a CK_RV that the PKCS#11 function `function` ("C_Xxx") answered."""
    if rv in _AWAY:
        return TokenError(rv, function, _AWAY[rv], "ServiceUnavailableTemporary")
    if rv in _GONE:
        return TokenError(rv, function, _GONE[rv], "Rejected.Unavailable")
    return TokenError(rv, function, _WRONG.get(rv, ""), "InternalFailure")


cdef object _retired():
    return KmsError("Rejected.Unavailable", "The key material is no longer available here.")


cdef object _closed():
    return KmsError("ServiceUnavailableTemporary", "The token was closed.")


cdef object _item_error(hot_item *item):
    """What became of one message that failed, as the exception that its caller sees."""
    cdef CK_RV rv = item.rv
    if rv == KMS_RV_MALFORMED or ((item.step == STEP_DECRYPT or item.step == STEP_DECRYPT_MESSAGE) and hot_tag_refused(rv)):
        return undecryptable()
    if rv == KMS_RV_TOO_LONG:
        return invalid("Plaintext", f"It is longer than {_MAX_PLAINTEXT} bytes.")
    if rv == KMS_RV_RETIRED:
        return _retired()
    if rv == KMS_RV_CLOSED:
        return _closed()
    if rv == KMS_RV_RANDOM or rv == KMS_RV_CRYPTO or rv == KMS_RV_MEMORY:
        what = {KMS_RV_RANDOM: "getrandom failed", KMS_RV_CRYPTO: "OpenSSL failed", KMS_RV_MEMORY: "out of memory"}[rv]
        return KmsError("InternalFailure", f"The operation could not be done: {what}.")
    return token_error(rv, _FUNCTIONS[item.step])


cdef int _check_rv(CK_RV rv, str function) except -1:
    if rv != CKR_OK:
        raise token_error(rv, function)
    return 0


cdef int _check_fork(int made_in, str what) except -1:
    if made_in != kms_forks:
        raise SetupError(f"{what} was opened before fork; open it again in the child")
    return 0
