/* AES-GCM and the XAES key derivation in this process, on OpenSSL's EVP. A context serves one thread at a time; its owner sees to that. */
#ifndef KMS_SOFT_H
#define KMS_SOFT_H

#include <stddef.h>

#include "hot.h"

typedef struct evp_cipher_ctx_st soft_ctx;

/* Fetches the ciphers once: an implicit fetch at every message costs as much as the encryption (HSM.md section 2). Returns 0, or -1. */
int soft_init(void);

/* An AES-GCM context under a key of 16, 24 or 32 bytes, for encryption or for decryption. NULL on failure. */
soft_ctx *soft_gcm(const unsigned char *key, size_t size, int encrypting);

/* The same under the XAES key Kx that the 256-bit key and the first 12 bytes of a nonce give. */
soft_ctx *soft_xaes(const unsigned char key[32], const unsigned char prefix[12], int encrypting);

/* OpenSSL wipes the key schedule. NULL is fine. */
void soft_free(soft_ctx *ctx);

/* As hot_seal and hot_open; items->key is not looked at. */
size_t soft_seal(soft_ctx *ctx, hot_item *items, size_t n, size_t nonce_size, const unsigned char *aad, size_t aad_len);
size_t soft_open(soft_ctx *ctx, hot_item *items, size_t n, size_t nonce_size, const unsigned char *aad, size_t aad_len);

#endif
