/*
 * The split ring: a table of descriptors, a ring of heads that the driver makes available, and a ring
 * of heads that the device has used. Both rings' indexes run freely through 16 bits.
 *
 * Source: VIRTIO 1.2, section 2.7.
 */
#include "ring_walk.h"

#define AVAIL_NO_INTERRUPT 0x1
#define USED_NO_NOTIFY 0x1

/* Both rings: flags, index, then the entries, then the other side's event index. */
#define FLAGS 0
#define INDEX 2
#define ENTRIES 4

struct used_entry {
    uint32_t head;
    uint32_t written;
};

static uint32_t slot(const vk_queue *queue, uint16_t position)
{
    return position & (queue->size - 1u); /* the size is a power of two */
}

static uint8_t *used_event(const vk_queue *queue)
{
    return part_at(&queue->driver, ENTRIES + 2 * (uint64_t)queue->size);
}

static uint8_t *avail_event(const vk_queue *queue)
{
    return part_at(&queue->device, ENTRIES + sizeof(struct used_entry) * queue->size);
}

void vk_split_load(vk_queue *queue, const struct vk_queue_state *state)
{
    if (state->next_avail > UINT16_MAX)
        vk_queue_break(queue, VK_BREACH_POSITION, state->next_avail);
    if (state->next_used > UINT16_MAX)
        vk_queue_break(queue, VK_BREACH_POSITION, state->next_used);
    queue->next_avail = (uint16_t)state->next_avail;
    queue->next_used = (uint16_t)state->next_used;
    queue->avail_seen = queue->next_avail;
}

/*
 * GUEST: the table, or any indirect table, may change under the walk. Each descriptor is copied once,
 * and vk_walk_add counts, so a loop made at any moment is left after VK_CHAIN_MAX steps.
 */
static inline int walk_chain(struct walk *walk, uint16_t head)
{
    const struct vk_part *table = &walk->queue->desc;
    struct vk_part indirect = {.flat = NULL};
    uint32_t entries = walk->queue->size;
    bool is_indirect = false;
    uint32_t at = head;
    for (;;) {
        if (at >= entries)
            return vk_queue_break(walk->queue, VK_BREACH_NEXT, at);
        struct descriptor descriptor = read_descriptor(part_at(table, DESC_BYTES * (uint64_t)at));
        uint16_t flags = descriptor.first;
        if ((flags & DESC_INDIRECT) != 0) {
            if (is_indirect)
                return vk_queue_break(walk->queue, VK_BREACH_INDIRECT_NESTED, descriptor.address);
            if ((flags & DESC_NEXT) != 0)
                return vk_queue_break(walk->queue, VK_BREACH_INDIRECT_CHAINED, descriptor.address);
            const uint8_t *found =
                vk_find_table(walk->queue, descriptor.address, descriptor.length);
            if (found == NULL)
                return -EPROTO;
            indirect.flat = (uint8_t *)(uintptr_t)found;
            table = &indirect;
            entries = descriptor.length / DESC_BYTES;
            is_indirect = true;
            at = 0;
            continue;
        }
        if (vk_walk_add(walk, descriptor.address, descriptor.length, (flags & DESC_WRITE) != 0) < 0)
            return -EPROTO;
        if ((flags & DESC_NEXT) == 0)
            return 0;
        at = descriptor.second;
    }
}

/*
 * GUEST: the index is read when all that it announced before has been taken, and believed only if the
 * ring can hold what it now announces. Acquire: entries and descriptors are read after it.
 */
static int look(vk_queue *queue)
{
    uint16_t avail = load_16_acquire(part_at(&queue->driver, INDEX));
    if ((uint16_t)(avail - queue->next_avail) > queue->size)
        return vk_queue_break(queue, VK_BREACH_AVAIL_INDEX, avail);
    queue->avail_seen = avail;
    return avail != queue->next_avail;
}

/* GUEST: the head is read once, checked, and used. */
int vk_split_pop(vk_queue *queue, vk_chain *chain)
{
    if (queue->avail_seen == queue->next_avail) {
        int arrived = look(queue);
        if (arrived <= 0)
            return arrived;
    }
    uint64_t entry = ENTRIES + 2 * (uint64_t)slot(queue, queue->next_avail);
    uint16_t head = load_16(part_at(&queue->driver, entry));
    if (head >= queue->size)
        return vk_queue_break(queue, VK_BREACH_HEAD, head);
    if (queue->in_flight[head].slots != 0)
        return vk_queue_break(queue, VK_BREACH_HEAD_IN_FLIGHT, head);
    struct walk walk = {.queue = queue, .chain = chain};
    if (walk_chain(&walk, head) < 0)
        return -EPROTO;
    vk_walk_finish(&walk, head, 1);
    queue->next_avail++;
    return 1;
}

void vk_split_unpop(vk_queue *queue, uint16_t slots)
{
    queue->next_avail = (uint16_t)(queue->next_avail - slots);
}

/* An entry is aligned to one of its fields: in a ring in pieces the two may lie in different ones. */
__attribute__((cold)) static void put_in_pieces(const vk_queue *queue, uint64_t at,
                                                struct used_entry entry)
{
    uint8_t *head = part_at(&queue->device, at + offsetof(struct used_entry, head));
    uint8_t *written = part_at(&queue->device, at + offsetof(struct used_entry, written));
    memcpy(head, &entry.head, sizeof entry.head);
    memcpy(written, &entry.written, sizeof entry.written);
    vk_memory_wrote(queue->memory, head, sizeof entry.head);
    vk_memory_wrote(queue->memory, written, sizeof entry.written);
}

static inline void put(const vk_queue *queue, uint64_t at, struct used_entry entry)
{
    uint8_t *flat = queue->device.flat;
    if (__builtin_expect(flat == NULL, 0)) {
        put_in_pieces(queue, at, entry);
        return;
    }
    memcpy(flat + at, &entry, sizeof entry);
    vk_memory_wrote(queue->memory, flat + at, sizeof entry);
}

/* Release: the entry, and all that the device wrote to the chain, is visible before the index. */
void vk_split_push(vk_queue *queue, uint16_t head, uint32_t written, uint16_t slots)
{
    uint64_t entry = ENTRIES + sizeof(struct used_entry) * (uint64_t)slot(queue, queue->next_used);
    put(queue, entry, (struct used_entry){.head = head, .written = written});
    queue->next_used = (uint16_t)(queue->next_used + slots);
    uint8_t *index = part_at(&queue->device, INDEX);
    store_16_release(index, queue->next_used);
    vk_memory_wrote(queue->memory, index, sizeof queue->next_used);
}

bool vk_split_poll(vk_queue *queue)
{
    return queue->avail_seen != queue->next_avail ||
           load_16(part_at(&queue->driver, INDEX)) != queue->next_avail;
}

/*
 * GUEST: the driver's wish is read once. With event indexes it names the used position whose filling it
 * wants to hear of: it does, if that is among the last `unsignalled` ones.
 */
bool vk_split_needs_interrupt(const vk_queue *queue, uint32_t unsignalled)
{
    if (!vk_queue_has(queue, VK_QUEUE_EVENT_IDX))
        return (load_16(part_at(&queue->driver, FLAGS)) & AVAIL_NO_INTERRUPT) == 0;
    uint16_t since_event = (uint16_t)(queue->next_used - load_16(used_event(queue)) - 1);
    return since_event < unsignalled;
}

static void tell(const vk_queue *queue, uint8_t *at, uint16_t value)
{
    store_16(at, value);
    vk_memory_wrote(queue->memory, at, sizeof value);
}

/* With event indexes nothing is to be done: the driver kicks once for the position it was told. */
void vk_split_suppress(vk_queue *queue)
{
    if (!vk_queue_has(queue, VK_QUEUE_EVENT_IDX))
        tell(queue, part_at(&queue->device, FLAGS), USED_NO_NOTIFY);
}

void vk_split_enable(vk_queue *queue)
{
    if (vk_queue_has(queue, VK_QUEUE_EVENT_IDX))
        tell(queue, avail_event(queue), queue->next_avail);
    else
        tell(queue, part_at(&queue->device, FLAGS), 0);
}
