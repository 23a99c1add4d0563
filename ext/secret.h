/* Memory for secrets, and the pool that nonces come from. Every function here needs the GIL: nothing in it is locked.
 *
 * A slot is a piece of an arena: mapped pages with a guard page on both sides, locked in memory as far as RLIMIT_MEMLOCK allows, left out
 * of core dumps, zero in a forked child. Slots of one size share an arena, so thousands of small secrets fit under a limit of 8 MiB.
 */
#ifndef KMS_SECRET_H
#define KMS_SECRET_H

#include <stddef.h>

#define SECRET_MAX 16384 /* the largest slot, bytes */

/* A zeroed slot of at least `size` bytes (1..SECRET_MAX), or NULL with errno set. *locked says whether its pages are locked. */
unsigned char *secret_alloc(size_t size, int *locked);

/* Wipes the slot that secret_alloc(size) gave and takes it back. In a forked child: does nothing, the pages are zero there. */
void secret_free(unsigned char *slot, size_t size);

/* Slots in use; for the tests that look for leaks. */
size_t secret_live(void);

/* getrandom(2), all of it. Returns 0, or -1 with errno set. */
int random_fill(unsigned char *out, size_t size);

/* 12 bytes that no one was given before, from a pool that getrandom refills 6 KiB at a time. Returns 0, or -1 with errno set. */
int nonce_take(unsigned char out[12]);

#endif
