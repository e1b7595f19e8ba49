/* A byte queue of fixed capacity. It has no lock of its own: its owner's lock guards it. */
#ifndef FIFO_H
#define FIFO_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct fifo {
    uint8_t *bytes;
    uint32_t capacity;
    uint32_t head; /* index of the oldest byte */
    uint32_t count;
};

static inline bool fifo_init(struct fifo *fifo, uint32_t capacity)
{
    *fifo = (struct fifo){.bytes = malloc(capacity), .capacity = capacity};
    return fifo->bytes != NULL;
}

static inline void fifo_deinit(struct fifo *fifo)
{
    free(fifo->bytes);
}

static inline uint32_t fifo_room(const struct fifo *fifo)
{
    return fifo->capacity - fifo->count;
}

/* The caller has seen that there is room. */
static inline void fifo_push(struct fifo *fifo, uint8_t byte)
{
    fifo->bytes[((uint64_t)fifo->head + fifo->count) % fifo->capacity] = byte;
    fifo->count++;
}

/* The caller has seen that there is a byte. */
static inline uint8_t fifo_pop(struct fifo *fifo)
{
    uint8_t byte = fifo->bytes[fifo->head];
    fifo->head = (fifo->head + 1) % fifo->capacity;
    fifo->count--;
    return byte;
}

static inline uint32_t fifo_peek(const struct fifo *fifo, uint8_t *to, uint32_t room)
{
    uint32_t taken = room < fifo->count ? room : fifo->count;
    uint32_t until_end = fifo->capacity - fifo->head;
    uint32_t first = taken < until_end ? taken : until_end;
    memcpy(to, fifo->bytes + fifo->head, first);
    memcpy(to + first, fifo->bytes, taken - first);
    return taken;
}

static inline void fifo_clear(struct fifo *fifo)
{
    fifo->head = 0;
    fifo->count = 0;
}

static inline uint32_t fifo_drain(struct fifo *fifo, uint8_t *to, uint32_t room)
{
    uint32_t taken = fifo_peek(fifo, to, room);
    fifo->head = (uint32_t)(((uint64_t)fifo->head + taken) % fifo->capacity);
    fifo->count -= taken;
    return taken;
}

#endif
