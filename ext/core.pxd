# The C parts of the core. What each function promises stands in its header.

from ck cimport CK_FLAGS, CK_FUNCTION_LIST, CK_OBJECT_HANDLE, CK_RV, CK_SESSION_HANDLE, CK_SLOT_ID, CK_ULONG

cdef extern from "fork.h" nogil:
    int kms_forks
    int kms_fork_watch()

cdef extern from "p11_load.h" nogil:
    CK_FUNCTION_LIST *p11_load(const char *path, char *reason, size_t reason_size)
    CK_RV p11_initialize(CK_FUNCTION_LIST *f)

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
