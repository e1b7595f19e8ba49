/*
 * A rate limit: two token buckets, one of bytes and one of operations, that all users of it share.
 *
 * A bucket starts full, with a burst beside it that is spent first and never comes back. Tokens come
 * back steadily, up to the bucket's size. A request larger than the bucket passes when there is any
 * token and leaves a debt, which has to be paid back before anything else passes; so even then the
 * rate holds over time. The loop's thread is the only one that uses a limiter.
 */
#ifndef LIMITER_H
#define LIMITER_H

#include "kvm_cffi.h"

struct vk_bucket {
    uint64_t size;      /* 0: no limit */
    uint64_t refill_ns; /* in which an empty bucket becomes full */
    uint64_t burst;
    int64_t budget;
    uint64_t counted_ns; /* up to when tokens have come back */
};

struct vk_limiter {
    struct vk_bucket bandwidth;
    struct vk_bucket ops;
};

/*
 * Takes `bytes` and one operation, or nothing: 0 when they were taken, else in how many nanoseconds it
 * is worth asking again.
 */
uint64_t vk_limiter_take(vk_limiter *limiter, uint64_t bytes, uint64_t now_ns);

/* The same, but the time to ask again at: 0 when they were taken. */
uint64_t vk_limiter_until(vk_limiter *limiter, uint64_t bytes, uint64_t now_ns);

/* As vk_limiter_take, for `ops` operations at once. */
uint64_t vk_limiter_take_ops(vk_limiter *limiter, uint64_t bytes, uint64_t ops, uint64_t now_ns);

#endif
