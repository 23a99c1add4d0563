/* The yardstick of bench_core.py: the plain C loop that anyone would write for the same work. For each message it draws a nonce, puts
 * header and nonce before the ciphertext, and calls C_EncryptInit and C_Encrypt; nothing is allocated, all go to the same buffer. */
#define _GNU_SOURCE
#include <string.h>
#include <sys/random.h>

#include "ck.h"

/* 12 random bytes from a pool that getrandom fills 6 KiB at a time, as the core does. */
static int nonce(unsigned char out[12])
{
    static unsigned char pool[6144];
    static size_t left;

    if (left < 12) {
        if (getrandom(pool, sizeof pool, 0) != sizeof pool)
            return -1;
        left = sizeof pool;
    }
    left -= 12;
    memcpy(out, pool + left, 12);
    return 0;
}

/* `prefix`: the header and the first half of the nonce. Messages lie one behind the other in `in`; n of them. Returns a CK_RV. */
CK_RV cloop_encrypt(CK_FUNCTION_LIST *f, CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key, unsigned char *prefix, CK_ULONG prefix_len,
                    unsigned char *aad, CK_ULONG aad_len, unsigned char *in, CK_ULONG size, CK_ULONG n, unsigned char *out)
{
    CK_GCM_PARAMS gcm = {out + prefix_len, 12, 96, aad, aad_len, 128};
    CK_MECHANISM mechanism = {CKM_AES_GCM, &gcm, sizeof gcm};
    CK_ULONG i, written;
    CK_RV rv;

    for (i = 0; i < n; i++) {
        memcpy(out, prefix, prefix_len);
        if (nonce(out + prefix_len))
            return CKR_GENERAL_ERROR;
        rv = f->C_EncryptInit(session, &mechanism, key);
        if (rv != CKR_OK)
            return rv;
        written = size + 16;
        rv = f->C_Encrypt(session, in + i * size, size, out + prefix_len + 12, &written);
        if (rv != CKR_OK)
            return rv;
    }
    return CKR_OK;
}

/* Blobs lie one behind the other in `in`, each `size` bytes, of which the first prefix_len are header and first half of the nonce. */
CK_RV cloop_decrypt(CK_FUNCTION_LIST *f, CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key, CK_ULONG prefix_len, unsigned char *aad,
                    CK_ULONG aad_len, unsigned char *in, CK_ULONG size, CK_ULONG n, unsigned char *out)
{
    CK_GCM_PARAMS gcm = {0, 12, 96, aad, aad_len, 128};
    CK_MECHANISM mechanism = {CKM_AES_GCM, &gcm, sizeof gcm};
    CK_ULONG i, written, sealed = size - prefix_len - 12;
    CK_RV rv;

    for (i = 0; i < n; i++, in += size) {
        gcm.pIv = in + prefix_len;
        rv = f->C_DecryptInit(session, &mechanism, key);
        if (rv != CKR_OK)
            return rv;
        written = sealed;
        rv = f->C_Decrypt(session, in + prefix_len + 12, sealed, out, &written);
        if (rv != CKR_OK)
            return rv;
    }
    return CKR_OK;
}
