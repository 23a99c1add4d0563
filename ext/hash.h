/* The hash functions of RSA, ECDSA and HMAC, fetched once from OpenSSL. */
#ifndef KMS_HASH_H
#define KMS_HASH_H

#include <stddef.h>

#include <openssl/types.h>

enum { HASH_SHA1, HASH_SHA256, HASH_SHA384, HASH_SHA512, HASHES, HASH_MAX = 64 };

typedef struct {
    const char *name; /* as OpenSSL calls it */
    size_t size;      /* bytes of a digest */
    EVP_MD *md;
    unsigned char of_nothing[HASH_MAX]; /* the digest of the empty string: OAEP's lHash of an empty label */
} hash_function;

extern hash_function hashes[HASHES];

/* Called at import only. Returns 0, or -1. */
int hash_init(void);

#endif
