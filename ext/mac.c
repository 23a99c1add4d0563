#include "mac.h"

#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/params.h>

#include "hash.h"

static EVP_MAC *hmac;

int mac_init(void)
{
    if (!hmac)
        hmac = EVP_MAC_fetch(NULL, "HMAC", NULL);
    return hmac ? 0 : -1;
}

EVP_MAC_CTX *mac_new(const unsigned char *key, size_t size, int hash)
{
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, (char *)hashes[hash].name, 0),
        OSSL_PARAM_construct_end(),
    };
    EVP_MAC_CTX *ctx = EVP_MAC_CTX_new(hmac);

    if (ctx && EVP_MAC_init(ctx, key, size, params) != 1) {
        EVP_MAC_CTX_free(ctx);
        ctx = NULL;
        ERR_clear_error();
    }
    return ctx;
}

void mac_free(EVP_MAC_CTX *ctx)
{
    EVP_MAC_CTX_free(ctx);
}

int mac_take(EVP_MAC_CTX *ctx, const unsigned char *message, size_t n, unsigned char *tag, size_t tag_size)
{
    size_t size = 0;

    /* Without a key: the one that it has, from the start. */
    if (EVP_MAC_init(ctx, NULL, 0, NULL) == 1 && EVP_MAC_update(ctx, message, n) == 1 && EVP_MAC_final(ctx, tag, &size, tag_size) == 1 &&
        size == tag_size)
        return 0;
    ERR_clear_error();
    return -1;
}
