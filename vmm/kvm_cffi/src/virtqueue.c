/* The life of a virtqueue and what both ring formats have in common. */
#include "ring_walk.h"

#include <stdlib.h>
#include <unistd.h>

#define SIZE_MAX_ENTRIES 32768u
#define HEADS 65536u /* a packed ring's buffer ids may be any 16-bit number */
#define UNSIGNALLED_MAX 65536u

int vk_queue_break(vk_queue *queue, enum vk_breach breach, uint64_t value)
{
    if (queue->breach == VK_BREACH_NONE) {
        queue->breach = breach;
        queue->breach_value = value;
    }
    return -EPROTO;
}

static bool is_broken(const vk_queue *queue)
{
    return queue->breach != VK_BREACH_NONE;
}

static bool is_packed(const vk_queue *queue)
{
    return vk_queue_has(queue, VK_QUEUE_PACKED);
}

/* GUEST: address and size are the driver's. A part of the ring that is not RAM breaks the queue. */
static uint8_t *locate(vk_queue *queue, uint64_t gpa, uint64_t size, uint64_t alignment)
{
    if (gpa % alignment != 0) {
        vk_queue_break(queue, VK_BREACH_ALIGNMENT, gpa);
        return NULL;
    }
    uint8_t *hva = vk_memory_translate(queue->memory, gpa, size);
    if (hva == NULL)
        vk_queue_break(queue, VK_BREACH_RING_ADDRESS, gpa);
    return hva;
}

static void load(vk_queue *queue, const struct vk_queue_state *state)
{
    uint32_t size = state->size;
    bool is_power_of_two = (size & (size - 1)) == 0;
    if (size == 0 || size > SIZE_MAX_ENTRIES || (!is_packed(queue) && !is_power_of_two)) {
        vk_queue_break(queue, VK_BREACH_SIZE, size);
        return;
    }
    uint64_t event = vk_queue_has(queue, VK_QUEUE_EVENT_IDX) ? 2 : 0;
    uint64_t driver_bytes = is_packed(queue) ? 4 : 4 + 2 * (uint64_t)size + event;
    uint64_t device_bytes = is_packed(queue) ? 4 : 4 + 8 * (uint64_t)size + event;
    queue->size = (uint16_t)size;
    queue->desc = locate(queue, state->desc, DESC_BYTES * (uint64_t)size, 16);
    queue->driver = locate(queue, state->driver, driver_bytes, is_packed(queue) ? 4 : 2);
    queue->device = locate(queue, state->device, device_bytes, 4);
    if (is_packed(queue))
        vk_packed_load(queue, state);
    else
        vk_split_load(queue, state);
}

vk_queue *vk_queue_new(const vk_memory *memory, const struct vk_queue_state *state, int kick_fd,
                       int interrupt_fd)
{
    vk_queue *queue = calloc(1, sizeof *queue);
    /* 256 KiB of addresses, but only the pages of heads in use ever become memory. */
    struct vk_flight *in_flight = calloc(HEADS, sizeof *in_flight);
    if (queue == NULL || in_flight == NULL) {
        free(queue);
        free(in_flight);
        return NULL;
    }
    queue->memory = memory;
    queue->in_flight = in_flight;
    queue->index = (uint16_t)state->index;
    queue->features = state->features;
    queue->kick_fd = kick_fd;
    atomic_init(&queue->interrupt_fd, interrupt_fd);
    queue->unsignalled =
        state->unsignalled < UNSIGNALLED_MAX ? state->unsignalled : UNSIGNALLED_MAX;
    load(queue, state);
    return queue;
}

void vk_queue_free(vk_queue *queue)
{
    free(queue->in_flight);
    free(queue);
}

/* A split ring has no wrap counters, theirs are 0. */
static uint16_t avail_position(const vk_queue *queue)
{
    return (uint16_t)(queue->next_avail | (uint32_t)queue->avail_wrap << 15);
}

static uint16_t used_position(const vk_queue *queue)
{
    return (uint16_t)(queue->next_used | (uint32_t)queue->used_wrap << 15);
}

/* Positions only: the addresses are as they were. */
void vk_queue_save(const vk_queue *queue, struct vk_queue_state *state)
{
    state->next_avail = avail_position(queue);
    state->next_used = used_position(queue);
    state->unsignalled = queue->unsignalled;
}

int vk_queue_breach(const vk_queue *queue, uint64_t *value)
{
    *value = queue->breach_value;
    return queue->breach;
}

void vk_queue_set_interrupt_fd(vk_queue *queue, int interrupt_fd)
{
    atomic_store(&queue->interrupt_fd, interrupt_fd);
}

uint64_t vk_queue_interrupts(const vk_queue *queue)
{
    return queue->interrupts;
}

uint32_t vk_queue_in_flight(const vk_queue *queue)
{
    return queue->slots_in_flight;
}

/* GUEST: a head that is already in flight would let the guest have one request completed twice. */
int vk_queue_pop(vk_queue *queue, vk_chain *chain)
{
    if (is_broken(queue))
        return -EPROTO;
    int result = is_packed(queue) ? vk_packed_pop(queue, chain) : vk_split_pop(queue, chain);
    if (result == 1) {
        queue->in_flight[chain->head] =
            (struct vk_flight){.slots = chain->slots, .position = avail_position(queue)};
        queue->slots_in_flight += chain->slots;
    }
    return result;
}

/* Takes a head out of flight: its slots, or 0 when it is not in flight. */
static uint16_t land(vk_queue *queue, uint16_t head)
{
    uint16_t slots = queue->in_flight[head].slots;
    queue->in_flight[head].slots = 0;
    queue->slots_in_flight -= slots;
    return slots;
}

int vk_queue_unpop(vk_queue *queue, uint16_t head)
{
    if (is_broken(queue))
        return -EPROTO;
    if (queue->in_flight[head].slots == 0)
        return -ENOENT;
    if (queue->in_flight[head].position != avail_position(queue))
        return -EINVAL;
    uint16_t slots = land(queue, head);
    if (is_packed(queue))
        vk_packed_unpop(queue, slots);
    else
        vk_split_unpop(queue, slots);
    return 0;
}

int vk_queue_push(vk_queue *queue, uint16_t head, uint32_t written)
{
    if (is_broken(queue))
        return -EPROTO;
    uint16_t slots = land(queue, head);
    if (slots == 0)
        return -ENOENT;
    if (is_packed(queue))
        vk_packed_push(queue, head, written, slots);
    else
        vk_split_push(queue, head, written, slots);
    queue->unsignalled += slots;
    if (queue->unsignalled > UNSIGNALLED_MAX)
        queue->unsignalled = UNSIGNALLED_MAX;
    return 0;
}

int vk_queue_push_chain(vk_queue *queue, const vk_chain *chain, uint32_t written)
{
    for (uint32_t i = chain->readable; i < (uint32_t)chain->readable + chain->writable; i++)
        vk_memory_wrote(chain->memory, chain->iov[i].iov_base, chain->iov[i].iov_len);
    return vk_queue_push(queue, chain->head, written);
}

/* A broken queue has something to give too: its -EPROTO. */
int vk_queue_poll(vk_queue *queue)
{
    if (is_broken(queue))
        return 1;
    return is_packed(queue) ? vk_packed_poll(queue) : vk_split_poll(queue);
}

/*
 * Full barrier: the used entries must be visible before the driver's wish is read. The driver does the
 * reverse (it writes its wish, then looks for used entries), so one of the two sees the other's write
 * and no interrupt is lost. Acquire and release order neither a store with a later load.
 */
int vk_queue_needs_interrupt(vk_queue *queue)
{
    if (is_broken(queue))
        return -EPROTO;
    uint32_t unsignalled = queue->unsignalled;
    if (unsignalled == 0)
        return 0;
    queue->unsignalled = 0;
    atomic_thread_fence(memory_order_seq_cst);
    return is_packed(queue) ? vk_packed_needs_interrupt(queue, unsignalled)
                            : vk_split_needs_interrupt(queue, unsignalled);
}

int vk_queue_signal(vk_queue *queue)
{
    int needed = vk_queue_needs_interrupt(queue);
    if (needed == 1) {
        queue->interrupts++;
        vk_signal(atomic_load(&queue->interrupt_fd));
    }
    return needed;
}

int vk_queue_suppress(vk_queue *queue)
{
    if (is_broken(queue))
        return -EPROTO;
    if (is_packed(queue))
        vk_packed_suppress(queue);
    else
        vk_split_suppress(queue);
    return 0;
}

/*
 * Full barrier: the wish to be kicked must be visible before the ring is looked at once more. The
 * driver makes a chain available, then reads the wish: either it sees the wish and kicks, or the look
 * after the barrier sees its chain.
 */
int vk_queue_enable(vk_queue *queue)
{
    if (is_broken(queue))
        return -EPROTO;
    if (is_packed(queue))
        vk_packed_enable(queue);
    else
        vk_split_enable(queue);
    atomic_thread_fence(memory_order_seq_cst);
    return is_packed(queue) ? vk_packed_poll(queue) : vk_split_poll(queue);
}

void vk_queue_clear_kick(vk_queue *queue)
{
    uint64_t kicks;
    if (queue->kick_fd >= 0 && read(queue->kick_fd, &kicks, sizeof kicks) < 0) {
        /* EAGAIN: nobody kicked. */
    }
}
