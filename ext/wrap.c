#include "wrap.h"

#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>

#include "hash.h"

int kwp_open(const unsigned char *key, size_t key_size, const unsigned char *in, size_t n, unsigned char *out, size_t *size)
{
    const char *name = key_size == 16 ? "AES-128-WRAP-PAD" : key_size == 24 ? "AES-192-WRAP-PAD" : "AES-256-WRAP-PAD";
    EVP_CIPHER *cipher = EVP_CIPHER_fetch(NULL, name, NULL);
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    int written = 0, tail = 0, ok = 0;

    /* One AES block at least, in whole half blocks (RFC 5649 section 4.2). */
    if (cipher && ctx && n >= 16 && n % 8 == 0 && n <= 1 << 20) {
        EVP_CIPHER_CTX_set_flags(ctx, EVP_CIPHER_CTX_FLAG_WRAP_ALLOW);
        ok = EVP_DecryptInit_ex2(ctx, cipher, key, NULL, NULL) == 1 && EVP_DecryptUpdate(ctx, out, &written, in, (int)n) == 1 &&
             EVP_DecryptFinal_ex(ctx, out + written, &tail) == 1;
    }
    EVP_CIPHER_CTX_free(ctx);
    EVP_CIPHER_free(cipher);
    ERR_clear_error();
    *size = ok ? (size_t)(written + tail) : 0;
    return ok ? 0 : -1;
}

EVP_PKEY *rsa_public(const unsigned char *der, size_t size)
{
    const unsigned char *at = der;
    unsigned char *again = NULL;
    EVP_PKEY *key = size <= 4096 ? d2i_PUBKEY(NULL, &at, (long)size) : NULL;
    BIGNUM *e = NULL;
    int n = key ? i2d_PUBKEY(key, &again) : 0;
    int good = n > 0 && (size_t)n == size && CRYPTO_memcmp(again, der, size) == 0 && EVP_PKEY_is_a(key, "RSA") &&
               EVP_PKEY_get_bits(key) >= 2048 && EVP_PKEY_get_bits(key) <= 4096 &&
               EVP_PKEY_get_bn_param(key, OSSL_PKEY_PARAM_RSA_E, &e) == 1 && BN_is_odd(e) && !BN_is_one(e);

    OPENSSL_free(again);
    BN_free(e);
    if (!good) {
        EVP_PKEY_free(key);
        key = NULL;
    }
    ERR_clear_error();
    return key;
}

int oaep_seal(EVP_PKEY *key, int hash, const unsigned char *in, size_t n, unsigned char *out, size_t k)
{
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_pkey(NULL, key, NULL);
    size_t size = k;
    int ok = ctx && EVP_PKEY_encrypt_init(ctx) == 1 && EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_PKCS1_OAEP_PADDING) == 1 &&
             EVP_PKEY_CTX_set_rsa_oaep_md(ctx, hashes[hash].md) == 1 && EVP_PKEY_CTX_set_rsa_mgf1_md(ctx, hashes[hash].md) == 1 &&
             EVP_PKEY_encrypt(ctx, out, &size, in, n) == 1 && size == k;

    EVP_PKEY_CTX_free(ctx);
    ERR_clear_error();
    return ok ? 0 : -1;
}
