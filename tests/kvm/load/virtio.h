/*
 * The driver's side of virtio over PCI: a device brought up, and split or packed rings that are polled.
 *
 * The driver wants no interrupt, ever, and says so; it rings a doorbell only when the device asks for
 * that. Chains lie in the table `desc` in either case; a packed ring gets copies of them.
 * Source: Virtual I/O Device (VIRTIO) 1.2, sections 2.7, 2.8, 3.1 and 4.1.
 */
#ifndef VIRTIO_H
#define VIRTIO_H

#include "machine.h"

#define QUEUE_ENTRIES 256u
#define DESC_NEXT 1u
#define DESC_WRITE 2u

enum device_type { DEVICE_NET = 1, DEVICE_BLOCK = 2, DEVICE_CONSOLE = 3 };

struct desc {
    uint64_t address;
    uint32_t bytes;
    uint16_t flags;
    uint16_t next;
};

struct used_entry {
    uint32_t head;
    uint32_t bytes;
};

struct packed_desc {
    uint64_t address;
    uint32_t bytes;
    uint16_t id;
    uint16_t flags;
};

struct packed_ring {
    struct packed_desc *entries; /* NULL: the ring is a split one */
    volatile uint32_t *device_event;
    uint16_t next_avail;
    uint16_t next_used;
    bool avail_wrap;
    bool used_wrap;
    uint16_t unpublished;          /* entries */
    uint16_t slots[QUEUE_ENTRIES]; /* by head: entries of the chain */
};

struct queue {
    struct desc *desc;
    struct packed_ring packed;
    volatile uint16_t *avail; /* flags, index, heads, used_event */
    volatile uint16_t *used;  /* flags, index, then entries */
    volatile struct used_entry *entries;
    volatile uint16_t *avail_event;
    volatile uint16_t *doorbell;
    uint16_t index;
    uint16_t size;
    bool has_events;
    uint16_t added;     /* heads, since the beginning */
    uint16_t published; /* of them, told the device */
    uint16_t taken;     /* used entries */
};

struct device {
    uint32_t slot;
    volatile uint8_t *common;
    volatile uint8_t *notify;
    volatile uint8_t *config;
    uint32_t notify_multiplier;
    bool has_events;
    bool is_packed;
};

/* Has the devices that are opened from now on use packed rings. */
void use_packed_rings(void);

/* Finds the first device of a type and negotiates VERSION_1 and, where offered, EVENT_IDX. */
void device_open(struct device *device, enum device_type type);

/* Makes a queue of up to QUEUE_ENTRIES; its size is a power of two. */
void queue_open(const struct device *device, uint16_t index, struct queue *queue);

/* Tells the device that all is ready. */
void device_start(const struct device *device);

/* The same as the three below; packed.c has them. */
void packed_open(struct queue *queue, void *driver_event, void *device_event);
void packed_add(struct queue *queue, uint16_t head);
void packed_publish(struct queue *queue);
bool packed_take(struct queue *queue, struct used_entry *entry);

/* Puts a chain in line. The device hears of it by queue_publish. */
static inline void queue_add(struct queue *queue, uint16_t head)
{
    if (queue->packed.entries != NULL)
        packed_add(queue, head);
    else
        queue->avail[2 + (queue->added++ & (queue->size - 1))] = head;
}

/* Full barrier: the index is visible before the device's wish is read, for it does the reverse. */
static inline void queue_publish(struct queue *queue)
{
    uint16_t before = queue->published;
    if (queue->packed.entries != NULL)
        packed_publish(queue);
    if (queue->added == before)
        return;
    __atomic_store_n(&queue->avail[1], queue->added, __ATOMIC_RELEASE);
    queue->published = queue->added;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    bool is_wanted = queue->has_events ? (uint16_t)(queue->added - *queue->avail_event - 1) <
                                             (uint16_t)(queue->added - before)
                                       : (queue->used[0] & 1) == 0;
    if (is_wanted)
        *queue->doorbell = queue->index;
}

/* Takes one used entry, if there is one. The event index is kept far ahead: no interrupt. */
static inline bool queue_take(struct queue *queue, struct used_entry *entry)
{
    if (queue->packed.entries != NULL)
        return packed_take(queue, entry);
    if (__atomic_load_n(&queue->used[1], __ATOMIC_ACQUIRE) == queue->taken)
        return false;
    uint16_t at = queue->taken++ & (queue->size - 1);
    entry->head = queue->entries[at].head;
    entry->bytes = queue->entries[at].bytes;
    queue->avail[2 + queue->size] = (uint16_t)(queue->taken + 0x8000u);
    return true;
}

#endif
