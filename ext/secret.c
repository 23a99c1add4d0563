#define _GNU_SOURCE
#include "secret.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "fork.h"

enum { SMALLEST = 64, CLASSES = 9, ARENA = 16384 }; /* 64 << 8 == SECRET_MAX: the largest slot fills an arena */

typedef struct arena {
    struct arena *next;
    unsigned char *base;
    unsigned free_slots, slots;
    int locked;
    uint64_t used[ARENA / SMALLEST / 64]; /* bit i: slot i is taken */
} arena;

static arena *arenas[CLASSES];
static size_t live;
static int made_in; /* the value of kms_forks that `arenas` belong to */

static int class_of(size_t size)
{
    int c = 0;

    while (((size_t)SMALLEST << c) < size)
        c++;
    return c;
}

/* Fresh pages between two guard pages, so that an overrun faults instead of reaching a neighbour. Their advice is best effort. */
static unsigned char *pages(size_t size, int *locked)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), length = (size + page - 1) / page * page;
    unsigned char *map = mmap(NULL, length + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (map == MAP_FAILED)
        return NULL;
    if (mprotect(map + page, length, PROT_READ | PROT_WRITE)) {
        munmap(map, length + 2 * page);
        return NULL;
    }
    *locked = mlock(map + page, length) == 0;
    (void)madvise(map + page, length, MADV_DONTDUMP);
    (void)madvise(map + page, length, MADV_WIPEONFORK);
    return map + page;
}

static void unpages(unsigned char *base, size_t size)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), length = (size + page - 1) / page * page;

    munmap(base - page, length + 2 * page);
}

static arena *arena_new(int c)
{
    arena *a = calloc(1, sizeof *a);

    if (!a)
        return NULL;
    a->base = pages(ARENA, &a->locked);
    if (!a->base) {
        free(a);
        return NULL;
    }
    a->slots = a->free_slots = ARENA / (SMALLEST << c);
    a->next = arenas[c];
    arenas[c] = a;
    return a;
}

/* In a child the inherited arenas are zero and no longer locked: leave them to the objects that still point there, start anew. */
static void after_fork(void)
{
    if (made_in != kms_forks) {
        memset(arenas, 0, sizeof arenas);
        live = 0;
        made_in = kms_forks;
    }
}

unsigned char *secret_alloc(size_t size, int *locked)
{
    arena *a;
    unsigned i;
    int c;

    after_fork();
    if (size == 0 || size > SECRET_MAX) {
        errno = EINVAL;
        return NULL;
    }
    c = class_of(size);
    for (a = arenas[c]; a && a->free_slots == 0; a = a->next)
        ;
    if (!a && !(a = arena_new(c)))
        return NULL;
    for (i = 0; a->used[i / 64] >> (i % 64) & 1; i++)
        ;
    a->used[i / 64] |= (uint64_t)1 << (i % 64);
    a->free_slots--;
    live++;
    *locked = a->locked;
    return a->base + (size_t)i * ((size_t)SMALLEST << c);
}

void secret_free(unsigned char *slot, size_t size)
{
    int c = class_of(size);
    arena **at, *a;
    size_t i;

    after_fork();
    for (at = &arenas[c]; (a = *at) != NULL; at = &a->next) {
        if (slot < a->base || slot >= a->base + ARENA)
            continue;
        i = (size_t)(slot - a->base) / ((size_t)SMALLEST << c);
        explicit_bzero(slot, (size_t)SMALLEST << c);
        a->used[i / 64] &= ~((uint64_t)1 << (i % 64));
        a->free_slots++;
        live--;
        /* One arena of a class stays, so that a secret made and closed over and over maps nothing. */
        if (a->free_slots == a->slots && (arenas[c] != a || a->next)) {
            *at = a->next;
            unpages(a->base, ARENA);
            free(a);
        }
        return;
    }
}

size_t secret_live(void)
{
    after_fork();
    return live;
}

int random_fill(unsigned char *out, size_t size)
{
    while (size) {
        ssize_t got = getrandom(out, size, 0);

        if (got < 0) {
            if (errno == EINTR)
                continue;
            return -1;
        }
        out += got;
        size -= (size_t)got;
    }
    return 0;
}

/* `left` lies in the pages that a fork wipes, beside the bytes it counts: a child finds 0, whatever system call made it, and draws its own.
 * The fork counter says the same where the kernel knows no MADV_WIPEONFORK (before 4.14). */
enum { POOL_BYTES = 6144 };
typedef struct {
    size_t left;
    unsigned char bytes[POOL_BYTES];
} pool;

int nonce_take(unsigned char out[12])
{
    static pool *p;
    static int drawn_in;
    int locked;

    if (!p && !(p = (pool *)pages(sizeof *p, &locked)))
        return -1;
    if (p->left < 12 || drawn_in != kms_forks) {
        p->left = 0;
        if (random_fill(p->bytes, POOL_BYTES))
            return -1;
        p->left = POOL_BYTES;
        drawn_in = kms_forks;
    }
    p->left -= 12;
    memcpy(out, p->bytes + p->left, 12);
    return 0;
}
