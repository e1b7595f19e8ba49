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

static bool find_parts(vk_queue *queue);

/* Behind the IOMMU the ring is looked for again when its mapping may have gone. */
static inline bool is_usable(vk_queue *queue)
{
    if (queue->endpoint != NULL && queue->generation != queue->endpoint->generation)
        find_parts(queue);
    return !is_broken(queue);
}

static bool is_packed(const vk_queue *queue)
{
    return vk_queue_has(queue, VK_QUEUE_PACKED);
}

/* GUEST: the part lies in several pieces, page by page; false when one is not to be had. */
static bool find_pages(vk_queue *queue, struct vk_part *part)
{
    uint64_t skew = part->address % VK_PAGE;
    for (uint64_t done = 0; done < part->size;) {
        uint64_t in_page = (skew + done) % VK_PAGE, rest = part->size - done;
        uint64_t bytes = rest < VK_PAGE - in_page ? rest : VK_PAGE - in_page;
        uint8_t *hva;
        if (vk_queue_leading(queue, part->address + done, bytes, part->access, &hva) != bytes)
            return false;
        part->pages[(skew + done) / VK_PAGE] = hva - in_page;
        done += bytes;
    }
    part->flat = NULL;
    return true;
}

/* GUEST: address and size are the driver's. A part of the ring that is not RAM breaks the queue. */
static bool find_part(vk_queue *queue, struct vk_part *part)
{
    uint64_t run = vk_queue_leading(queue, part->address, part->size, part->access, &part->flat);
    if (run == part->size || (run != 0 && part->pages != NULL && find_pages(queue, part)))
        return true;
    vk_queue_break(queue, VK_BREACH_RING_ADDRESS, part->address);
    return false;
}

static bool find_parts(vk_queue *queue)
{
    if (queue->endpoint != NULL)
        queue->generation = queue->endpoint->generation;
    return find_part(queue, &queue->desc) && find_part(queue, &queue->driver) &&
           find_part(queue, &queue->device);
}

/* What a part is, before it is looked for; false: no memory. */
static bool describe(vk_queue *queue, struct vk_part *part, uint64_t address, uint64_t size,
                     uint64_t alignment, enum vk_access access)
{
    if (address % alignment != 0)
        vk_queue_break(queue, VK_BREACH_ALIGNMENT, address);
    part->address = address;
    part->size = size;
    part->access = access;
    if (queue->endpoint == NULL)
        return true;
    part->pages = calloc(size / VK_PAGE + 2, sizeof part->pages[0]);
    return part->pages != NULL;
}

/* False: no memory. */
static bool load(vk_queue *queue, const struct vk_queue_state *state)
{
    uint32_t size = state->size;
    bool is_power_of_two = (size & (size - 1)) == 0;
    if (size == 0 || size > SIZE_MAX_ENTRIES || (!is_packed(queue) && !is_power_of_two)) {
        vk_queue_break(queue, VK_BREACH_SIZE, size);
        return true;
    }
    uint64_t event = vk_queue_has(queue, VK_QUEUE_EVENT_IDX) ? 2 : 0;
    uint64_t driver_bytes = is_packed(queue) ? 4 : 4 + 2 * (uint64_t)size + event;
    uint64_t device_bytes = is_packed(queue) ? 4 : 4 + 8 * (uint64_t)size + event;
    enum vk_access of_desc = VK_ACCESS_READ | (is_packed(queue) ? VK_ACCESS_WRITE : 0);
    queue->size = (uint16_t)size;
    if (!describe(queue, &queue->desc, state->desc, DESC_BYTES * (uint64_t)size, 16, of_desc) ||
        !describe(queue, &queue->driver, state->driver, driver_bytes, is_packed(queue) ? 4 : 2,
                  VK_ACCESS_READ) ||
        !describe(queue, &queue->device, state->device, device_bytes, 4, VK_ACCESS_WRITE))
        return false;
    if (queue->endpoint == NULL)
        find_parts(queue);
    else
        queue->generation = queue->endpoint->generation - 1; /* the first use looks for them */
    if (is_packed(queue))
        vk_packed_load(queue, state);
    else
        vk_split_load(queue, state);
    return true;
}

vk_queue *vk_queue_new(const vk_memory *memory, vk_endpoint *endpoint,
                       const struct vk_queue_state *state, int kick_fd, int interrupt_fd)
{
    vk_queue *queue = calloc(1, sizeof *queue);
    if (queue == NULL)
        return NULL;
    queue->memory = memory;
    queue->endpoint = endpoint;
    queue->index = (uint16_t)state->index;
    queue->features = state->features;
    queue->kick_fd = kick_fd;
    atomic_init(&queue->interrupt_fd, interrupt_fd);
    queue->unsignalled =
        state->unsignalled < UNSIGNALLED_MAX ? state->unsignalled : UNSIGNALLED_MAX;
    /* 256 KiB of addresses, but only the pages of heads in use ever become memory. */
    queue->in_flight = calloc(HEADS, sizeof *queue->in_flight);
    queue->table = endpoint == NULL ? NULL : malloc(VK_TABLE_MAX);
    bool has_room = queue->in_flight != NULL && (endpoint == NULL || queue->table != NULL);
    if (!has_room || !load(queue, state)) {
        vk_queue_free(queue);
        return NULL;
    }
    return queue;
}

void vk_queue_free(vk_queue *queue)
{
    free(queue->desc.pages);
    free(queue->driver.pages);
    free(queue->device.pages);
    free(queue->table);
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
    if (!is_usable(queue))
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
    if (!is_usable(queue))
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
    if (!is_usable(queue))
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
    if (!is_usable(queue))
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
    if (!is_usable(queue))
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
    if (!is_usable(queue))
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
    if (!is_usable(queue))
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
