/* Building the table of guest RAM. */
#include "memory_map.h"

#include <errno.h>
#include <stdlib.h>

/*
 * The regions are ascending, disjoint, not empty, and end below 2^64: the caller has seen to that.
 * `spare` regions may be added later.
 */
vk_memory *vk_memory_new(const struct vk_memory_region *regions, uint32_t count, uint32_t spare)
{
    vk_memory *memory = malloc(sizeof *memory + ((size_t)count + spare) * sizeof memory->runs[0]);
    if (memory == NULL)
        return NULL;
    memory->count = 0;
    memory->room = count + spare;
    atomic_init(&memory->dirty, NULL);
    for (uint32_t i = 0; i < count; i++) {
        const struct vk_memory_region *next = &regions[i];
        uint8_t *hva = (uint8_t *)(uintptr_t)next->hva;
        struct vk_memory_run *last = &memory->runs[memory->count];
        if (memory->count != 0 && last[-1].gpa + last[-1].size == next->gpa &&
            last[-1].hva + last[-1].size == hva)
            last[-1].size += next->size;
        else
            memory->runs[memory->count++] =
                (struct vk_memory_run){.gpa = next->gpa, .size = next->size, .hva = hva};
    }
    return memory;
}

/* The region begins at or after the end of all others: the caller has seen to that. */
int vk_memory_add(vk_memory *memory, const struct vk_memory_region *region)
{
    uint32_t count = memory->count;
    if (count == memory->room)
        return -ENOSPC;
    memory->runs[count] = (struct vk_memory_run){
        .gpa = region->gpa, .size = region->size, .hva = (uint8_t *)(uintptr_t)region->hva};
    __atomic_store_n(&memory->count, count + 1, __ATOMIC_RELEASE);
    return 0;
}

void vk_memory_free(vk_memory *memory)
{
    free(memory);
}

void vk_memory_record(vk_memory *memory, vk_dirty *dirty)
{
    atomic_store(&memory->dirty, dirty);
}

void vk_memory_wrote_at(const vk_memory *memory, uint64_t hva, uint64_t size)
{
    vk_memory_wrote(memory, (const void *)(uintptr_t)hva, size);
}

/* GUEST: a range that leaves its run, or wraps, has no address. */
void *vk_memory_translate(const vk_memory *memory, uint64_t gpa, uint64_t size)
{
    uint8_t *hva;
    if (size == 0)
        return NULL;
    return vk_memory_leading(memory, gpa, size, &hva) == size ? hva : NULL;
}
