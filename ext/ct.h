/* Arithmetic that takes the same time whatever the values: no branch and no index depends on them. A mask is all ones (true) or zero. */
#ifndef KMS_CT_H
#define KMS_CT_H

#include <stddef.h>

/* The compiler cannot see through this, so it cannot turn a mask back into a branch. */
static inline size_t ct_hide(size_t x)
{
    __asm__("" : "+r"(x));
    return x;
}

static inline size_t ct_zero(size_t x)
{
    return ct_hide(0 - ((~x & (x - 1)) >> (8 * sizeof x - 1)));
}

static inline size_t ct_equal(size_t a, size_t b)
{
    return ct_zero(a ^ b);
}

/* For values below half the range, as sizes are. */
static inline size_t ct_less(size_t a, size_t b)
{
    return ct_hide(0 - ((a - b) >> (8 * sizeof a - 1)));
}

static inline size_t ct_select(size_t mask, size_t yes, size_t no)
{
    return no ^ (mask & (yes ^ no));
}

/* Moves the n bytes by `by` places towards the front (by < n), or towards the back (by <= n). What is left behind at the back is
 * anything, at the front zero. */
static inline void ct_move_front(unsigned char *bytes, size_t n, size_t by)
{
    size_t bit, i, mask;

    for (bit = 1; bit < n; bit <<= 1) {
        mask = ~ct_zero(by & bit);
        for (i = 0; i + bit < n; i++)
            bytes[i] = (unsigned char)ct_select(mask, bytes[i + bit], bytes[i]);
    }
}

static inline void ct_move_back(unsigned char *bytes, size_t n, size_t by)
{
    size_t bit, i, mask;

    for (bit = 1; bit <= n; bit <<= 1) {
        mask = ~ct_zero(by & bit);
        for (i = n; i-- > bit;)
            bytes[i] = (unsigned char)ct_select(mask, bytes[i - bit], bytes[i]);
        for (i = 0; i < bit; i++)
            bytes[i] &= (unsigned char)~mask;
    }
}

#endif
