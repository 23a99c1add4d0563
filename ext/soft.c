#define _GNU_SOURCE
#include "soft.h"

#include <limits.h>
#include <string.h>

#include <openssl/err.h>
#include <openssl/evp.h>

#include "xaes.h"

static EVP_CIPHER *gcm128, *gcm192, *gcm256, *ecb256;

int soft_init(void)
{
    if (!gcm128)
        gcm128 = EVP_CIPHER_fetch(NULL, "AES-128-GCM", NULL);
    if (!gcm192)
        gcm192 = EVP_CIPHER_fetch(NULL, "AES-192-GCM", NULL);
    if (!gcm256)
        gcm256 = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
    if (!ecb256)
        ecb256 = EVP_CIPHER_fetch(NULL, "AES-256-ECB", NULL);
    return gcm128 && gcm192 && gcm256 && ecb256 ? 0 : -1;
}

soft_ctx *soft_gcm(const unsigned char *key, size_t size, int encrypting)
{
    EVP_CIPHER *cipher = size == 16 ? gcm128 : size == 24 ? gcm192 : gcm256;
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();

    /* The default IV length of AES-GCM in EVP is the 12 bytes that we use. */
    if (ctx && EVP_CipherInit_ex2(ctx, cipher, key, NULL, encrypting, NULL) != 1) {
        EVP_CIPHER_CTX_free(ctx);
        ctx = NULL;
    }
    return ctx;
}

soft_ctx *soft_xaes(const unsigned char key[32], const unsigned char prefix[12], int encrypting)
{
    static const unsigned char zero[16] = {0};
    unsigned char l[16], k1[16], blocks[32], kx[32];
    EVP_CIPHER_CTX *ecb = EVP_CIPHER_CTX_new(), *ctx = NULL;
    int n;

    if (ecb && EVP_EncryptInit_ex2(ecb, ecb256, key, NULL, NULL) == 1 && EVP_CIPHER_CTX_set_padding(ecb, 0) == 1 &&
        EVP_EncryptUpdate(ecb, l, &n, zero, 16) == 1) {
        xaes_k1(l, k1);
        xaes_blocks(k1, prefix, blocks);
        if (EVP_EncryptUpdate(ecb, kx, &n, blocks, 32) == 1)
            ctx = soft_gcm(kx, 32, encrypting);
    }
    EVP_CIPHER_CTX_free(ecb);
    explicit_bzero(l, sizeof l);
    explicit_bzero(k1, sizeof k1);
    explicit_bzero(blocks, sizeof blocks);
    explicit_bzero(kx, sizeof kx);
    return ctx;
}

void soft_free(soft_ctx *ctx)
{
    EVP_CIPHER_CTX_free(ctx);
}

static CK_RV seal_one(soft_ctx *ctx, hot_item *item, const unsigned char *iv, const unsigned char *aad, size_t aad_len)
{
    int n, tail;

    if (EVP_EncryptInit_ex2(ctx, NULL, NULL, iv, NULL) != 1 || (aad_len && EVP_EncryptUpdate(ctx, NULL, &n, aad, (int)aad_len) != 1))
        return KMS_RV_CRYPTO;
    n = 0;
    if (item->in_len && EVP_EncryptUpdate(ctx, item->out, &n, item->in, (int)item->in_len) != 1)
        return KMS_RV_CRYPTO;
    if (EVP_EncryptFinal_ex(ctx, item->out + n, &tail) != 1 ||
        EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, GCM_TAG, item->out + item->in_len) != 1)
        return KMS_RV_CRYPTO;
    item->out_len = item->in_len + GCM_TAG;
    return CKR_OK;
}

static CK_RV open_one(soft_ctx *ctx, hot_item *item, const unsigned char *iv, const unsigned char *aad, size_t aad_len)
{
    int n, tail, size = (int)item->in_len - GCM_TAG;

    if (EVP_DecryptInit_ex2(ctx, NULL, NULL, iv, NULL) != 1 ||
        EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, GCM_TAG, (void *)(item->in + size)) != 1 ||
        (aad_len && EVP_DecryptUpdate(ctx, NULL, &n, aad, (int)aad_len) != 1))
        return KMS_RV_CRYPTO;
    n = 0;
    if (size && EVP_DecryptUpdate(ctx, item->out, &n, item->in, size) != 1)
        return KMS_RV_CRYPTO;
    if (EVP_DecryptFinal_ex(ctx, item->out + n, &tail) != 1) {
        explicit_bzero(item->out, (size_t)size); /* unverified plaintext goes nowhere */
        return CKR_ENCRYPTED_DATA_INVALID;
    }
    item->out_len = (CK_ULONG)size;
    return CKR_OK;
}

typedef CK_RV (*one_fn)(soft_ctx *, hot_item *, const unsigned char *, const unsigned char *, size_t);

static inline size_t run(one_fn one, int step, soft_ctx *ctx, hot_item *items, size_t n, size_t nonce_size, const unsigned char *aad,
                         size_t aad_len)
{
    size_t i, bad = 0;

    for (i = 0; i < n; i++) {
        if (items[i].rv != CKR_OK) {
            bad++;
            continue;
        }
        /* EVP takes lengths as int; messages are far below that, associated data might not be. */
        items[i].rv = aad_len > INT_MAX ? KMS_RV_CRYPTO : one(ctx, &items[i], items[i].nonce + nonce_size - GCM_IV, aad, aad_len);
        items[i].step = step;
        bad += items[i].rv != CKR_OK;
    }
    if (bad)
        ERR_clear_error(); /* the queue belongs to the thread: the next user of OpenSSL in it must not find our errors */
    return bad;
}

size_t soft_seal(soft_ctx *ctx, hot_item *items, size_t n, size_t nonce_size, const unsigned char *aad, size_t aad_len)
{
    return run(seal_one, STEP_SOFT, ctx, items, n, nonce_size, aad, aad_len);
}

size_t soft_open(soft_ctx *ctx, hot_item *items, size_t n, size_t nonce_size, const unsigned char *aad, size_t aad_len)
{
    /* STEP_DECRYPT, so that a refused tag is read as one. */
    return run(open_one, STEP_DECRYPT, ctx, items, n, nonce_size, aad, aad_len);
}
