#define _GNU_SOURCE
#include "padding.h"

#include <string.h>

#include <openssl/evp.h>

#include "ct.h"
#include "hash.h"

/* bytes ^= MGF1(seed), RFC 8017 B.2.1. The time depends on the lengths only. */
static int mask_with(EVP_MD_CTX *ctx, const hash_function *h, const unsigned char *seed, size_t seed_size, unsigned char *bytes, size_t n)
{
    unsigned char block[HASH_MAX], counter[4] = {0};
    size_t done, i;
    int ok = 1;

    for (done = 0; ok && done < n; done += h->size) {
        /* A modulus of 4096 bits needs 26 blocks at most. */
        counter[3] = (unsigned char)(done / h->size);
        ok = EVP_DigestInit_ex2(ctx, h->md, NULL) == 1 && EVP_DigestUpdate(ctx, seed, seed_size) == 1 &&
             EVP_DigestUpdate(ctx, counter, 4) == 1 && EVP_DigestFinal_ex(ctx, block, NULL) == 1;
        for (i = 0; ok && i < h->size && done + i < n; i++)
            bytes[done + i] ^= block[i];
    }
    explicit_bzero(block, sizeof block);
    return ok;
}

int oaep_open(unsigned char *em, size_t k, int hash, size_t *size)
{
    const hash_function *h = &hashes[hash];
    size_t n = k - h->size - 1, room = n - h->size - 1, i, one, by;
    size_t good, differs = 0, found = 0, at = 0;
    unsigned char *seed = em + 1, *db = seed + h->size;
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    int ok = ctx && mask_with(ctx, h, db, n, seed, h->size) && mask_with(ctx, h, seed, h->size, db, n);

    EVP_MD_CTX_free(ctx); /* it wipes its state */
    *size = 0;
    if (!ok) {
        explicit_bzero(em, k);
        return -1;
    }
    /* EM = 00 || seed || DB, DB = lHash || 00... || 01 || message */
    for (i = 0; i < h->size; i++)
        differs |= db[i] ^ h->of_nothing[i];
    good = ct_zero(em[0]) & ct_zero(differs);
    for (i = h->size; i < n; i++) {
        one = ct_equal(db[i], 1) & ~found;
        at = ct_select(one, i, at);
        found |= one;
        good &= found | ct_zero(db[i]);
    }
    good &= found;
    /* The longest message would begin right behind lHash and 01. */
    by = (at - h->size) & good;
    *size = (room - by) & good;
    ct_move_front(db + h->size + 1, room, by);
    for (i = 0; i < room; i++)
        em[i] = db[h->size + 1 + i] & (unsigned char)(good & ct_less(i, *size));
    explicit_bzero(em + room, k - room);
    return (int)(good & 1);
}

int pkcs1_open(unsigned char *em, size_t k, size_t size)
{
    size_t good = ct_zero(em[0]) & ct_equal(em[1], 2) & ct_zero(em[k - size - 1]), i;

    /* EM = 00 02 || nonzero... || 00 || message */
    for (i = 2; i < k - size - 1; i++)
        good &= ~ct_zero(em[i]);
    for (i = 0; i < size; i++)
        em[i] = em[k - size + i] & (unsigned char)good;
    explicit_bzero(em + size, k - size);
    return (int)(good & 1);
}
