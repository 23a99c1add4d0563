/* HMAC (FIPS 198-1) on OpenSSL. A context holds the key and serves one thread at a time, message after message. */
#ifndef KMS_MAC_H
#define KMS_MAC_H

#include <stddef.h>

#include <openssl/types.h>

/* Called at import only. Returns 0, or -1. */
int mac_init(void);

/* A context under a key of `size` bytes, with a hash of hash.h. NULL on failure. OpenSSL wipes the key when it frees it. */
EVP_MAC_CTX *mac_new(const unsigned char *key, size_t size, int hash);
void mac_free(EVP_MAC_CTX *ctx);

/* The tag, as long as a digest of the hash. Returns 0, or -1. */
int mac_take(EVP_MAC_CTX *ctx, const unsigned char *message, size_t n, unsigned char *tag, size_t tag_size);

#endif
