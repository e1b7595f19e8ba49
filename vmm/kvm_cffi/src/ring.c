/* A port whose written bytes are collected for Python, and whose reads give a fixed value. */
#include "fifo.h"
#include "kvm_cffi.h"

struct vk_byte_ring {
    vk_mechanism mechanism;
    pthread_mutex_t lock; /* several vCPUs may write, Python drains */
    struct fifo fifo;
    uint64_t read_value;
    uint64_t dropped;
    int event_fd;
};

static bool ring_read(vk_mechanism *self, uint64_t offset, uint32_t size, uint64_t *value)
{
    (void)offset;
    (void)size;
    *value = ((vk_byte_ring *)self)->read_value;
    return true;
}

/*
 * GUEST: the guest writes as fast as it likes; what does not fit is dropped and counted.
 *
 * Only the step from empty to not empty is announced. That is enough: a reader clears the eventfd
 * before it drains, so a byte it did not take was pushed after its drain, onto an empty ring.
 */
static bool ring_write(vk_mechanism *self, uint64_t offset, uint32_t size, uint64_t value)
{
    vk_byte_ring *ring = (vk_byte_ring *)self;
    (void)offset;
    pthread_mutex_lock(&ring->lock);
    bool was_empty = ring->fifo.count == 0;
    for (uint32_t i = 0; i < size; i++, value >>= 8) {
        if (fifo_room(&ring->fifo) != 0)
            fifo_push(&ring->fifo, (uint8_t)value);
        else
            ring->dropped++;
    }
    pthread_mutex_unlock(&ring->lock);
    if (was_empty)
        vk_signal(ring->event_fd);
    return true;
}

vk_byte_ring *vk_byte_ring_new(uint64_t read_value, uint32_t capacity, int event_fd)
{
    static const struct vk_mechanism_ops ops = {.read = ring_read, .write = ring_write};
    vk_byte_ring *ring = calloc(1, sizeof *ring);
    if (ring == NULL)
        return NULL;
    if (!fifo_init(&ring->fifo, capacity)) {
        free(ring);
        return NULL;
    }
    pthread_mutex_init(&ring->lock, NULL);
    ring->mechanism.ops = &ops;
    ring->read_value = read_value;
    ring->event_fd = event_fd;
    return ring;
}

uint32_t vk_byte_ring_drain(vk_byte_ring *ring, uint8_t *to, uint32_t room)
{
    pthread_mutex_lock(&ring->lock);
    uint32_t taken = fifo_drain(&ring->fifo, to, room);
    bool has_more = ring->fifo.count != 0;
    pthread_mutex_unlock(&ring->lock);
    if (has_more) /* no push will announce these: the ring was never empty */
        vk_signal(ring->event_fd);
    return taken;
}

/* From here on it signals nobody: its descriptor is about to be closed. */
void vk_byte_ring_detach(vk_byte_ring *ring)
{
    pthread_mutex_lock(&ring->lock);
    ring->event_fd = -1;
    pthread_mutex_unlock(&ring->lock);
}

uint64_t vk_byte_ring_dropped(vk_byte_ring *ring)
{
    pthread_mutex_lock(&ring->lock);
    uint64_t dropped = ring->dropped;
    pthread_mutex_unlock(&ring->lock);
    return dropped;
}

void vk_byte_ring_free(vk_byte_ring *ring)
{
    pthread_mutex_destroy(&ring->lock);
    fifo_deinit(&ring->fifo);
    free(ring);
}
