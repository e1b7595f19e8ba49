/*
 * The router: which mechanism answers on which port and at which guest-physical address.
 *
 * vCPU threads look up without a lock while one other thread changes the tables. A change publishes
 * a new pointer, then waits until every reader that may have seen the old one has left its look-up
 * (readers' epochs are odd inside). After that the old table and the mechanism it named may be freed.
 * The wait is short: nothing inside a look-up blocks on Python; going to the loop happens outside.
 */
#include "kvm_cffi.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#define PORTS 65536u

struct binding {
    uint64_t base;
    uint64_t size;
    vk_mechanism *mechanism;
};

/* The memory ranges, ascending and disjoint; never changed once published. */
struct range_table {
    size_t count;
    struct binding ranges[];
};

struct vk_router {
    struct binding *_Atomic *ports;
    struct range_table *_Atomic mmio;
    pthread_mutex_t readers_lock;
    struct vk_reader *readers;
};

vk_router *vk_router_new(void)
{
    vk_router *router = calloc(1, sizeof *router);
    if (router == NULL)
        return NULL;
    /* 512 KiB of addresses, but only pages with a claimed port ever become memory. */
    router->ports = calloc(PORTS, sizeof *router->ports);
    struct range_table *empty = calloc(1, sizeof *empty);
    if (router->ports == NULL || empty == NULL) {
        free(router->ports);
        free(empty);
        free(router);
        return NULL;
    }
    atomic_init(&router->mmio, empty);
    pthread_mutex_init(&router->readers_lock, NULL);
    return router;
}

/* No reader is left when this is called. Downwards: a binding is freed at its lowest port, seen last. */
void vk_router_free(vk_router *router)
{
    for (uint32_t port = PORTS; port-- > 0;) {
        struct binding *binding = atomic_load_explicit(&router->ports[port], memory_order_relaxed);
        if (binding != NULL && binding->base == port)
            free(binding);
    }
    free(router->ports);
    free(atomic_load(&router->mmio));
    pthread_mutex_destroy(&router->readers_lock);
    free(router);
}

void vk_router_add_reader(vk_router *router, struct vk_reader *reader)
{
    pthread_mutex_lock(&router->readers_lock);
    reader->next = router->readers;
    router->readers = reader;
    pthread_mutex_unlock(&router->readers_lock);
}

void vk_router_remove_reader(vk_router *router, struct vk_reader *reader)
{
    pthread_mutex_lock(&router->readers_lock);
    struct vk_reader **at = &router->readers;
    while (*at != NULL && *at != reader)
        at = &(*at)->next;
    if (*at != NULL)
        *at = reader->next;
    pthread_mutex_unlock(&router->readers_lock);
}

/*
 * A reader stores its odd epoch before it loads a table pointer; the changer stores the pointer
 * before it loads the epoch. Both are sequentially consistent, so either the reader sees the new
 * pointer or the changer sees the odd epoch and waits for it to move on.
 */
static void wait_for_readers(vk_router *router)
{
    pthread_mutex_lock(&router->readers_lock);
    for (struct vk_reader *reader = router->readers; reader != NULL; reader = reader->next) {
        uint64_t epoch = atomic_load(&reader->epoch);
        while ((epoch & 1) != 0 && atomic_load(&reader->epoch) == epoch)
            sched_yield();
    }
    pthread_mutex_unlock(&router->readers_lock);
}

int vk_router_map_pio(vk_router *router, uint64_t base, uint64_t size, vk_mechanism *mechanism)
{
    if (size == 0 || base >= PORTS || size > PORTS - base)
        return -ERANGE;
    for (uint64_t port = base; port < base + size; port++)
        if (atomic_load(&router->ports[port]) != NULL)
            return -EEXIST;
    struct binding *binding = malloc(sizeof *binding);
    if (binding == NULL)
        return -ENOMEM;
    *binding = (struct binding){.base = base, .size = size, .mechanism = mechanism};
    for (uint64_t port = base; port < base + size; port++)
        atomic_store(&router->ports[port], binding);
    return 0;
}

int vk_router_unmap_pio(vk_router *router, uint64_t base, uint64_t size)
{
    struct binding *binding = base < PORTS ? atomic_load(&router->ports[base]) : NULL;
    if (binding == NULL || binding->base != base || binding->size != size)
        return -ENOENT;
    for (uint64_t port = base; port < base + size; port++)
        atomic_store(&router->ports[port], NULL);
    wait_for_readers(router);
    free(binding);
    return 0;
}

/* Where a range that begins at `base` is or belongs: the first whose base is not below it. */
static size_t lower_bound(const struct range_table *table, uint64_t base)
{
    size_t low = 0, high = table->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (table->ranges[middle].base < base)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void publish(vk_router *router, struct range_table *table)
{
    struct range_table *old = atomic_exchange(&router->mmio, table);
    wait_for_readers(router);
    free(old);
}

int vk_router_map_mmio(vk_router *router, uint64_t base, uint64_t size, vk_mechanism *mechanism)
{
    struct range_table *old = atomic_load(&router->mmio);
    if (size == 0 || size - 1 > UINT64_MAX - base)
        return -ERANGE;
    size_t at = lower_bound(old, base);
    if (at < old->count && old->ranges[at].base - base < size)
        return -EEXIST;
    if (at > 0 && base - old->ranges[at - 1].base < old->ranges[at - 1].size)
        return -EEXIST;
    struct range_table *table = malloc(sizeof *table + (old->count + 1) * sizeof table->ranges[0]);
    if (table == NULL)
        return -ENOMEM;
    table->count = old->count + 1;
    memcpy(table->ranges, old->ranges, at * sizeof table->ranges[0]);
    table->ranges[at] = (struct binding){.base = base, .size = size, .mechanism = mechanism};
    memcpy(table->ranges + at + 1, old->ranges + at, (old->count - at) * sizeof table->ranges[0]);
    publish(router, table);
    return 0;
}

int vk_router_unmap_mmio(vk_router *router, uint64_t base, uint64_t size)
{
    struct range_table *old = atomic_load(&router->mmio);
    size_t at = lower_bound(old, base);
    if (at == old->count || old->ranges[at].base != base || old->ranges[at].size != size)
        return -ENOENT;
    struct range_table *table = malloc(sizeof *table + (old->count - 1) * sizeof table->ranges[0]);
    if (table == NULL)
        return -ENOMEM;
    table->count = old->count - 1;
    memcpy(table->ranges, old->ranges, at * sizeof table->ranges[0]);
    memcpy(table->ranges + at, old->ranges + at + 1, (table->count - at) * sizeof table->ranges[0]);
    publish(router, table);
    return 0;
}

static const struct binding *find(vk_router *router, enum vk_space space, uint64_t address)
{
    if (space == VK_SPACE_PIO)
        return atomic_load(&router->ports[address & (PORTS - 1)]);
    const struct range_table *table = atomic_load(&router->mmio);
    size_t at = lower_bound(table, address);
    if (at < table->count && table->ranges[at].base == address)
        return &table->ranges[at];
    if (at > 0 && address - table->ranges[at - 1].base < table->ranges[at - 1].size)
        return &table->ranges[at - 1];
    return NULL;
}

/* GUEST: address, size and value are the guest's. Its access belongs to where its first byte lies. */
enum vk_verdict vk_router_access(vk_router *router, struct vk_reader *reader, enum vk_space space,
                                 uint64_t address, uint32_t size, bool is_write, uint64_t *value)
{
    uint64_t epoch = atomic_load_explicit(&reader->epoch, memory_order_relaxed);
    atomic_store(&reader->epoch, epoch + 1);
    const struct binding *binding = find(router, space, address);
    enum vk_verdict verdict = VK_UNCLAIMED;
    if (binding != NULL) {
        vk_mechanism *mechanism = binding->mechanism;
        uint64_t offset = address - binding->base;
        bool answered = is_write ? mechanism->ops->write(mechanism, offset, size, *value)
                                 : mechanism->ops->read(mechanism, offset, size, value);
        verdict = answered ? VK_ANSWERED : VK_FOR_LOOP;
    } else if (!is_write) {
        *value = UINT64_MAX;
    }
    atomic_store_explicit(&reader->epoch, epoch + 2, memory_order_release);
    return verdict;
}
