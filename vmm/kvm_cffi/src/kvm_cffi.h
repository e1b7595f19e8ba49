/* Declarations shared by the C sources: the mechanism's shape, the router's readers, small helpers. */
#ifndef KVM_CFFI_H
#define KVM_CFFI_H

#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ram_api.h"
#include "translation_api.h"
/* It names types of these. */
#include "api.h"
#include "content_api.h"

/*
 * `offset` is the distance from the start of the range and `size` is 1, 2, 4 or 8 bytes. Both are the
 * guest's choice, and offset + size may lie beyond the range. Values are little-endian; bytes above
 * `size` are ignored. Several vCPUs may call at once. False means: not here, ask the loop.
 */
struct vk_mechanism_ops {
    bool (*read)(vk_mechanism *self, uint64_t offset, uint32_t size, uint64_t *value);
    bool (*write)(vk_mechanism *self, uint64_t offset, uint32_t size, uint64_t value);
};

struct vk_mechanism {
    const struct vk_mechanism_ops *ops;
};

/* One thread that looks things up in the router; odd while it is inside a look-up. */
struct vk_reader {
    _Atomic uint64_t epoch;
    struct vk_reader *next;
};

enum vk_space { VK_SPACE_PIO, VK_SPACE_MMIO };

enum vk_verdict { VK_ANSWERED, VK_UNCLAIMED, VK_FOR_LOOP };

void vk_router_add_reader(vk_router *router, struct vk_reader *reader);
void vk_router_remove_reader(vk_router *router, struct vk_reader *reader);
enum vk_verdict vk_router_access(vk_router *router, struct vk_reader *reader, enum vk_space space,
                                 uint64_t address, uint32_t size, bool is_write, uint64_t *value);

/* Reads 1, 2, 4 or 8 bytes that Python may be changing, as a little-endian number. */
uint64_t vk_load_shadow(const uint8_t *from, uint32_t size);

/* Adds one to an eventfd. It can only fail when the counter is full, and then it is readable anyway. */
void vk_signal(int fd);

#endif
