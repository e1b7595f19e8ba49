/* A minimal io_uring: uring.h says what for. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "uring.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ENTRIES_MAX 4096u
#define COMPLETIONS_MAX 65536u
#define FILE_INDEX 0 /* of the one registered file */

static int enter(int fd, uint32_t submissions, uint32_t completions)
{
    const uint32_t flags = IORING_ENTER_GETEVENTS;
    long result = syscall(SYS_io_uring_enter, fd, submissions, completions, flags, NULL, 0);
    return result < 0 ? -errno : (int)result;
}

static int enroll(int fd, uint32_t operation, const void *argument, uint32_t count)
{
    long result = syscall(SYS_io_uring_register, fd, operation, argument, count);
    return result < 0 ? -errno : (int)result;
}

static uint32_t load(const uint32_t *at)
{
    return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}

/*
 * Linux 6.1 and later defer completions until the one thread that submits asks for them; older ones
 * refuse those flags and work without.
 */
static int set_up(uint32_t entries, uint32_t completions, struct io_uring_params *params)
{
    static const uint32_t wishes[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG, 0};
    for (size_t i = 0; i < sizeof wishes / sizeof wishes[0]; i++) {
        *params = (struct io_uring_params){
            .flags = wishes[i] | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP | IORING_SETUP_SUBMIT_ALL,
            .cq_entries = completions,
        };
        if (wishes[i] == 0)
            params->flags &= ~IORING_SETUP_SUBMIT_ALL;
        long fd = syscall(SYS_io_uring_setup, entries, params);
        if (fd >= 0)
            return (int)fd;
        if (errno != EINVAL)
            return -errno;
    }
    return -EINVAL;
}

static int map_rings(struct vk_uring *ring, const struct io_uring_params *params)
{
    size_t submissions = params->sq_off.array + params->sq_entries * sizeof(uint32_t);
    size_t completions = params->cq_off.cqes + params->cq_entries * sizeof(struct io_uring_cqe);
    const int protection = PROT_READ | PROT_WRITE;
    ring->rings_bytes = submissions > completions ? submissions : completions;
    ring->rings = mmap(NULL, ring->rings_bytes, protection, MAP_SHARED | MAP_POPULATE, ring->fd,
                       IORING_OFF_SQ_RING);
    if (ring->rings == MAP_FAILED)
        return -errno;
    ring->sqes_bytes = params->sq_entries * sizeof(struct io_uring_sqe);
    void *sqes = mmap(NULL, ring->sqes_bytes, protection, MAP_SHARED | MAP_POPULATE, ring->fd,
                      IORING_OFF_SQES);
    if (sqes == MAP_FAILED)
        return -errno;
    ring->sqes = sqes;
    return 0;
}

/* The kernel's array of indices stays the identity: submission n is entry n of the table. */
static void locate(struct vk_uring *ring, const struct io_uring_params *params)
{
    uint8_t *base = ring->rings;
    ring->entries = params->sq_entries;
    ring->sq_head = (uint32_t *)(void *)(base + params->sq_off.head);
    ring->sq_tail = (uint32_t *)(void *)(base + params->sq_off.tail);
    ring->sq_flags = (uint32_t *)(void *)(base + params->sq_off.flags);
    ring->sq_mask = *(uint32_t *)(void *)(base + params->sq_off.ring_mask);
    ring->cq_head = (uint32_t *)(void *)(base + params->cq_off.head);
    ring->cq_tail = (uint32_t *)(void *)(base + params->cq_off.tail);
    ring->cq_flags = (uint32_t *)(void *)(base + params->cq_off.flags);
    ring->cq_mask = *(uint32_t *)(void *)(base + params->cq_off.ring_mask);
    ring->cqes = (struct io_uring_cqe *)(void *)(base + params->cq_off.cqes);
    uint32_t *array = (uint32_t *)(void *)(base + params->sq_off.array);
    for (uint32_t i = 0; i < ring->entries; i++)
        array[i] = i;
    ring->tail = *ring->sq_tail;
}

static int probe(int fd)
{
    static const uint8_t needed[] = {IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_FSYNC,
                                     IORING_OP_FALLOCATE, IORING_OP_READ, IORING_OP_WRITE};
    struct {
        struct io_uring_probe head;
        struct io_uring_probe_op ops[IORING_OP_LAST];
    } answer = {0};
    int result = enroll(fd, IORING_REGISTER_PROBE, &answer, IORING_OP_LAST);
    if (result < 0)
        return result;
    for (size_t i = 0; i < sizeof needed; i++)
        if ((answer.ops[needed[i]].flags & IO_URING_OP_SUPPORTED) == 0)
            return -EOPNOTSUPP;
    return 0;
}

int vk_uring_open(struct vk_uring *ring, uint32_t entries, uint32_t in_flight, int file_fd,
                  int event_fd)
{
    struct io_uring_params params;
    *ring = (struct vk_uring){.fd = -1, .rings = MAP_FAILED};
    if (entries > ENTRIES_MAX)
        entries = ENTRIES_MAX;
    if (in_flight < entries)
        in_flight = entries;
    if (in_flight > COMPLETIONS_MAX)
        in_flight = COMPLETIONS_MAX;
    int result = set_up(entries, in_flight, &params);
    if (result < 0)
        return result;
    ring->fd = result;
    if ((params.features & IORING_FEAT_SINGLE_MMAP) == 0)
        result = -EOPNOTSUPP;
    else
        result = probe(ring->fd);
    if (result == 0)
        result = map_rings(ring, &params);
    if (result == 0)
        result = enroll(ring->fd, IORING_REGISTER_FILES, &file_fd, 1);
    if (result == 0 && event_fd >= 0)
        result = enroll(ring->fd, IORING_REGISTER_EVENTFD, &event_fd, 1);
    if (result < 0) {
        vk_uring_close(ring);
        return result;
    }
    locate(ring, &params);
    return 0;
}

void vk_uring_close(struct vk_uring *ring)
{
    if (ring->sqes != NULL)
        munmap(ring->sqes, ring->sqes_bytes);
    if (ring->rings != MAP_FAILED)
        munmap(ring->rings, ring->rings_bytes);
    if (ring->fd >= 0)
        close(ring->fd);
    *ring = (struct vk_uring){.fd = -1, .rings = MAP_FAILED};
}

uint32_t vk_uring_waiting(const struct vk_uring *ring)
{
    return ring->tail - load(ring->sq_head);
}

struct io_uring_sqe *vk_uring_next(struct vk_uring *ring)
{
    if (vk_uring_waiting(ring) == ring->entries)
        return NULL;
    struct io_uring_sqe *sqe = &ring->sqes[ring->tail++ & ring->sq_mask];
    memset(sqe, 0, sizeof *sqe);
    sqe->fd = FILE_INDEX;
    sqe->flags = IOSQE_FIXED_FILE;
    return sqe;
}

static int submit_and_wait(struct vk_uring *ring, uint32_t completions)
{
    __atomic_store_n(ring->sq_tail, ring->tail, __ATOMIC_RELEASE);
    for (;;) {
        int result = enter(ring->fd, vk_uring_waiting(ring), completions);
        if (result != -EINTR)
            return result < 0 ? result : 0;
    }
}

int vk_uring_enter(struct vk_uring *ring)
{
    return submit_and_wait(ring, 0);
}

int vk_uring_wait(struct vk_uring *ring)
{
    return submit_and_wait(ring, 1);
}

bool vk_uring_reap(struct vk_uring *ring, uint64_t *user_data, int64_t *result)
{
    uint32_t head = *ring->cq_head;
    if (head == load(ring->cq_tail))
        return false;
    const struct io_uring_cqe *cqe = &ring->cqes[head & ring->cq_mask];
    *user_data = cqe->user_data;
    *result = cqe->res;
    __atomic_store_n(ring->cq_head, head + 1, __ATOMIC_RELEASE);
    return true;
}

bool vk_uring_is_ready(const struct vk_uring *ring)
{
    uint32_t waits = IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW;
    return *ring->cq_head != load(ring->cq_tail) || (load(ring->sq_flags) & waits) != 0;
}

/*
 * Full barrier: the wish must be visible before the caller looks for completions once more. The kernel
 * does the reverse: it posts, then reads the wish.
 */
void vk_uring_set_notify(struct vk_uring *ring, bool wanted)
{
    uint32_t flags = wanted ? 0 : IORING_CQ_EVENTFD_DISABLED;
    __atomic_store_n(ring->cq_flags, flags, __ATOMIC_RELAXED);
    atomic_thread_fence(memory_order_seq_cst);
}

int vk_uring_set_worker_cpus(struct vk_uring *ring, const void *cpu_set, size_t bytes)
{
    return enroll(ring->fd, IORING_REGISTER_IOWQ_AFF, cpu_set, (uint32_t)bytes);
}
