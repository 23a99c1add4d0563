/* RSA and EC private keys in this process, on OpenSSL's EVP. Everything here may run without the GIL and leaves the error queue empty.
 *
 * An operation is an EVP_PKEY_CTX that is set up once and used again: setting it up costs a quarter of a P-256 signature. It serves one
 * thread at a time and keeps the key alive. OpenSSL holds the key in memory of its own, which it wipes when it frees it. */
#ifndef KMS_SOFT_PRIVATE_H
#define KMS_SOFT_PRIVATE_H

#include <stddef.h>

#include <openssl/types.h>

/* SOFT_SPKI: room for the SubjectPublicKeyInfo of any of them. SOFT_PKCS8: for the PrivateKeyInfo. */
enum { RSA_2048, RSA_3072, RSA_4096, EC_P256, EC_P256K, EC_P384, EC_P521, SOFT_KINDS, SOFT_SPKI = 1024, SOFT_PKCS8 = 4096 };
enum { SCHEME_PKCS1, SCHEME_PSS, SCHEME_ECDSA, SCHEMES };

/* A new key; RSA with e = 65537. NULL on failure. */
EVP_PKEY *soft_generate(int kind);

/* The key in a PKCS#8 PrivateKeyInfo in DER, which fills `size` bytes exactly, when it is one of the kinds and consistent; otherwise NULL.
 * With `known_good` an RSA key has only to open what its public half seals: no tests of primality, which take a hundred times as long. */
EVP_PKEY *soft_parse(const unsigned char *der, size_t size, int known_good, int *kind);

/* The key as PrivateKeyInfo or as SubjectPublicKeyInfo, with a named curve. Returns the length, 0 on failure. */
size_t soft_put_private(EVP_PKEY *key, unsigned char out[SOFT_PKCS8]);
size_t soft_put_public(EVP_PKEY *key, unsigned char out[SOFT_SPKI]);

/* Operations, or NULL on failure. The scheme must fit the key; `hash` is one of hash.h. */
EVP_PKEY_CTX *soft_signer(EVP_PKEY *key, int scheme, int hash);
EVP_PKEY_CTX *soft_decrypter(EVP_PKEY *key);

/* Signs a digest of n bytes; an ECDSA signature is DER. Returns its length, 0 on failure; room is needed for 512 bytes. */
size_t soft_sign(EVP_PKEY_CTX *op, const unsigned char *digest, size_t n, unsigned char out[512]);

/* RSADP (RFC 8017 5.1.2): k bytes, the length of the modulus, to k bytes. Returns 0, or -1 for a number that is not below the modulus. */
int soft_rsa(EVP_PKEY_CTX *op, const unsigned char *in, unsigned char *out, size_t k);

#endif
