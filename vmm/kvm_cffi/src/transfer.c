/*
 * Guest memory through a socket that does not block, straight from or to where it is.
 *
 * A call waits for the socket itself, but not for long.
 *
 * Source: sendmsg(2), recvmsg(2), poll(2).
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "memory_map.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

#define PIECES 256u

/* How long one call goes on, so that the caller may be cancelled soon. */
#define CALL_MS 50

/* One direction: the call, and what to wait for when the socket would block. */
struct way {
    ssize_t (*move)(int fd, struct msghdr *message);
    short events;
};

static ssize_t send_pieces(int fd, struct msghdr *message)
{
    return sendmsg(fd, message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* 0 is the peer's end, and there is always something to come when this is called. */
static ssize_t receive_pieces(int fd, struct msghdr *message)
{
    ssize_t got = recvmsg(fd, message, MSG_DONTWAIT);
    if (got == 0)
        errno = ECONNRESET;
    return got == 0 ? -1 : got;
}

/* PEER: every number may be anything. The sum cannot wrap before it is larger than all RAM. */
int64_t vk_ranges_bytes(const vk_memory *memory, const struct vk_range *ranges, uint32_t count)
{
    uint64_t total = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t gpa = ranges[i].gpa, left = ranges[i].length;
        if (left == 0 || left > INT64_MAX - total)
            return -EFAULT;
        total += left;
        while (left != 0) {
            uint8_t *hva;
            uint64_t size = vk_memory_leading(memory, gpa, left, &hva);
            if (size == 0)
                return -EFAULT;
            gpa += size;
            left -= size;
        }
    }
    return (int64_t)total;
}

/* PEER: a range that is not RAM, or wraps, has no address: false. */
static bool gather(const vk_memory *memory, const struct vk_range *ranges, uint32_t count,
                   struct vk_transfer at, uint64_t most, struct iovec *pieces, uint32_t *used)
{
    *used = 0;
    while (at.range < count && *used < PIECES && most != 0) {
        uint64_t left = ranges[at.range].length - at.offset;
        uint8_t *hva;
        uint64_t size = vk_memory_leading(memory, ranges[at.range].gpa + at.offset,
                                          left < most ? left : most, &hva);
        if (size == 0)
            return false;
        pieces[(*used)++] = (struct iovec){.iov_base = hva, .iov_len = size};
        most -= size;
        at.offset += size;
        if (at.offset == ranges[at.range].length)
            at = (struct vk_transfer){.range = at.range + 1};
    }
    return true;
}

static void advance(const struct vk_range *ranges, struct vk_transfer *done, uint64_t bytes)
{
    while (bytes != 0) {
        uint64_t left = ranges[done->range].length - done->offset;
        if (bytes < left) {
            done->offset += bytes;
            return;
        }
        bytes -= left;
        done->range++;
        done->offset = 0;
    }
}

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Whether the socket can go on, or has an error to tell, before `end`. */
static bool wait_for(int fd, short events, int64_t end)
{
    struct pollfd watched = {.fd = fd, .events = events};
    int64_t left = end - now_ms();
    return left > 0 && poll(&watched, 1, (int)left) != 0;
}

static int64_t transfer(int fd, const vk_memory *memory, const struct vk_range *ranges,
                        uint32_t count, struct vk_transfer *done, uint64_t most, struct way way)
{
    uint64_t moved = 0;
    int64_t end = now_ms() + CALL_MS;
    struct iovec pieces[PIECES];
    while (done->range < count && moved < most && (moved == 0 || now_ms() < end)) {
        if (done->offset == ranges[done->range].length) {
            *done = (struct vk_transfer){.range = done->range + 1}; /* it is empty */
            continue;
        }
        uint32_t used;
        if (!gather(memory, ranges, count, *done, most - moved, pieces, &used))
            return -EFAULT;
        struct msghdr message = {.msg_iov = pieces, .msg_iovlen = used};
        ssize_t bytes = way.move(fd, &message);
        if (bytes < 0 && errno == EINTR)
            continue;
        if (bytes < 0 && errno != EAGAIN)
            return -errno;
        if (bytes < 0 && !wait_for(fd, way.events, end))
            break;
        if (bytes < 0)
            continue;
        advance(ranges, done, (uint64_t)bytes);
        moved += (uint64_t)bytes;
    }
    return (int64_t)moved;
}

int64_t vk_send_ranges(int fd, const vk_memory *memory, const struct vk_range *ranges,
                       uint32_t count, struct vk_transfer *done, uint64_t most)
{
    return transfer(fd, memory, ranges, count, done, most, (struct way){send_pieces, POLLOUT});
}

int64_t vk_receive_ranges(int fd, const vk_memory *memory, const struct vk_range *ranges,
                          uint32_t count, struct vk_transfer *done, uint64_t most)
{
    return transfer(fd, memory, ranges, count, done, most, (struct way){receive_pieces, POLLIN});
}
