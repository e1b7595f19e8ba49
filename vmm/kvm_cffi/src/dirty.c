/* Bitmaps of what this process has written to guest RAM. */
#include "dirty.h"

#include <stdlib.h>

#define PAGE_SHIFT 12
#define WORD_BITS 64u

struct dirty_region {
    uintptr_t hva;
    uint64_t pages;
    _Atomic uint64_t *bits;
};

struct vk_dirty {
    uint32_t count;
    struct dirty_region regions[];
};

static uint64_t words_of(uint64_t pages)
{
    return (pages + WORD_BITS - 1) / WORD_BITS;
}

vk_dirty *vk_dirty_new(const struct vk_memory_region *regions, uint32_t count)
{
    vk_dirty *dirty = calloc(1, sizeof *dirty + count * sizeof dirty->regions[0]);
    if (dirty == NULL)
        return NULL;
    for (uint32_t i = 0; i < count; i++) {
        struct dirty_region *region = &dirty->regions[i];
        region->hva = (uintptr_t)regions[i].hva;
        region->pages = regions[i].size >> PAGE_SHIFT;
        region->bits = calloc(words_of(region->pages), sizeof *region->bits);
        dirty->count++;
        if (region->bits == NULL) {
            vk_dirty_free(dirty);
            return NULL;
        }
    }
    return dirty;
}

void vk_dirty_free(vk_dirty *dirty)
{
    for (uint32_t i = 0; i < dirty->count; i++)
        free((void *)dirty->regions[i].bits);
    free(dirty);
}

/* Most writes are to pages that were written before: a look is cheaper than a locked instruction. */
static void set_bit(struct dirty_region *region, uint64_t page)
{
    _Atomic uint64_t *word = &region->bits[page / WORD_BITS];
    uint64_t bit = (uint64_t)1 << page % WORD_BITS;
    atomic_thread_fence(memory_order_seq_cst); /* the write before the look */
    if ((atomic_load_explicit(word, memory_order_relaxed) & bit) == 0)
        atomic_fetch_or(word, bit);
}

void vk_dirty_mark(vk_dirty *dirty, uintptr_t hva, uint64_t size)
{
    if (size == 0)
        return;
    for (uint32_t i = 0; i < dirty->count; i++) {
        struct dirty_region *region = &dirty->regions[i];
        uintptr_t start = region->hva, end = start + (region->pages << PAGE_SHIFT);
        if (hva >= end || hva + size <= start)
            continue;
        uint64_t from = hva > start ? hva - start : 0;
        uint64_t to = (hva + size < end ? hva + size : end) - start;
        for (uint64_t page = from >> PAGE_SHIFT; page <= (to - 1) >> PAGE_SHIFT; page++)
            set_bit(region, page);
    }
}

void vk_dirty_take(vk_dirty *dirty, uint32_t region, uint64_t *bitmap)
{
    const struct dirty_region *from = &dirty->regions[region];
    for (uint64_t i = 0; i < words_of(from->pages); i++)
        if (atomic_load_explicit(&from->bits[i], memory_order_relaxed) != 0)
            bitmap[i] |= atomic_exchange(&from->bits[i], 0);
}
