/* What both ring formats share: reading guest memory once, descriptors, building chains, breaches. */
#ifndef RING_WALK_H
#define RING_WALK_H

#include "virtqueue.h"

#include <errno.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rings are little-endian, and so is the host");

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

/*
 * GUEST: the sixteen bytes may change while and after they are read. They are read into a copy, and the
 * compiler must not go back to the original: the barrier ends every assumption that it still holds.
 */
static inline struct descriptor read_descriptor(const uint8_t *at)
{
    struct descriptor descriptor;
    memcpy(&descriptor, at, sizeof descriptor);
    __asm__ volatile("" ::: "memory");
    return descriptor;
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

/* Remembers the first breach; gives -EPROTO, to be returned. */
int vk_queue_break(vk_queue *queue, enum vk_breach breach, uint64_t value);

static inline void vk_chain_clear(vk_chain *chain)
{
    chain->readable = 0;
    chain->writable = 0;
    chain->readable_bytes = 0;
    chain->writable_bytes = 0;
}

/* A chain while it is built. */
struct walk {
    vk_queue *queue;
    vk_chain *chain;
    uint32_t descriptors;
    bool in_writable;
};

/* Adds what one descriptor describes; 0 or -EPROTO. It counts, so every walk comes to an end. */
int vk_walk_add(struct walk *walk, uint64_t gpa, uint32_t length, bool is_writable);

/* Finds an indirect table: 0 with its place and entries, or -EPROTO. */
int vk_walk_table(struct walk *walk, uint64_t gpa, uint32_t bytes, uint8_t **table,
                  uint32_t *entries);

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
