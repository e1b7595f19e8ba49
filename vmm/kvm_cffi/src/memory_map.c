/* Building the table of guest RAM. */
#include "memory_map.h"

#include <stdlib.h>

/* The regions are ascending, disjoint, not empty, and end below 2^64: the caller has seen to that. */
vk_memory *vk_memory_new(const struct vk_memory_region *regions, uint32_t count)
{
    vk_memory *memory = malloc(sizeof *memory + count * sizeof memory->runs[0]);
    if (memory == NULL)
        return NULL;
    memory->count = 0;
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

void vk_memory_free(vk_memory *memory)
{
    free(memory);
}

/* GUEST: a range that leaves its run, or wraps, has no address. */
void *vk_memory_translate(const vk_memory *memory, uint64_t gpa, uint64_t size)
{
    uint8_t *hva;
    if (size == 0)
        return NULL;
    return vk_memory_leading(memory, gpa, size, &hva) == size ? hva : NULL;
}
