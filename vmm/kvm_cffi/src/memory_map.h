/*
 * Guest RAM as device code in C sees it: which host address backs which guest-physical address.
 *
 * Runs are only ever added behind the last one, and counted when they are whole, so any thread may
 * read the table without a lock. The mappings themselves are the owner's: they outlive the table.
 */
#ifndef MEMORY_MAP_H
#define MEMORY_MAP_H

#include "dirty.h"
#include "kvm_cffi.h"

struct vk_memory_run {
    uint64_t gpa;
    uint64_t size;
    uint8_t *hva;
};

/* Ascending and disjoint; neighbours in both address spaces have been merged. */
struct vk_memory {
    uint32_t count;
    uint32_t room;
    _Atomic(vk_dirty *) dirty; /* where writes are recorded, if anybody wants to know of them */
    struct vk_memory_run runs[];
};

/* Call it after every write to guest RAM by this process: nothing else sees them. */
static inline void vk_memory_wrote(const vk_memory *memory, const void *at, uint64_t size)
{
    vk_dirty *dirty = atomic_load_explicit(&memory->dirty, memory_order_acquire);
    if (__builtin_expect(dirty != NULL, 0))
        vk_dirty_mark(dirty, (uintptr_t)at, size);
}

/*
 * How many bytes of a guest range lie in the run where it begins, and where they are in this process.
 * 0 means that its first byte is not RAM.
 *
 * GUEST: both numbers may be anything; the sum may wrap.
 */
static inline uint64_t vk_memory_leading(const vk_memory *memory, uint64_t gpa, uint64_t size,
                                         uint8_t **hva)
{
    uint32_t low = 0, high = __atomic_load_n(&memory->count, __ATOMIC_ACQUIRE);
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const struct vk_memory_run *run = &memory->runs[middle];
        if (gpa < run->gpa) {
            high = middle;
        } else if (gpa - run->gpa >= run->size) {
            low = middle + 1;
        } else {
            uint64_t left = run->size - (gpa - run->gpa);
            *hva = run->hva + (gpa - run->gpa);
            return size < left ? size : left;
        }
    }
    return 0;
}

#endif
