/*
 * A rate limit: two token buckets, one of bytes and one of operations, that all users of it share.
 *
 * A bucket starts full, with a burst beside it that is spent first and never comes back. Tokens come
 * back steadily, up to the bucket's size. A request larger than the bucket passes when there is any
 * token and leaves a debt, which has to be paid back before anything else passes; so even then the
 * rate holds over time. Where several share a limiter they take turns: who asked in vain comes before
 * who asks later, or many small requests would never leave enough for a large one. The loop's thread is
 * the only one that uses a limiter.
 */
#ifndef LIMITER_H
#define LIMITER_H

#include "kvm_cffi.h"

#include <stdbool.h>

struct vk_bucket {
    uint64_t size;      /* 0: no limit */
    uint64_t refill_ns; /* in which an empty bucket becomes full */
    uint64_t burst;
    int64_t budget;
    uint64_t counted_ns; /* up to when tokens have come back */
};

/* The place of one user among those who wait. */
struct vk_turn {
    struct vk_turn *next;
    bool is_waiting;
    uint64_t bytes; /* that it asked for */
};

struct vk_limiter {
    struct vk_bucket bandwidth;
    struct vk_bucket ops;
    struct vk_turn *first; /* who has waited for longest */
};

/*
 * Takes `bytes` and one operation, or nothing: 0 when they were taken, else in how many nanoseconds it
 * is worth asking again.
 */
uint64_t vk_limiter_take(vk_limiter *limiter, uint64_t bytes, uint64_t now_ns);

/*
 * The same for one user of several, but the time to ask again at: 0 when they were taken. Who asked in
 * vain either asks again then, or leaves: others may wait for it.
 */
uint64_t vk_limiter_until(vk_limiter *limiter, struct vk_turn *turn, uint64_t bytes,
                          uint64_t now_ns);
void vk_limiter_leave(vk_limiter *limiter, struct vk_turn *turn);

/* As vk_limiter_take, for `ops` operations at once. */
uint64_t vk_limiter_take_ops(vk_limiter *limiter, uint64_t bytes, uint64_t ops, uint64_t now_ns);

#endif
