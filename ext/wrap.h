/* How key material travels, on OpenSSL: AES-KWP and RSAES-OAEP. Both may run without the GIL and leave the error queue empty. */
#ifndef KMS_WRAP_H
#define KMS_WRAP_H

#include <stddef.h>

#include <openssl/types.h>

/* Unwraps n bytes by AES-KWP (RFC 5649, SP 800-38F) under a key of 16, 24 or 32 bytes. `out` needs room for n bytes. Returns 0 with the
 * length in *size, or -1. */
int kwp_open(const unsigned char *key, size_t key_size, const unsigned char *in, size_t n, unsigned char *out, size_t *size);

/* The RSA key in a SubjectPublicKeyInfo in DER, which fills `size` bytes exactly, when it has 2048 to 4096 bits. NULL otherwise. */
EVP_PKEY *rsa_public(const unsigned char *der, size_t size);

/* RSAES-OAEP with an empty label, MGF1 of the same hash; `out` takes as many bytes as the modulus has. Returns 0, or -1. */
int oaep_seal(EVP_PKEY *key, int hash, const unsigned char *in, size_t n, unsigned char *out, size_t k);

#endif
