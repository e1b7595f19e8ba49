/* The mechanisms that hold nothing but a number: constant answers and the way to the loop. */
#include "kvm_cffi.h"

#include <stdlib.h>
#include <unistd.h>

void vk_signal(int fd)
{
    const uint64_t one = 1;
    if (fd >= 0 && write(fd, &one, sizeof one) < 0) {
        /* EAGAIN: the counter is at its limit, so the reader is already being woken. */
    }
}

int vk_mechanism_read(vk_mechanism *mechanism, uint64_t offset, uint32_t size, uint64_t *value)
{
    return mechanism->ops->read(mechanism, offset, size, value);
}

int vk_mechanism_write(vk_mechanism *mechanism, uint64_t offset, uint32_t size, uint64_t value)
{
    return mechanism->ops->write(mechanism, offset, size, value);
}

/* For mechanisms that are one block of memory; the others have their own. */
void vk_mechanism_free(void *mechanism)
{
    free(mechanism);
}

struct constant {
    vk_mechanism mechanism;
    uint64_t value;
};

static bool constant_read(vk_mechanism *self, uint64_t offset, uint32_t size, uint64_t *value)
{
    (void)offset;
    (void)size;
    *value = ((struct constant *)self)->value;
    return true;
}

static bool constant_write(vk_mechanism *self, uint64_t offset, uint32_t size, uint64_t value)
{
    (void)self;
    (void)offset;
    (void)size;
    (void)value;
    return true;
}

vk_mechanism *vk_constant_new(uint64_t value)
{
    static const struct vk_mechanism_ops ops = {.read = constant_read, .write = constant_write};
    struct constant *constant = calloc(1, sizeof *constant);
    if (constant == NULL)
        return NULL;
    constant->mechanism.ops = &ops;
    constant->value = value;
    return &constant->mechanism;
}

static bool loop_read(vk_mechanism *self, uint64_t offset, uint32_t size, uint64_t *value)
{
    (void)self;
    (void)offset;
    (void)size;
    (void)value;
    return false;
}

static bool loop_write(vk_mechanism *self, uint64_t offset, uint32_t size, uint64_t value)
{
    (void)self;
    (void)offset;
    (void)size;
    (void)value;
    return false;
}

vk_mechanism *vk_loop_new(void)
{
    static const struct vk_mechanism_ops ops = {.read = loop_read, .write = loop_write};
    vk_mechanism *loop = calloc(1, sizeof *loop);
    if (loop != NULL)
        loop->ops = &ops;
    return loop;
}
