/*
 * The packed ring: one ring of descriptors that the driver makes available and the device overwrites
 * when it has used them. Whose a descriptor is, its two ownership bits say, whose meaning flips each
 * time the ring wraps.
 *
 * Source: VIRTIO 1.2, section 2.8.
 */
#include "ring_walk.h"

#define DESC_AVAIL (1u << 7)
#define DESC_USED (1u << 15)
#define WRAP (1u << 15) /* in a position: the wrap counter beside an offset of 15 bits */

/* In a descriptor and in the event suppression structures. */
#define LENGTH 8
#define ID 12
#define DESC_FLAGS 14
#define EVENT_POSITION 0
#define EVENT_FLAGS 2
#define EVENT_BYTES 4

#define EVENTS_ENABLED 0
#define EVENTS_DISABLED 1
#define EVENTS_AT_POSITION 2
#define EVENT_FLAGS_MASK 3

static void load_position(vk_queue *queue, uint32_t saved, uint16_t *position, bool *wrap)
{
    *position = saved & (WRAP - 1);
    *wrap = (saved & WRAP) != 0;
    if (saved > UINT16_MAX || *position >= queue->size) {
        vk_queue_break(queue, VK_BREACH_POSITION, saved);
        *position = 0;
    }
}

void vk_packed_load(vk_queue *queue, const struct vk_queue_state *state)
{
    load_position(queue, state->next_avail, &queue->next_avail, &queue->avail_wrap);
    load_position(queue, state->next_used, &queue->next_used, &queue->used_wrap);
}

static uint8_t *descriptor_at(const vk_queue *queue, uint32_t position)
{
    return part_at(&queue->desc, DESC_BYTES * (uint64_t)position);
}

static void advance(const vk_queue *queue, uint16_t *position, bool *wrap, uint32_t slots)
{
    uint32_t next = *position + slots;
    if (next >= queue->size) {
        next -= queue->size;
        *wrap = !*wrap;
    }
    *position = (uint16_t)next;
}

/* GUEST: the flags are read once. */
static bool is_available(const vk_queue *queue, uint16_t flags)
{
    bool avail = (flags & DESC_AVAIL) != 0;
    bool used = (flags & DESC_USED) != 0;
    return avail == queue->avail_wrap && used != queue->avail_wrap;
}

/* GUEST: the table may change under the walk. Only the direction of its entries means something. */
static inline int walk_table(struct walk *walk, uint64_t gpa, uint32_t bytes)
{
    const uint8_t *table = vk_find_table(walk->queue, gpa, bytes);
    if (table == NULL)
        return -EPROTO;
    for (uint32_t at = 0; at < bytes; at += DESC_BYTES) {
        struct descriptor entry = read_descriptor(table + at);
        if (vk_walk_add(walk, entry.address, entry.length, (entry.second & DESC_WRITE) != 0) < 0)
            return -EPROTO;
    }
    return 0;
}

/*
 * GUEST: the ring may change under the walk. A list may only cover slots that hold no list in flight,
 * which ends every loop; the buffer id is that of its last descriptor. `flags` are the first
 * descriptor's, which are not read again.
 */
static inline int walk_list(struct walk *walk, uint16_t flags)
{
    vk_queue *queue = walk->queue;
    uint32_t at = queue->next_avail;
    uint32_t slots = 0;
    struct descriptor descriptor = read_descriptor(descriptor_at(queue, at));
    for (;;) {
        slots++;
        if (queue->slots_in_flight + slots > queue->size)
            return vk_queue_break(queue, VK_BREACH_OVERRUN, queue->slots_in_flight + slots);
        if ((flags & DESC_INDIRECT) != 0) {
            if (slots != 1 || (flags & DESC_NEXT) != 0)
                return vk_queue_break(queue, VK_BREACH_INDIRECT_CHAINED, descriptor.address);
            if (walk_table(walk, descriptor.address, descriptor.length) < 0)
                return -EPROTO;
            break;
        }
        if (vk_walk_add(walk, descriptor.address, descriptor.length, (flags & DESC_WRITE) != 0) < 0)
            return -EPROTO;
        if ((flags & DESC_NEXT) == 0)
            break;
        at = at + 1 == queue->size ? 0 : at + 1;
        descriptor = read_descriptor(descriptor_at(queue, at));
        flags = descriptor.second;
    }
    vk_walk_finish(walk, descriptor.first, (uint16_t)slots);
    return 0;
}

/*
 * GUEST: the first descriptor's flags decide that there is a list. Acquire: the rest of that descriptor,
 * and those after it, are read after the flags.
 */
int vk_packed_pop(vk_queue *queue, vk_chain *chain)
{
    uint16_t flags = load_16_acquire(descriptor_at(queue, queue->next_avail) + DESC_FLAGS);
    if (!is_available(queue, flags))
        return 0;
    struct walk walk = {.queue = queue, .chain = chain};
    if (walk_list(&walk, flags) < 0)
        return -EPROTO;
    if (queue->in_flight[chain->head].slots != 0)
        return vk_queue_break(queue, VK_BREACH_HEAD_IN_FLIGHT, chain->head);
    advance(queue, &queue->next_avail, &queue->avail_wrap, chain->slots);
    return 1;
}

void vk_packed_unpop(vk_queue *queue, uint16_t slots)
{
    if (queue->next_avail < slots) {
        queue->next_avail = (uint16_t)(queue->next_avail + queue->size);
        queue->avail_wrap = !queue->avail_wrap;
    }
    queue->next_avail = (uint16_t)(queue->next_avail - slots);
}

/* Release: id and length, and all that the device wrote to the buffer, are visible before the flags. */
void vk_packed_push(vk_queue *queue, uint16_t head, uint32_t written, uint16_t slots)
{
    uint8_t *at = descriptor_at(queue, queue->next_used);
    uint16_t flags = queue->used_wrap ? DESC_AVAIL | DESC_USED : 0;
    if (written != 0)
        flags |= DESC_WRITE;
    memcpy(at + LENGTH, &written, sizeof written);
    memcpy(at + ID, &head, sizeof head);
    store_16_release(at + DESC_FLAGS, flags);
    vk_memory_wrote(queue->memory, at, DESC_BYTES);
    advance(queue, &queue->next_used, &queue->used_wrap, slots);
}

bool vk_packed_poll(vk_queue *queue)
{
    return is_available(queue, load_16(descriptor_at(queue, queue->next_avail) + DESC_FLAGS));
}

/*
 * GUEST: the driver's wish is read once, the flags before the position that they make valid. The
 * position may be nonsense; the answer is then a useless interrupt or none, which is the guest's loss.
 *
 * An event position with the device's own wrap counter lies in this lap, else in the one before. It has
 * just been filled if it is among the last `unsignalled` slots.
 */
bool vk_packed_needs_interrupt(const vk_queue *queue, uint32_t unsignalled)
{
    uint16_t flags = load_16_acquire(part_at(&queue->driver, EVENT_FLAGS)) & EVENT_FLAGS_MASK;
    if (flags == EVENTS_DISABLED)
        return false;
    if (flags != EVENTS_AT_POSITION || !vk_queue_has(queue, VK_QUEUE_EVENT_IDX))
        return true;
    if (unsignalled > queue->size)
        return true;
    uint16_t event = load_16(part_at(&queue->driver, EVENT_POSITION));
    int64_t distance = (int64_t)queue->next_used - (event & (WRAP - 1));
    if (((event & WRAP) != 0) != queue->used_wrap)
        distance += queue->size;
    return distance > 0 && distance <= unsignalled;
}

static void tell(const vk_queue *queue, uint16_t flags)
{
    uint8_t *event = part_at(&queue->device, 0);
    store_16_release(event + EVENT_FLAGS, flags);
    vk_memory_wrote(queue->memory, event, EVENT_BYTES);
}

void vk_packed_suppress(vk_queue *queue)
{
    tell(queue, EVENTS_DISABLED);
}

/* Release: the driver sees the position before the flags that make it valid. */
void vk_packed_enable(vk_queue *queue)
{
    if (!vk_queue_has(queue, VK_QUEUE_EVENT_IDX)) {
        tell(queue, EVENTS_ENABLED);
        return;
    }
    store_16(part_at(&queue->device, EVENT_POSITION),
             queue->next_avail | (queue->avail_wrap ? WRAP : 0));
    tell(queue, EVENTS_AT_POSITION);
}
