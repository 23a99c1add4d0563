#include "soft_private.h"

#include <string.h>

#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>

#include "hash.h"

static const struct {
    int bits;          /* RSA */
    const char *curve; /* EC, as OpenSSL calls the group */
} kinds[SOFT_KINDS] = {
    [RSA_2048] = {2048, NULL},     [RSA_3072] = {3072, NULL},     [RSA_4096] = {4096, NULL},     [EC_P256] = {0, "prime256v1"},
    [EC_P256K] = {0, "secp256k1"}, [EC_P384] = {0, "secp384r1"}, [EC_P521] = {0, "secp521r1"},
};

EVP_PKEY *soft_generate(int kind)
{
    EVP_PKEY *key;

    if (kinds[kind].curve)
        key = EVP_PKEY_Q_keygen(NULL, NULL, "EC", kinds[kind].curve);
    else
        key = EVP_PKEY_Q_keygen(NULL, NULL, "RSA", (size_t)kinds[kind].bits); /* e = 65537 is OpenSSL's default */
    ERR_clear_error();
    return key;
}

/* An odd exponent from 65537 to 2^256 (FIPS 186-5 A.1.1), and two primes, not more. */
static int rsa_in_range(EVP_PKEY *key)
{
    BIGNUM *e = NULL, *third = NULL;
    int good = EVP_PKEY_get_bn_param(key, OSSL_PKEY_PARAM_RSA_E, &e) == 1 && BN_is_odd(e) && BN_num_bits(e) >= 17 &&
               BN_num_bits(e) <= 256 && EVP_PKEY_get_bn_param(key, OSSL_PKEY_PARAM_RSA_FACTOR3, &third) != 1;

    BN_free(e);
    BN_clear_free(third);
    return good;
}

static int kind_of(EVP_PKEY *key)
{
    char curve[32];
    int from_numbers = 1, kind;

    if (EVP_PKEY_is_a(key, "RSA")) {
        for (kind = RSA_2048; kind <= RSA_4096; kind++)
            if (EVP_PKEY_get_bits(key) == kinds[kind].bits)
                return rsa_in_range(key) ? kind : -1;
        return -1;
    }
    if (!EVP_PKEY_is_a(key, "EC") || EVP_PKEY_get_group_name(key, curve, sizeof curve, NULL) != 1 ||
        EVP_PKEY_get_int_param(key, OSSL_PKEY_PARAM_EC_DECODED_FROM_EXPLICIT_PARAMS, &from_numbers) != 1 || from_numbers)
        return -1;
    for (kind = EC_P256; kind <= EC_P521; kind++)
        if (strcmp(curve, kinds[kind].curve) == 0)
            /* The point may have come compressed; it leaves uncompressed. */
            return EVP_PKEY_set_utf8_string_param(key, OSSL_PKEY_PARAM_EC_POINT_CONVERSION_FORMAT, "uncompressed") == 1 ? kind : -1;
    return -1;
}

/* Whether `size` bytes are one SEQUENCE in definite form and nothing else; *content is what lies in it. */
static int is_sequence(const unsigned char *der, size_t size, const unsigned char **content)
{
    const unsigned char *at = der;
    long length;
    int tag, class, constructed = ASN1_get_object(&at, &length, &tag, &class, (long)size);

    *content = at;
    return constructed == V_ASN1_CONSTRUCTED && tag == V_ASN1_SEQUENCE && class == V_ASN1_UNIVERSAL && at + length == der + size;
}

/* A PrivateKeyInfo of version 0 whose outer parts encode to the same bytes again, with one SEQUENCE in it. */
static PKCS8_PRIV_KEY_INFO *strict_pkcs8(const unsigned char *der, size_t size)
{
    const unsigned char *at = der, *inner, *content;
    PKCS8_PRIV_KEY_INFO *info = NULL;
    unsigned char *again = NULL;
    int n = 0, inner_size, good;

    if (size > SOFT_PKCS8 || !is_sequence(der, size, &content) || (size_t)(der + size - content) < 3 || memcmp(content, "\2\1\0", 3))
        return NULL;
    info = d2i_PKCS8_PRIV_KEY_INFO(NULL, &at, (long)size);
    if (info)
        n = i2d_PKCS8_PRIV_KEY_INFO(info, &again);
    good = n > 0 && (size_t)n == size && CRYPTO_memcmp(again, der, size) == 0 &&
           PKCS8_pkey_get0(NULL, &inner, &inner_size, NULL, info) == 1 && is_sequence(inner, (size_t)inner_size, &content);
    if (n > 0)
        OPENSSL_clear_free(again, (size_t)n);
    if (!good) {
        PKCS8_PRIV_KEY_INFO_free(info);
        info = NULL;
    }
    return info;
}

/* Whether the private half undoes what the public half does to a number. */
static int undoes(EVP_PKEY *key)
{
    unsigned char number[512] = {0, 1, 2, 3}, sealed[512], opened[512];
    size_t k = (size_t)EVP_PKEY_get_size(key), size = sizeof sealed;
    EVP_PKEY_CTX *seal = EVP_PKEY_CTX_new_from_pkey(NULL, key, NULL), *op = soft_decrypter(key);
    int good = seal && op && EVP_PKEY_encrypt_init(seal) == 1 && EVP_PKEY_CTX_set_rsa_padding(seal, RSA_NO_PADDING) == 1 &&
               EVP_PKEY_encrypt(seal, sealed, &size, number, k) == 1 && size == k && soft_rsa(op, sealed, opened, k) == 0 &&
               memcmp(number, opened, k) == 0;

    EVP_PKEY_CTX_free(seal);
    EVP_PKEY_CTX_free(op);
    return good;
}

static int consistent(EVP_PKEY *key, int rsa_known_good)
{
    EVP_PKEY_CTX *check;
    int good;

    if (rsa_known_good)
        return undoes(key);
    check = EVP_PKEY_CTX_new_from_pkey(NULL, key, NULL);
    good = check && EVP_PKEY_check(check) == 1;
    EVP_PKEY_CTX_free(check);
    return good;
}

EVP_PKEY *soft_parse(const unsigned char *der, size_t size, int known_good, int *kind)
{
    PKCS8_PRIV_KEY_INFO *info = strict_pkcs8(der, size);
    EVP_PKEY *key = info ? EVP_PKCS82PKEY(info) : NULL;

    PKCS8_PRIV_KEY_INFO_free(info); /* it wipes the octets */
    if (key && ((*kind = kind_of(key)) < 0 || !consistent(key, known_good && *kind <= RSA_4096))) {
        EVP_PKEY_free(key);
        key = NULL;
    }
    ERR_clear_error();
    return key;
}

size_t soft_put_private(EVP_PKEY *key, unsigned char out[SOFT_PKCS8])
{
    PKCS8_PRIV_KEY_INFO *info = EVP_PKEY2PKCS8(key);
    int n = info ? i2d_PKCS8_PRIV_KEY_INFO(info, NULL) : 0;

    if (n > 0 && n <= SOFT_PKCS8)
        n = i2d_PKCS8_PRIV_KEY_INFO(info, &out);
    else
        n = 0;
    PKCS8_PRIV_KEY_INFO_free(info);
    ERR_clear_error();
    return n > 0 ? (size_t)n : 0;
}

size_t soft_put_public(EVP_PKEY *key, unsigned char out[SOFT_SPKI])
{
    int n = i2d_PUBKEY(key, NULL);

    n = n > 0 && n <= SOFT_SPKI ? i2d_PUBKEY(key, &out) : 0;
    ERR_clear_error();
    return n > 0 ? (size_t)n : 0;
}

EVP_PKEY_CTX *soft_signer(EVP_PKEY *key, int scheme, int hash)
{
    EVP_PKEY_CTX *op = EVP_PKEY_CTX_new_from_pkey(NULL, key, NULL);
    int ok = op && EVP_PKEY_sign_init(op) == 1 && EVP_PKEY_CTX_set_signature_md(op, hashes[hash].md) == 1;

    if (ok && scheme != SCHEME_ECDSA)
        ok = EVP_PKEY_CTX_set_rsa_padding(op, scheme == SCHEME_PSS ? RSA_PKCS1_PSS_PADDING : RSA_PKCS1_PADDING) == 1;
    if (ok && scheme == SCHEME_PSS)
        ok = EVP_PKEY_CTX_set_rsa_mgf1_md(op, hashes[hash].md) == 1 && EVP_PKEY_CTX_set_rsa_pss_saltlen(op, RSA_PSS_SALTLEN_DIGEST) == 1;
    if (!ok) {
        EVP_PKEY_CTX_free(op);
        op = NULL;
        ERR_clear_error();
    }
    return op;
}

EVP_PKEY_CTX *soft_decrypter(EVP_PKEY *key)
{
    EVP_PKEY_CTX *op = EVP_PKEY_CTX_new_from_pkey(NULL, key, NULL);

    if (op && EVP_PKEY_decrypt_init(op) == 1 && EVP_PKEY_CTX_set_rsa_padding(op, RSA_NO_PADDING) == 1)
        return op;
    EVP_PKEY_CTX_free(op);
    ERR_clear_error();
    return NULL;
}

size_t soft_sign(EVP_PKEY_CTX *op, const unsigned char *digest, size_t n, unsigned char out[512])
{
    size_t size = 512;

    if (EVP_PKEY_sign(op, out, &size, digest, n) == 1)
        return size;
    ERR_clear_error();
    return 0;
}

int soft_rsa(EVP_PKEY_CTX *op, const unsigned char *in, unsigned char *out, size_t k)
{
    size_t size = k;

    if (EVP_PKEY_decrypt(op, out, &size, in, k) == 1 && size == k)
        return 0;
    ERR_clear_error();
    return -1;
}
