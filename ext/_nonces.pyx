# A set of 64-bit fingerprints in memory that several processes map: what is put in stays, nothing is ever taken out.
#
# A fingerprint has a fixed sequence of PROBES slots; it takes the first that is empty, by one atomic exchange. So two processes that put
# in the same one meet in the same slot: exactly one finds it new, whatever else happens and wherever either is killed.
"""The compiled part of kmscore.api: put_in. Its face is _nonces.pyi."""

from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    static inline int nonce_put_in(uint64_t *slots, uint64_t mask, uint64_t value, unsigned probes)
    {
        for (unsigned i = 0; i < probes; i++) {
            uint64_t *slot = &slots[(value + i) & mask];
            uint64_t held = __atomic_load_n(slot, __ATOMIC_ACQUIRE);
            if (held == 0 && __atomic_compare_exchange_n(slot, &held, value, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
                return 0;
            if (held == value)
                return 1;
        }
        return 2;
    }
    static inline int nonce_holds(const uint64_t *slots, uint64_t mask, uint64_t value, unsigned probes)
    {
        for (unsigned i = 0; i < probes; i++) {
            uint64_t held = __atomic_load_n(&slots[(value + i) & mask], __ATOMIC_ACQUIRE);
            if (held == value)
                return 1;
            if (held == 0)
                return 0;
        }
        return 2;
    }
    """
    int nonce_put_in(uint64_t *slots, uint64_t mask, uint64_t value, unsigned probes) nogil
    int nonce_holds(const uint64_t *slots, uint64_t mask, uint64_t value, unsigned probes) nogil

cdef enum:
    _PROBES = 32

NEW = 0
SEEN = 1
FULL = 2


cdef uint64_t _mask(Py_ssize_t slots) except? 0:
    if slots < _PROBES or slots & (slots - 1):
        raise ValueError(f"a table has a power of two of slots, at least {_PROBES}")
    return <uint64_t>slots - 1


def put_in(uint64_t[::1] table not None, uint64_t value):
    """NEW when `value`, which is not 0, was not there and is now; SEEN when it was; FULL when its slots hold others."""
    cdef uint64_t mask = _mask(table.shape[0])
    if value == 0:
        raise ValueError("0 marks an empty slot")
    return nonce_put_in(&table[0], mask, value, _PROBES)


def holds(const uint64_t[::1] table not None, uint64_t value):
    """SEEN when `value` is there, NEW when it is not, FULL when its slots hold others, so that it may be in the next table."""
    return nonce_holds(&table[0], _mask(table.shape[0]), value, _PROBES)
