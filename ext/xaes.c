#include "xaes.h"

#include <string.h>

void xaes_k1(const unsigned char l[16], unsigned char k1[16])
{
    unsigned char top = l[0] >> 7;
    int i;

    for (i = 0; i < 15; i++)
        k1[i] = (unsigned char)(l[i] << 1 | l[i + 1] >> 7);
    k1[15] = (unsigned char)(l[15] << 1 ^ (0x87 & -top));
}

void xaes_blocks(const unsigned char k1[16], const unsigned char prefix[12], unsigned char blocks[32])
{
    int half, i;

    for (half = 0; half < 2; half++) {
        unsigned char *m = blocks + 16 * half;

        m[0] = 0;
        m[1] = (unsigned char)(half + 1);
        m[2] = 'X';
        m[3] = 0;
        memcpy(m + 4, prefix, 12);
        for (i = 0; i < 16; i++)
            m[i] ^= k1[i];
    }
}
