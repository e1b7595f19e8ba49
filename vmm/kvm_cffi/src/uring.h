/*
 * One io_uring over one registered file, by bare system calls.
 *
 * All functions belong to the thread that opened it. Completions wait in the kernel until that thread
 * enters it (deferred task work), so nothing interrupts the loop between two submissions; an eventfd
 * tells the loop to come, unless it has said that it looks by itself.
 *
 * Source: io_uring_setup(2), io_uring_enter(2), io_uring_register(2).
 */
#ifndef URING_H
#define URING_H

#include <linux/io_uring.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct vk_uring {
    int fd;
    void *rings;
    size_t rings_bytes;
    struct io_uring_sqe *sqes;
    size_t sqes_bytes;
    uint32_t entries;
    uint32_t *sq_head, *sq_tail, *sq_flags;
    uint32_t *cq_head, *cq_tail, *cq_flags;
    struct io_uring_cqe *cqes;
    uint32_t sq_mask, cq_mask;
    uint32_t tail; /* of the submissions filled in, not yet told to the kernel */
};

/*
 * Room for `entries` submissions and `in_flight` completions, or what the kernel allows at most. Without
 * an `event_fd` (-1) nobody is told of completions: the thread waits for them.
 */
int vk_uring_open(struct vk_uring *ring, uint32_t entries, uint32_t in_flight, int file_fd,
                  int event_fd);
void vk_uring_close(struct vk_uring *ring);

/* A cleared submission for the registered file, NULL when there is room for none before the next enter. */
struct io_uring_sqe *vk_uring_next(struct vk_uring *ring);

/* How many submissions were filled in that the kernel has not taken yet. */
uint32_t vk_uring_waiting(const struct vk_uring *ring);

/* Submits what was filled in and brings completions up; 0 or a negative errno. Either way some may still wait. */
int vk_uring_enter(struct vk_uring *ring);

/* The same, and waits until there is a completion. */
int vk_uring_wait(struct vk_uring *ring);

/* Takes one completion: false when there is none. */
bool vk_uring_reap(struct vk_uring *ring, uint64_t *user_data, int64_t *result);

/* Whether entering the kernel, or reaping, would give something. */
bool vk_uring_is_ready(const struct vk_uring *ring);

/* Whether completions write the eventfd from now on. Look at vk_uring_is_ready after turning it on. */
void vk_uring_set_notify(struct vk_uring *ring, bool wanted);

/* Where the kernel's own workers of this ring may run. */
int vk_uring_set_worker_cpus(struct vk_uring *ring, const void *cpu_set, size_t bytes);

#endif
