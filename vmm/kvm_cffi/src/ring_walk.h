/* What both ring formats share: reading guest memory once, descriptors, building chains, breaches. */
#ifndef RING_WALK_H
#define RING_WALK_H

#include "virtqueue.h"

#include <errno.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rings are little-endian");

#define DESC_NEXT 0x1
#define DESC_WRITE 0x2
#define DESC_INDIRECT 0x4
#define DESC_BYTES 16

/* Both formats begin alike; the last four bytes differ in meaning. */
struct descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t first;  /* split: flags; packed: buffer id */
    uint16_t second; /* split: next;  packed: flags */
};

/* Tables of the driver's own may lie at any address. */
struct raw_descriptor {
    uint64_t low;
    uint64_t high;
} __attribute__((packed, may_alias));

/*
 * GUEST: the sixteen bytes may change while and after they are read. Volatile: each half is loaded
 * once, and the compiler may not go back to it.
 */
static inline struct descriptor read_descriptor(const uint8_t *at)
{
    const volatile struct raw_descriptor *raw = (const volatile void *)at;
    uint64_t low = raw->low, high = raw->high;
    return (struct descriptor){
        .address = low,
        .length = (uint32_t)high,
        .first = (uint16_t)(high >> 32),
        .second = (uint16_t)(high >> 48),
    };
}

/* GUEST: 16-bit fields that the driver writes meanwhile. The ring's parts are aligned. */
static inline uint16_t load_16(const uint8_t *at)
{
    return __atomic_load_n((const uint16_t *)(const void *)at, __ATOMIC_RELAXED);
}

static inline uint16_t load_16_acquire(const uint8_t *at)
{
    return __atomic_load_n((const uint16_t *)(const void *)at, __ATOMIC_ACQUIRE);
}

static inline void store_16(uint8_t *at, uint16_t value)
{
    __atomic_store_n((uint16_t *)(void *)at, value, __ATOMIC_RELAXED);
}

static inline void store_16_release(uint8_t *at, uint16_t value)
{
    __atomic_store_n((uint16_t *)(void *)at, value, __ATOMIC_RELEASE);
}

static inline bool vk_queue_has(const vk_queue *queue, enum vk_queue_feature feature)
{
    return (queue->features & feature) != 0;
}

static inline uint8_t *part_at(const struct vk_part *part, uint64_t offset)
{
    if (__builtin_expect(part->flat != NULL, 1))
        return part->flat + offset;
    offset += part->address % VK_PAGE;
    return part->pages[offset / VK_PAGE] + offset % VK_PAGE;
}

/* Remembers the first breach; gives -EPROTO, to be returned. */
__attribute__((cold)) int vk_queue_break(vk_queue *queue, enum vk_breach breach, uint64_t value);

/*
 * How many bytes from an address of the device's on lie together in this process, and where; 0: it has
 * no such access to the first of them. Size is not 0.
 *
 * GUEST: both numbers may be anything.
 */
static inline uint64_t vk_queue_leading(vk_queue *queue, uint64_t address, uint64_t size,
                                        enum vk_access access, uint8_t **hva)
{
    if (queue->endpoint != NULL) {
        uint64_t from = address;
        size = vk_endpoint_translate(queue->endpoint, &address, size, access);
        if (size == 0) {
            vk_queue_break(queue, VK_BREACH_TRANSLATION, from);
            return 0;
        }
    }
    return vk_memory_leading(queue->memory, address, size, hva);
}

/* A chain while it is built; what changes with every descriptor is kept here, in registers. */
struct walk {
    vk_queue *queue;
    vk_chain *chain;
    uint32_t descriptors;
    uint32_t pieces;
    uint32_t lookups; /* in the IOMMU's mappings */
    uint32_t readable; /* pieces before the first writable one */
    uint32_t bytes;
    uint32_t readable_bytes;
    bool in_writable;
};

/* The pieces of one buffer of a device behind the IOMMU: 0 or -EPROTO. GUEST: as below. */
int vk_walk_add_translated(struct walk *walk, uint64_t address, uint64_t length, bool is_writable);

/*
 * Adds what one descriptor describes; 0 or -EPROTO. It counts, so every walk comes to an end.
 *
 * GUEST: address and length are the driver's, as they were copied; they are not read again. A buffer
 * without bytes has no address to check and adds nothing, but its direction counts.
 */
static inline int vk_walk_add(struct walk *walk, uint64_t gpa, uint32_t length, bool is_writable)
{
    if (walk->descriptors++ == VK_CHAIN_MAX)
        return vk_queue_break(walk->queue, VK_BREACH_CHAIN_LENGTH, VK_CHAIN_MAX);
    if (is_writable && !walk->in_writable) {
        walk->in_writable = true;
        walk->readable = walk->pieces;
        walk->readable_bytes = walk->bytes;
    } else if (walk->in_writable && !is_writable) {
        return vk_queue_break(walk->queue, VK_BREACH_ORDER, gpa);
    }
    if (length > UINT32_MAX - walk->bytes)
        return vk_queue_break(walk->queue, VK_BREACH_CHAIN_BYTES, (uint64_t)walk->bytes + length);
    walk->bytes += length;
    if (__builtin_expect(walk->queue->endpoint != NULL, 0))
        return vk_walk_add_translated(walk, gpa, length, is_writable);
    for (uint64_t left = length; left != 0;) {
        uint8_t *hva;
        uint64_t run = vk_memory_leading(walk->queue->memory, gpa, left, &hva);
        if (run == 0)
            return vk_queue_break(walk->queue, VK_BREACH_ADDRESS, gpa);
        if (walk->pieces == VK_CHAIN_MAX)
            return vk_queue_break(walk->queue, VK_BREACH_CHAIN_LENGTH, VK_CHAIN_MAX);
        walk->chain->iov[walk->pieces++] = (struct iovec){.iov_base = hva, .iov_len = run};
        gpa += run;
        left -= run;
    }
    return 0;
}

static inline void vk_walk_finish(const struct walk *walk, uint16_t head, uint16_t slots)
{
    uint32_t readable = walk->in_writable ? walk->readable : walk->pieces;
    uint32_t readable_bytes = walk->in_writable ? walk->readable_bytes : walk->bytes;
    walk->chain->memory = walk->queue->memory;
    walk->chain->head = head;
    walk->chain->slots = slots;
    walk->chain->readable = (uint16_t)readable;
    walk->chain->writable = (uint16_t)(walk->pieces - readable);
    walk->chain->readable_bytes = readable_bytes;
    walk->chain->writable_bytes = walk->bytes - readable_bytes;
}

/* Finds an indirect table: NULL when the queue is broken by it. */
const uint8_t *vk_find_table(vk_queue *queue, uint64_t gpa, uint32_t bytes);

/* The two formats. */
void vk_split_load(vk_queue *queue, const struct vk_queue_state *state);
int vk_split_pop(vk_queue *queue, vk_chain *chain);
void vk_split_unpop(vk_queue *queue, uint16_t slots);
void vk_split_push(vk_queue *queue, uint16_t head, uint32_t written, uint16_t slots);
bool vk_split_poll(vk_queue *queue);
bool vk_split_needs_interrupt(const vk_queue *queue, uint32_t unsignalled);
void vk_split_suppress(vk_queue *queue);
void vk_split_enable(vk_queue *queue);

void vk_packed_load(vk_queue *queue, const struct vk_queue_state *state);
int vk_packed_pop(vk_queue *queue, vk_chain *chain);
void vk_packed_unpop(vk_queue *queue, uint16_t slots);
void vk_packed_push(vk_queue *queue, uint16_t head, uint32_t written, uint16_t slots);
bool vk_packed_poll(vk_queue *queue);
bool vk_packed_needs_interrupt(const vk_queue *queue, uint32_t unsignalled);
void vk_packed_suppress(vk_queue *queue);
void vk_packed_enable(vk_queue *queue);

#endif
