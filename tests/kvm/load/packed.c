/* The packed ring: one table, in which both sides mark with wrap counters what is theirs. */
#include "virtio.h"

#define AVAIL 0x80u
#define USED 0x8000u
#define NO_INTERRUPT 1u

enum { EVENT_ALL = 0, EVENT_NONE = 1, EVENT_AT = 2 };

void packed_open(struct queue *queue, void *driver_event, void *device_event)
{
    struct packed_ring *ring = &queue->packed;
    ((volatile uint16_t *)driver_event)[1] = NO_INTERRUPT;
    ring->device_event = device_event;
    ring->entries = allocate(sizeof *ring->entries * queue->size);
    ring->avail_wrap = ring->used_wrap = true;
}

static void step(const struct queue *queue, uint16_t *at, bool *wrap, uint16_t by)
{
    *at = (uint16_t)(*at + by);
    if (*at < queue->size)
        return;
    *at = (uint16_t)(*at - queue->size);
    *wrap = !*wrap;
}

/* The first entry's flags come last: they give the whole chain to the device. */
void packed_add(struct queue *queue, uint16_t head)
{
    struct packed_ring *ring = &queue->packed;
    struct packed_desc *first = &ring->entries[ring->next_avail];
    uint16_t first_flags = 0, count = 0;
    for (uint16_t at = head;; at = queue->desc[at].next) {
        const struct desc *desc = &queue->desc[at];
        struct packed_desc *entry = &ring->entries[ring->next_avail];
        uint16_t flags = (uint16_t)(desc->flags | (ring->avail_wrap ? AVAIL : USED));
        entry->address = desc->address;
        entry->bytes = desc->bytes;
        entry->id = head;
        if (count++ == 0)
            first_flags = flags;
        else
            entry->flags = flags;
        step(queue, &ring->next_avail, &ring->avail_wrap, 1);
        if ((desc->flags & DESC_NEXT) == 0)
            break;
    }
    ring->slots[head] = count;
    ring->unpublished = (uint16_t)(ring->unpublished + count);
    __atomic_store_n(&first->flags, first_flags, __ATOMIC_RELEASE);
}

/* Whether the entry that the device wants to hear of is among the last ones. */
static bool is_passed(const struct queue *queue, uint16_t wish)
{
    const struct packed_ring *ring = &queue->packed;
    uint16_t event = wish & 0x7fff;
    if ((wish >> 15 != 0) != ring->avail_wrap)
        event = (uint16_t)(event - queue->size);
    return (uint16_t)(ring->next_avail - event - 1) < ring->unpublished;
}

/* Full barrier, as in a split ring. */
void packed_publish(struct queue *queue)
{
    struct packed_ring *ring = &queue->packed;
    if (ring->unpublished == 0)
        return;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    uint32_t event = *ring->device_event;
    uint32_t wanted = event >> 16 & 3;
    bool is_wanted = wanted == EVENT_AT ? is_passed(queue, (uint16_t)event) : wanted == EVENT_ALL;
    ring->unpublished = 0;
    if (is_wanted)
        *queue->doorbell = queue->index;
}

bool packed_take(struct queue *queue, struct used_entry *entry)
{
    struct packed_ring *ring = &queue->packed;
    struct packed_desc *used = &ring->entries[ring->next_used];
    uint16_t flags = __atomic_load_n(&used->flags, __ATOMIC_ACQUIRE);
    bool is_used = ((flags & USED) != 0) == ring->used_wrap;
    if (!is_used || ((flags & AVAIL) != 0) != ring->used_wrap)
        return false;
    entry->head = used->id;
    entry->bytes = used->bytes;
    step(queue, &ring->next_used, &ring->used_wrap, ring->slots[used->id & (QUEUE_ENTRIES - 1)]);
    return true;
}
