/* Both ends of pages by request. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "faults.h"
#include "memory_map.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define COMMAND_PAGE_FAULT 9
#define STATUS_OK 1
#define RANGE_BYTES 16
#define STEP_MS 100
#define PATIENCE_STEPS 300 /* of a peer that is silent: half a minute */
#define MOST_PAGE_BYTES (1ull << 30)

struct header {
    uint16_t number; /* a command or a status */
    uint8_t rest[6];
    uint64_t length;
};

struct request {
    struct header header;
    uint64_t gpa;
    uint64_t length;
};

static const _Atomic bool goes_on = false;

/* Waits until a socket that does not block would not: 0, or a negative errno. */
static int await(int fd, short events, const _Atomic bool *is_stopping)
{
    struct pollfd polled = {.fd = fd, .events = events};
    for (uint32_t step = 0; step < PATIENCE_STEPS; step++) {
        int ready = poll(&polled, 1, STEP_MS);
        if (ready > 0)
            return 0;
        if (ready < 0 && errno != EINTR)
            return -errno;
        if (atomic_load(is_stopping))
            return -ECANCELED;
    }
    return -ETIMEDOUT;
}

static int send_all(int fd, const void *from, uint64_t size, const _Atomic bool *is_stopping)
{
    const uint8_t *at = from;
    while (size != 0) {
        ssize_t sent = send(fd, at, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN && errno != EINTR)
            return -errno;
        if (sent < 0) {
            int result = await(fd, POLLOUT, is_stopping);
            if (result < 0)
                return result;
            continue;
        }
        at += sent;
        size -= (uint64_t)sent;
    }
    return 0;
}

static int receive_all(int fd, void *to, uint64_t size, const _Atomic bool *is_stopping)
{
    uint8_t *at = to;
    while (size != 0) {
        ssize_t got = recv(fd, at, size, MSG_DONTWAIT);
        if (got == 0)
            return -ECONNRESET;
        if (got < 0 && errno != EAGAIN && errno != EINTR)
            return -errno;
        if (got < 0) {
            int result = await(fd, POLLIN, is_stopping);
            if (result < 0)
                return result;
            continue;
        }
        at += got;
        size -= (uint64_t)got;
    }
    return 0;
}

/* All are asked for before the first is waited for. */
int vk_faults_ask(int fd, uint64_t gpa, uint64_t page, uint64_t count, uint8_t *to,
                  const _Atomic bool *is_stopping)
{
    for (uint64_t i = 0; i < count; i++) {
        struct request request = {
            .header = {.number = COMMAND_PAGE_FAULT, .length = RANGE_BYTES},
            .gpa = gpa + i * page,
            .length = page,
        };
        int result = send_all(fd, &request, sizeof request, is_stopping);
        if (result < 0)
            return result;
    }
    for (uint64_t i = 0; i < count; i++) {
        struct header answer;
        int result = receive_all(fd, &answer, sizeof answer, is_stopping);
        if (result < 0)
            return result;
        if (answer.number != STATUS_OK || answer.length != page)
            return -EPROTO;
        result = receive_all(fd, to + i * page, page, is_stopping);
        if (result < 0)
            return result;
    }
    return 0;
}

/* PEER: every number may be anything. A page is in one piece of memory, or is none. */
static int answer(int fd, const vk_memory *memory, const uint8_t *bytes)
{
    struct request request;
    memcpy(&request, bytes, sizeof request);
    static const uint8_t zeros[sizeof request.header.rest];
    bool is_request = request.header.number == COMMAND_PAGE_FAULT &&
                      memcmp(request.header.rest, zeros, sizeof zeros) == 0 &&
                      request.header.length == RANGE_BYTES && request.length <= MOST_PAGE_BYTES;
    if (!is_request)
        return -EPROTO;
    const void *page = vk_memory_translate(memory, request.gpa, request.length);
    if (page == NULL)
        return -EFAULT;
    struct header header = {.number = STATUS_OK, .length = request.length};
    int result = send_all(fd, &header, sizeof header, &goes_on);
    return result < 0 ? result : send_all(fd, page, request.length, &goes_on);
}

int64_t vk_faults_serve(int fd, const vk_memory *memory, struct vk_fault_server *server)
{
    int64_t served = 0;
    ssize_t got = recv(fd, server->bytes + server->filled, sizeof server->bytes - server->filled,
                       MSG_DONTWAIT);
    if (got < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    if (got == 0)
        return -ECONNRESET;
    server->filled += (uint32_t)got;
    uint32_t at = 0;
    for (; at + sizeof(struct request) <= server->filled; at += sizeof(struct request)) {
        int result = answer(fd, memory, server->bytes + at);
        if (result < 0)
            return result;
        served++;
    }
    server->filled -= at;
    memmove(server->bytes, server->bytes + at, server->filled);
    return served;
}
