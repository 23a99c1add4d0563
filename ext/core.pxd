# The C parts of the core. What each function promises stands in its header.

from ck cimport (
    CK_FLAGS, CK_FUNCTION_LIST, CK_FUNCTION_LIST_3_0, CK_MECHANISM_TYPE, CK_OBJECT_HANDLE, CK_RV, CK_SESSION_HANDLE, CK_SLOT_ID, CK_ULONG
)

cdef extern from "fork.h" nogil:
    int kms_forks
    int kms_fork_watch()

cdef extern from "p11_load.h" nogil:
    CK_FUNCTION_LIST *p11_load(const char *path, CK_FUNCTION_LIST_3_0 **v3, char *reason, size_t reason_size)
    CK_RV p11_initialize(CK_FUNCTION_LIST *f, const char *parameters)

cdef extern from "secret.h" nogil:
    size_t SECRET_MAX
    unsigned char *secret_alloc(size_t size, int *locked)
    void secret_free(unsigned char *slot, size_t size)
    size_t secret_live()
    int random_fill(unsigned char *out, size_t size)
    int nonce_take(unsigned char *out)

cdef extern from "xaes.h" nogil:
    void xaes_k1(const unsigned char *l, unsigned char *k1)
    void xaes_blocks(const unsigned char *k1, const unsigned char *prefix, unsigned char *blocks)

cdef extern from "hot.h" nogil:
    enum:
        GCM_IV
        GCM_TAG
        STEP_NONE
        STEP_OPEN
        STEP_ENCRYPT_INIT
        STEP_ENCRYPT
        STEP_DECRYPT_INIT
        STEP_DECRYPT
        STEP_DERIVE
        STEP_READ
        STEP_DESTROY
        STEP_SIGN_INIT
        STEP_SIGN
        STEP_MESSAGE_ENCRYPT_INIT
        STEP_ENCRYPT_MESSAGE
        STEP_MESSAGE_DECRYPT_INIT
        STEP_DECRYPT_MESSAGE
        STEP_SOFT
    CK_RV KMS_RV_LENGTH
    CK_RV KMS_RV_RETIRED
    CK_RV KMS_RV_RANDOM
    CK_RV KMS_RV_CRYPTO
    CK_RV KMS_RV_MEMORY
    CK_RV KMS_RV_MALFORMED
    CK_RV KMS_RV_TOO_LONG
    CK_RV KMS_RV_CLOSED

    ctypedef struct hot_lane:
        CK_FUNCTION_LIST *f
        CK_FUNCTION_LIST_3_0 *messages
        CK_OBJECT_HANDLE message_key
        CK_SLOT_ID slot
        CK_SESSION_HANDLE session
        long *open_sessions

    ctypedef struct hot_item:
        const unsigned char *input "in"
        unsigned char *out
        unsigned char *nonce
        CK_ULONG in_len
        CK_ULONG out_len
        CK_OBJECT_HANDLE key
        CK_RV rv
        int step
        size_t index
        void *plaintext

    CK_RV hot_session(hot_lane *lane, CK_FLAGS more_flags)
    void hot_drop_session(hot_lane *lane)
    size_t hot_seal(hot_lane *lane, hot_item *items, size_t n, size_t nonce_size, const unsigned char *aad, CK_ULONG aad_len)
    size_t hot_open(hot_lane *lane, hot_item *items, size_t n, size_t nonce_size, const unsigned char *aad, CK_ULONG aad_len)
    int hot_key_gone(CK_RV rv)
    int hot_tag_refused(CK_RV rv)
    CK_RV hot_derive(hot_lane *lane, CK_OBJECT_HANDLE master, const unsigned char *blocks, int private_key, CK_OBJECT_HANDLE *kx)
    CK_RV hot_learn_l(hot_lane *lane, CK_OBJECT_HANDLE master, unsigned char *l, int *step)
    CK_RV hot_destroy(hot_lane *lane, CK_OBJECT_HANDLE object)

cdef extern from "soft.h" nogil:
    ctypedef struct soft_ctx:
        pass
    int soft_init()
    soft_ctx *soft_gcm(const unsigned char *key, size_t size, int encrypting)
    soft_ctx *soft_xaes(const unsigned char *key, const unsigned char *prefix, int encrypting)
    void soft_free(soft_ctx *ctx)
    size_t soft_seal(soft_ctx *ctx, hot_item *items, size_t n, size_t nonce_size, const unsigned char *aad, size_t aad_len)
    size_t soft_open(soft_ctx *ctx, hot_item *items, size_t n, size_t nonce_size, const unsigned char *aad, size_t aad_len)

cdef extern from "string.h" nogil:
    void explicit_bzero(void *at, size_t size)

cdef extern from "hash.h" nogil:
    enum:
        HASH_SHA1
        HASH_SHA256
        HASH_SHA384
        HASH_SHA512
    ctypedef struct hash_function:
        size_t size
    hash_function *hashes
    int hash_init()

cdef extern from "padding.h" nogil:
    int oaep_open(unsigned char *em, size_t k, int hash, size_t *size)
    int pkcs1_open(unsigned char *em, size_t k, size_t size)

cdef extern from "hot_asym.h" nogil:
    CK_RV hot_sign(hot_lane *lane, hot_item *item, CK_MECHANISM_TYPE type, int hash)
    CK_RV hot_rsa_decrypt(hot_lane *lane, hot_item *item, int hash, int raw)
    int hot_ciphertext_refused(CK_RV rv)

cdef extern from "openssl/evp.h" nogil:
    ctypedef struct EVP_PKEY:
        pass
    ctypedef struct EVP_PKEY_CTX:
        pass
    ctypedef struct EVP_MAC_CTX:
        pass
    void EVP_PKEY_free(EVP_PKEY *key)
    void EVP_PKEY_CTX_free(EVP_PKEY_CTX *op)
    int EVP_PKEY_get_size(const EVP_PKEY *key)

cdef extern from "soft_private.h" nogil:
    enum:
        RSA_2048
        RSA_4096
        SOFT_PKCS8
        SOFT_SPKI
        SCHEME_ECDSA
    EVP_PKEY *soft_generate(int kind)
    EVP_PKEY *soft_parse(const unsigned char *der, size_t size, int known_good, int *kind)
    size_t soft_put_private(EVP_PKEY *key, unsigned char *out)
    size_t soft_put_public(EVP_PKEY *key, unsigned char *out)
    EVP_PKEY_CTX *soft_signer(EVP_PKEY *key, int scheme, int hash)
    EVP_PKEY_CTX *soft_decrypter(EVP_PKEY *key)
    size_t soft_sign(EVP_PKEY_CTX *op, const unsigned char *digest, size_t n, unsigned char *out)
    int soft_rsa(EVP_PKEY_CTX *op, const unsigned char *data, unsigned char *out, size_t k)

cdef extern from "mac.h" nogil:
    int mac_init()
    EVP_MAC_CTX *mac_new(const unsigned char *key, size_t size, int hash)
    void mac_free(EVP_MAC_CTX *ctx)
    int mac_take(EVP_MAC_CTX *ctx, const unsigned char *message, size_t n, unsigned char *tag, size_t tag_size)

cdef extern from "wrap.h" nogil:
    int kwp_open(const unsigned char *key, size_t key_size, const unsigned char *data, size_t n, unsigned char *out, size_t *size)
    EVP_PKEY *rsa_public(const unsigned char *der, size_t size)
    int oaep_seal(EVP_PKEY *key, int hash, const unsigned char *data, size_t n, unsigned char *out, size_t k)
