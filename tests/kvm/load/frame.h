/* A frame as both ends make it: Ethernet's header, what it is, its number, and words that belong to it. */
#ifndef FRAME_H
#define FRAME_H

#include <stdbool.h>
#include <stdint.h>

#define FRAME_ETHERTYPE 0xb588u /* 0x88b5, for local experiments, as it lies in memory */
#define FRAME_SPREAD 0x9e3779b97f4a7c15u

enum frame_kind { FRAME_DATA = 1, FRAME_ANSWER = 2 };

struct frame {
    uint8_t to[6];
    uint8_t from[6];
    uint16_t ethertype;
    uint16_t kind;
    uint64_t number;
    uint64_t words[];
} __attribute__((packed, aligned(4)));

static inline uint64_t frame_words(uint64_t bytes)
{
    return (bytes - sizeof(struct frame)) / 8;
}

/* `end` tells the two ends apart: the last byte of the sender's address. */
static inline void frame_fill(struct frame *frame, enum frame_kind kind, uint64_t number, uint8_t end,
                              uint64_t bytes)
{
    *frame = (struct frame){.to = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
                            .from = {2, 0, 0, 0, 0, end},
                            .ethertype = FRAME_ETHERTYPE,
                            .kind = (uint16_t)kind,
                            .number = number};
    for (uint64_t i = 0; i < frame_words(bytes); i++)
        frame->words[i] = number * FRAME_SPREAD + i;
}

static inline bool frame_is_right(const struct frame *frame, uint64_t bytes)
{
    for (uint64_t i = 0; i < frame_words(bytes); i++)
        if (frame->words[i] != frame->number * FRAME_SPREAD + i)
            return false;
    return true;
}

#endif
