/* Decoding what RSA decrypted, in constant time (RFC 8017; RELIABILITY O1, O3). Both work in place on an encoded message of k bytes, the
 * length of the modulus: the message ends up at its front and the rest is zero. Whatever is wrong, nothing before the one answer at the
 * end depends on it: neither a first byte that is not zero (Manger) nor where the padding ends. */
#ifndef KMS_PADDING_H
#define KMS_PADDING_H

#include <stddef.h>

/* EME-OAEP with an empty label and MGF1 of the same hash; k is at least 2 * hash size + 2. Returns 1 with the message's length in *size, 0
 * with all k bytes zero for bad padding, -1 when OpenSSL failed. */
int oaep_open(unsigned char *em, size_t k, int hash, size_t *size);

/* EME-PKCS1-v1_5 of a message known to have `size` bytes, size <= k - 11. Returns 1, or 0 with all k bytes zero. */
int pkcs1_open(unsigned char *em, size_t k, size_t size);

#endif
