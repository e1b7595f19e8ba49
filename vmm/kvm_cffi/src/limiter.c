/* Token buckets: limiter.h says how they work. */
#include "limiter.h"

#include <stdlib.h>

typedef unsigned __int128 wide;

/* Larger buckets than this limit nothing that a host can do; their sums stay in range. */
#define SIZE_MOST (UINT64_C(1) << 56)
/* When to ask again behind another user: soon if its time has come, and in time to see it leave. */
#define LINE_LEAST_NS 1000u
#define LINE_MOST_NS 100000000u

static void fill(struct vk_bucket *bucket, const struct vk_bucket_setup *setup, uint64_t now_ns)
{
    if (setup->size == 0 || setup->refill_ns == 0)
        return;
    bucket->size = setup->size < SIZE_MOST ? setup->size : SIZE_MOST;
    bucket->refill_ns = setup->refill_ns;
    bucket->burst = setup->burst < SIZE_MOST ? setup->burst : SIZE_MOST;
    bucket->budget = (int64_t)bucket->size;
    bucket->counted_ns = now_ns;
}

vk_limiter *vk_limiter_new(const struct vk_bucket_setup *bandwidth,
                           const struct vk_bucket_setup *ops, uint64_t now_ns)
{
    vk_limiter *limiter = calloc(1, sizeof *limiter);
    if (limiter == NULL)
        return NULL;
    fill(&limiter->bandwidth, bandwidth, now_ns);
    fill(&limiter->ops, ops, now_ns);
    return limiter;
}

void vk_limiter_free(vk_limiter *limiter)
{
    free(limiter);
}

/* Time counts only as far as it made whole tokens; the rest of it counts next time. */
static void refill(struct vk_bucket *bucket, uint64_t now_ns)
{
    if (bucket->size == 0 || now_ns <= bucket->counted_ns)
        return;
    wide room = (wide)((int64_t)bucket->size - bucket->budget);
    wide tokens = (wide)(now_ns - bucket->counted_ns) * bucket->size / bucket->refill_ns;
    if (tokens >= room) {
        bucket->budget = (int64_t)bucket->size;
        bucket->counted_ns = now_ns;
    } else if (tokens != 0) {
        bucket->budget += (int64_t)tokens;
        bucket->counted_ns += (uint64_t)(tokens * bucket->refill_ns / bucket->size);
    }
}

/* How long until a request passes: 0 is now. One larger than the bucket waits for any token. */
static uint64_t wait_of(const struct vk_bucket *bucket, uint64_t tokens)
{
    if (bucket->size == 0 || tokens <= bucket->burst)
        return 0;
    tokens -= bucket->burst;
    int64_t needed = tokens <= bucket->size ? (int64_t)tokens : 1;
    if (bucket->budget >= needed)
        return 0;
    wide missing = (wide)(needed - bucket->budget);
    wide wait = (missing * bucket->refill_ns + bucket->size - 1) / bucket->size;
    return wait < UINT64_MAX ? (uint64_t)wait : UINT64_MAX;
}

static void take(struct vk_bucket *bucket, uint64_t tokens)
{
    if (bucket->size == 0)
        return;
    uint64_t from_burst = tokens < bucket->burst ? tokens : bucket->burst;
    bucket->burst -= from_burst;
    bucket->budget -= (int64_t)(tokens - from_burst);
}

static uint64_t wait_for(struct vk_limiter *limiter, uint64_t bytes, uint64_t ops, uint64_t now_ns)
{
    refill(&limiter->bandwidth, now_ns);
    refill(&limiter->ops, now_ns);
    uint64_t for_bytes = wait_of(&limiter->bandwidth, bytes);
    uint64_t for_ops = wait_of(&limiter->ops, ops);
    return for_bytes > for_ops ? for_bytes : for_ops;
}

uint64_t vk_limiter_take_ops(vk_limiter *limiter, uint64_t bytes, uint64_t ops, uint64_t now_ns)
{
    uint64_t wait_ns = wait_for(limiter, bytes, ops, now_ns);
    if (wait_ns != 0)
        return wait_ns;
    take(&limiter->bandwidth, bytes);
    take(&limiter->ops, ops);
    return 0;
}

uint64_t vk_limiter_take(vk_limiter *limiter, uint64_t bytes, uint64_t now_ns)
{
    return vk_limiter_take_ops(limiter, bytes, 1, now_ns);
}

/* Where a turn is in the line, or would be. */
static struct vk_turn **place_of(vk_limiter *limiter, const struct vk_turn *turn)
{
    struct vk_turn **place = &limiter->first;
    while (*place != NULL && *place != turn)
        place = &(*place)->next;
    return place;
}

static uint64_t wait_in_line(vk_limiter *limiter, const struct vk_turn *turn, uint64_t bytes,
                             uint64_t now_ns)
{
    if (limiter->first == NULL || limiter->first == turn)
        return vk_limiter_take(limiter, bytes, now_ns);
    uint64_t wait_ns = wait_for(limiter, limiter->first->bytes, 1, now_ns);
    if (wait_ns < LINE_LEAST_NS)
        return LINE_LEAST_NS;
    return wait_ns < LINE_MOST_NS ? wait_ns : LINE_MOST_NS;
}

uint64_t vk_limiter_until(vk_limiter *limiter, struct vk_turn *turn, uint64_t bytes,
                          uint64_t now_ns)
{
    uint64_t wait_ns = wait_in_line(limiter, turn, bytes, now_ns);
    if (wait_ns == 0) {
        vk_limiter_leave(limiter, turn);
        return 0;
    }
    if (!turn->is_waiting)
        *place_of(limiter, turn) = turn;
    turn->is_waiting = true;
    turn->bytes = bytes;
    return wait_ns < UINT64_MAX - now_ns ? now_ns + wait_ns : UINT64_MAX;
}

void vk_limiter_leave(vk_limiter *limiter, struct vk_turn *turn)
{
    if (turn->is_waiting)
        *place_of(limiter, turn) = turn->next;
    *turn = (struct vk_turn){.is_waiting = false};
}
