/* Making an engine and taking it apart. */
#include "blk.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

static int watch(int epoll_fd, int fd)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    if (fd < 0)
        return 0;
    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

static bool allocate(struct vk_blk *blk, vk_queue *const *queues, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        blk->request_count += queues[i]->size;
    blk->queues = calloc(count, sizeof *blk->queues);
    blk->requests = calloc(blk->request_count, sizeof *blk->requests);
    blk->chain = vk_chain_new();
    if (blk->queues == NULL || blk->requests == NULL || blk->chain == NULL)
        return false;
    for (uint32_t i = 0; i < count; i++)
        blk->queues[blk->queue_count++].queue = queues[i];
    for (uint32_t i = blk->request_count; i-- != 0;) {
        blk->requests[i].pieces = blk->requests[i].inline_pieces;
        blk->requests[i].next = blk->unused;
        blk->unused = &blk->requests[i];
    }
    return true;
}

static int open_wakes(struct vk_blk *blk)
{
    blk->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (blk->epoll_fd < 0)
        return -errno;
    blk->completion_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (blk->completion_fd < 0)
        return -errno;
    int result = watch(blk->epoll_fd, blk->completion_fd);
    for (uint32_t i = 0; i < blk->queue_count && result == 0; i++)
        result = watch(blk->epoll_fd, blk->queues[i].queue->kick_fd);
    return result;
}

int vk_blk_new(vk_disk *disk, vk_limiter *limiter, vk_queue *const *queues, uint32_t count,
               uint64_t poll_most_ns, vk_blk **made)
{
    vk_blk *blk = calloc(1, sizeof *blk);
    if (blk == NULL)
        return -ENOMEM;
    blk->disk = disk;
    blk->limiter = limiter;
    vk_watch_init(&blk->watch, poll_most_ns);
    blk->epoll_fd = blk->completion_fd = -1;
    blk->backlog.end = &blk->backlog.first;
    int result = allocate(blk, queues, count) ? open_wakes(blk) : -ENOMEM;
    if (result < 0) {
        vk_blk_free(blk);
        return result;
    }
    *made = blk;
    return 0;
}

int vk_blk_open_ring(vk_blk *blk)
{
    int result = vk_uring_open(&blk->ring, blk->request_count, blk->request_count,
                               blk->disk->setup.fd, blk->completion_fd);
    blk->has_ring = result == 0;
    return result;
}

int vk_blk_set_worker_cpus(vk_blk *blk, const uint32_t *host_cpus, uint32_t count)
{
    uint64_t set[1024] = {0}; /* 65536 processors, more than Linux can have */
    for (uint32_t i = 0; i < count; i++)
        if (host_cpus[i] < sizeof set * 8)
            set[host_cpus[i] / 64] |= UINT64_C(1) << host_cpus[i] % 64;
    return blk->has_ring ? vk_uring_set_worker_cpus(&blk->ring, set, sizeof set) : -ENOTSUP;
}

int vk_blk_fd(const vk_blk *blk)
{
    return blk->epoll_fd;
}

/*
 * Requests still in flight, if any, belong to the kernel or to a thread that is stuck in it, and so does
 * all they refer to: that memory is given up.
 */
void vk_blk_free(vk_blk *blk)
{
    vk_blk_leave_limiter(blk);
    if (blk->has_ring)
        vk_uring_close(&blk->ring);
    if (blk->completion_fd >= 0)
        close(blk->completion_fd);
    if (blk->epoll_fd >= 0)
        close(blk->epoll_fd);
    if (blk->in_flight != 0)
        return;
    free(blk->bounces);
    free(blk->requests);
    free(blk->queues);
    vk_chain_free(blk->chain);
    free(blk);
}
