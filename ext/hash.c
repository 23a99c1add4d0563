#include "hash.h"

#include <openssl/evp.h>

hash_function hashes[HASHES] = {
    [HASH_SHA1] = {"SHA1", 20, NULL, {0}},
    [HASH_SHA256] = {"SHA2-256", 32, NULL, {0}},
    [HASH_SHA384] = {"SHA2-384", 48, NULL, {0}},
    [HASH_SHA512] = {"SHA2-512", 64, NULL, {0}},
};

int hash_init(void)
{
    int i;

    for (i = 0; i < HASHES; i++) {
        if (!hashes[i].md)
            hashes[i].md = EVP_MD_fetch(NULL, hashes[i].name, NULL);
        if (!hashes[i].md || EVP_Digest("", 0, hashes[i].of_nothing, NULL, hashes[i].md, NULL) != 1)
            return -1;
    }
    return 0;
}
