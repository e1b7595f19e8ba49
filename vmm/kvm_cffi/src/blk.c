/* The engine itself: queues in, requests through, completions out, one call a wake. */
#include "blk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define ROUND_BYTES (1u << 20)   /* taken from the queues before the first of them is submitted */
#define STEP_NS 200000u          /* of one call, before the loop gets its turn */
#define RETRY_NS 1000000u        /* until the kernel is asked again that was short of something */

static void finish(struct vk_blk *blk, struct blk_request *request, uint8_t status,
                   uint64_t now_ns)
{
    struct vk_disk_counters *counters = &blk->disk->counters;
    bool is_ok = status == BLK_OK;
    if (is_ok && (request->is_read || request->is_write)) {
        struct vk_io_counters *io = request->is_read ? &counters->reads : &counters->writes;
        uint64_t took = now_ns - request->started_ns;
        io->ops++;
        io->bytes += request->bytes;
        io->total_ns += took;
        if (took < io->least_ns)
            io->least_ns = took;
        if (took > io->most_ns)
            io->most_ns = took;
    }
    *request->status = status;
    vk_memory_wrote(request->queue->queue->memory, request->status, 1);
    vk_queue_push(request->queue->queue, request->head, is_ok ? request->answered : 1);
    request->queue->has_pushed = true;
    vk_blk_release(blk, request);
    request->next = blk->unused;
    blk->unused = request;
    blk->in_flight--;
}

static void take_in(struct vk_blk *blk, struct blk_request *request, int64_t result,
                    uint64_t now_ns)
{
    switch (vk_blk_done(blk, request, result)) {
    case BLK_GOES_ON:
        blk_append(&blk->backlog, request);
        break;
    case BLK_SUCCEEDED:
        finish(blk, request, BLK_OK, now_ns);
        break;
    case BLK_FAILED:
        finish(blk, request, BLK_IOERR, now_ns);
        break;
    }
}

/* Whether the limiter lets a request pass; if not, its chain goes back to where it was. */
static bool passes(struct vk_blk *blk, struct blk_request *request, uint64_t now_ns)
{
    if (blk->limiter == NULL || !(request->is_read || request->is_write))
        return true;
    uint64_t until_ns = vk_limiter_until(blk->limiter, &blk->turn, request->bytes, now_ns);
    if (until_ns == 0)
        return true;
    blk->is_limited = true;
    blk->limited_until_ns = until_ns;
    vk_queue_unpop(request->queue->queue, request->head);
    vk_blk_release(blk, request);
    return false;
}

void vk_blk_leave_limiter(struct vk_blk *blk)
{
    if (blk->limiter != NULL)
        vk_limiter_leave(blk->limiter, &blk->turn);
}

/* Takes one chain: 1 and its bytes are added, 0 when there is none to take now, or -EPROTO. */
static int take_chain(struct vk_blk *blk, struct blk_queue *queue, uint64_t now_ns,
                      uint64_t *bytes)
{
    struct blk_request *request = blk->unused;
    if (request == NULL)
        return 0;
    int result = vk_queue_pop(queue->queue, blk->chain);
    if (result <= 0)
        return result;
    uint32_t answered;
    request->queue = queue;
    result = vk_blk_parse(blk, blk->chain, request, &answered);
    if (result <= 0) {
        vk_blk_release(blk, request);
        vk_queue_push(queue->queue, blk->chain->head, result < 0 ? 0 : answered);
        queue->has_pushed = true;
        *bytes += SECTOR_BYTES; /* a flood of these ends a round too */
        return 1;
    }
    if (!passes(blk, request, now_ns))
        return 0;
    blk->unused = request->next;
    blk->in_flight++;
    request->started_ns = now_ns;
    *bytes += request->bytes + SECTOR_BYTES;
    blk_append(&blk->backlog, request);
    return 1;
}

/* Goes round the queues, a chain each, up to a round's bytes: how many there were, or -EPROTO. */
static int take_round(struct vk_blk *blk)
{
    uint64_t bytes = 0, now_ns = vk_now_ns();
    int taken = 0;
    if (blk->is_limited && now_ns < blk->limited_until_ns)
        return 0;
    blk->is_limited = false;
    for (uint32_t idle = 0; idle < blk->queue_count && bytes < ROUND_BYTES && !blk->is_limited;) {
        struct blk_queue *queue = &blk->queues[blk->next_queue];
        blk->next_queue = blk->next_queue + 1 < blk->queue_count ? blk->next_queue + 1 : 0;
        int result = take_chain(blk, queue, now_ns, &bytes);
        if (result < 0)
            return result;
        idle = result == 0 ? idle + 1 : 0;
        taken += result;
    }
    if (!blk->is_limited)
        vk_blk_leave_limiter(blk); /* the driver may have taken back what waited */
    return taken;
}

/* Hands the backlog to the kernel as far as it goes: 0, -EAGAIN when it is to be tried again, or an error. */
static int flush(struct vk_blk *blk)
{
    struct vk_uring *ring = &blk->ring;
    for (;;) {
        bool is_full = false;
        while (blk->backlog.first != NULL && vk_blk_prepare(blk, blk->backlog.first)) {
            struct io_uring_sqe *sqe = vk_uring_next(ring);
            is_full = sqe == NULL;
            if (is_full)
                break;
            vk_blk_submit(blk, blk_take_first(&blk->backlog), sqe);
        }
        /* Those count too that the kernel was short of something for when it was entered last. */
        if (vk_uring_waiting(ring) == 0 && !vk_uring_is_ready(ring))
            return 0;
        int result = vk_uring_enter(ring);
        if (result == -EBUSY || result == -EAGAIN || result == -ENOMEM)
            return -EAGAIN;
        if (result < 0 || (!is_full && vk_uring_waiting(ring) == 0))
            return result;
    }
}

static int reap(struct vk_blk *blk)
{
    uint64_t user_data, now_ns = 0;
    int64_t result;
    int reaped = 0;
    while (vk_uring_reap(&blk->ring, &user_data, &result)) {
        if (reaped++ == 0)
            now_ns = vk_now_ns();
        take_in(blk, (struct blk_request *)(uintptr_t)user_data, result, now_ns);
    }
    return reaped;
}

static void signal_drivers(struct vk_blk *blk)
{
    for (uint32_t i = 0; i < blk->queue_count; i++) {
        if (!blk->queues[i].has_pushed)
            continue;
        blk->queues[i].has_pushed = false;
        vk_queue_signal(blk->queues[i].queue);
    }
}

/* One turn: take, submit, reap, push, signal. How much was done, or a negative errno. */
static int turn(struct vk_blk *blk)
{
    int taken = blk->is_stopping ? 0 : take_round(blk);
    if (taken < 0)
        return taken;
    if (!blk->has_ring) {
        signal_drivers(blk);
        return taken;
    }
    int result = flush(blk);
    int reaped = reap(blk);
    signal_drivers(blk);
    return result < 0 ? result : taken + reaped;
}

/* Whether requests that have ended one operation wait for their next. */
static bool goes_on(const struct vk_blk *blk)
{
    return blk->has_ring && blk->backlog.first != NULL;
}

static bool is_ready(void *engine)
{
    struct vk_blk *blk = engine;
    if (blk->has_ring && vk_uring_is_ready(&blk->ring))
        return true;
    if (blk->is_stopping || blk->is_limited || blk->unused == NULL)
        return false;
    for (uint32_t i = 0; i < blk->queue_count; i++)
        if (vk_queue_poll(blk->queues[i].queue))
            return true;
    return false;
}

/* What waits for a thread of the caller's waits for no ring. */
static bool something_comes(struct vk_blk *blk)
{
    bool has_work = !blk->has_ring && blk->backlog.first != NULL;
    return !has_work && !blk->is_limited && vk_watch_rings(&blk->watch, is_ready, blk);
}

static void disarm(struct vk_blk *blk)
{
    if (blk->has_ring)
        vk_uring_set_notify(&blk->ring, false);
    for (uint32_t i = 0; i < blk->queue_count; i++)
        vk_queue_suppress(blk->queues[i].queue);
}

/* Asks to be woken; true when there is something to do already. A limited queue's driver stays quiet. */
static bool arm(struct vk_blk *blk)
{
    bool is_late = false;
    if (blk->has_ring) {
        vk_uring_set_notify(&blk->ring, true);
        is_late = vk_uring_is_ready(&blk->ring);
    }
    if (!blk->is_stopping && !blk->is_limited)
        for (uint32_t i = 0; i < blk->queue_count; i++)
            if (vk_queue_enable(blk->queues[i].queue) != 0)
                is_late = true;
    return is_late;
}

/* Forgets the wakes so far: each descriptor is edge-triggered, and is not read. */
static void clear_wakes(struct vk_blk *blk)
{
    struct epoll_event events[64];
    while (epoll_wait(blk->epoll_fd, events, 64, 0) == 64)
        continue;
}

/* What the caller has to know beyond "wait for the descriptor". */
static int outcome(struct vk_blk *blk, bool has_more)
{
    int flags = has_more ? VK_BLK_HAS_MORE : 0;
    if (blk->wait_ns != 0)
        flags |= VK_BLK_IS_TIMED;
    if (blk->backlog.first != NULL && !blk->has_ring)
        flags |= VK_BLK_HAS_WORK;
    if (blk->errors_told != blk->disk->counters.errors)
        flags |= VK_BLK_HAS_ERRORS;
    blk->errors_told = blk->disk->counters.errors;
    return flags;
}

int vk_blk_serve(vk_blk *blk)
{
    uint64_t start_ns = vk_now_ns();
    bool has_more = false;
    int result;
    clear_wakes(blk);
    vk_watch_woken(&blk->watch, start_ns);
    disarm(blk);
    for (;;) {
        result = turn(blk);
        if (result < 0)
            break;
        has_more = vk_now_ns() - start_ns >= STEP_NS;
        if (has_more)
            break;
        if (result > 0 && (goes_on(blk) || something_comes(blk)))
            continue;
        if (!arm(blk))
            break;
        disarm(blk);
    }
    blk->watch.armed_ns = vk_now_ns();
    blk->wait_ns = 0;
    if (result == -EAGAIN)
        blk->wait_ns = RETRY_NS;
    else if (blk->is_limited && !blk->is_stopping)
        blk->wait_ns = blk->limited_until_ns > blk->watch.armed_ns
                           ? blk->limited_until_ns - blk->watch.armed_ns
                           : 1;
    return result < 0 && result != -EAGAIN ? result : outcome(blk, has_more);
}

uint64_t vk_blk_wait_ns(const vk_blk *blk)
{
    return blk->wait_ns;
}

uint32_t vk_blk_in_flight(const vk_blk *blk)
{
    return blk->in_flight;
}

void vk_blk_stop(vk_blk *blk)
{
    blk->is_stopping = true;
    vk_blk_leave_limiter(blk);
}

int64_t vk_blk_take(vk_blk *blk)
{
    if (blk->backlog.first == NULL || !vk_blk_prepare(blk, blk->backlog.first))
        return -1;
    return blk_take_first(&blk->backlog) - blk->requests;
}

int64_t vk_blk_perform(vk_blk *blk, uint32_t request)
{
    return vk_blk_do(blk, &blk->requests[request]);
}

void vk_blk_complete(vk_blk *blk, uint32_t request, int64_t result)
{
    take_in(blk, &blk->requests[request], result, vk_now_ns());
    signal_drivers(blk);
    if (blk->is_stopping)
        vk_signal(blk->completion_fd); /* somebody waits for the last one */
}
