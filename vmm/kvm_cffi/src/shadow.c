/*
 * A range some parts of which are read out of memory that Python keeps current; every other access
 * goes to the loop. What the bytes mean, and when they change, is Python's.
 */
#include "kvm_cffi.h"

#include <stdlib.h>

struct vk_shadow {
    vk_mechanism mechanism;
    uint32_t count;
    struct vk_shadow_part parts[];
};

/* One load of the access's own width when aligned, so that Python's store is seen whole. */
uint64_t vk_load_shadow(const uint8_t *from, uint32_t size)
{
    bool is_aligned = ((uintptr_t)from & (size - 1)) == 0;
    if (size == 8 && is_aligned)
        return __atomic_load_n((const uint64_t *)from, __ATOMIC_RELAXED);
    if (size == 4 && is_aligned)
        return __atomic_load_n((const uint32_t *)from, __ATOMIC_RELAXED);
    if (size == 2 && is_aligned)
        return __atomic_load_n((const uint16_t *)from, __ATOMIC_RELAXED);
    uint64_t value = 0;
    for (uint32_t i = 0; i < size; i++)
        value |= (uint64_t)__atomic_load_n(from + i, __ATOMIC_RELAXED) << (8 * i);
    return value;
}

/* GUEST: offset and size are the guest's; a read that is not wholly in one part is for the loop. */
static bool shadow_read(vk_mechanism *self, uint64_t offset, uint32_t size, uint64_t *value)
{
    const vk_shadow *shadow = (const vk_shadow *)self;
    for (uint32_t i = 0; i < shadow->count; i++) {
        const struct vk_shadow_part *part = &shadow->parts[i];
        if (offset >= part->offset && size <= part->size &&
            offset - part->offset <= part->size - size) {
            *value = vk_load_shadow(part->bytes + (offset - part->offset), size);
            return true;
        }
    }
    return false;
}

static bool shadow_write(vk_mechanism *self, uint64_t offset, uint32_t size, uint64_t value)
{
    (void)self;
    (void)offset;
    (void)size;
    (void)value;
    return false;
}

vk_shadow *vk_shadow_new(const struct vk_shadow_part *parts, uint32_t count)
{
    static const struct vk_mechanism_ops ops = {.read = shadow_read, .write = shadow_write};
    vk_shadow *shadow = calloc(1, sizeof *shadow + count * sizeof shadow->parts[0]);
    if (shadow == NULL)
        return NULL;
    shadow->mechanism.ops = &ops;
    shadow->count = count;
    for (uint32_t i = 0; i < count; i++)
        shadow->parts[i] = parts[i];
    return shadow;
}
