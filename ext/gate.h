/* The shared words of the freshness gate: atomic access and futexes. Layout: kmscore/store/_gate.pyi. */
#ifndef KMS_GATE_H
#define KMS_GATE_H

#include <errno.h>
#include <linux/futex.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static inline uint64_t gate_load(const uint64_t *at)
{
    return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}

static inline void gate_store(uint64_t *at, uint64_t value)
{
    __atomic_store_n(at, value, __ATOMIC_RELEASE);
}

static inline uint64_t gate_add(uint64_t *at)
{
    return __atomic_add_fetch(at, 1, __ATOMIC_SEQ_CST);
}

/* Puts `value` where a zero is; returns what is there afterwards. */
static inline uint64_t gate_claim(uint64_t *at, uint64_t value)
{
    uint64_t seen = 0;

    return __atomic_compare_exchange_n(at, &seen, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST) ? value : seen;
}

/* A futex is 32 bits wide: the low half of the word, wherever the machine keeps it. */
static inline uint32_t *gate_low(uint64_t *at)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return (uint32_t *)at + 1;
#else
    return (uint32_t *)at;
#endif
}

/* Sleeps while the low half of *at is that of `seen`, until `deadline` on CLOCK_MONOTONIC. Returns 0 or an errno value. Not FUTEX_PRIVATE:
 * the waiter and the waker are different processes. */
static inline int gate_sleep(uint64_t *at, uint64_t seen, const struct timespec *deadline)
{
    return syscall(SYS_futex, gate_low(at), FUTEX_WAIT_BITSET, (uint32_t)seen, deadline, NULL, FUTEX_BITSET_MATCH_ANY) ? errno : 0;
}

static inline void gate_wake(uint64_t *at)
{
    syscall(SYS_futex, gate_low(at), FUTEX_WAKE, 0x7fffffff, NULL, NULL, 0);
}

#endif
