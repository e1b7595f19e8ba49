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
#include <time.h>

#define COMMAND_PAGE_FAULT 9
#define STATUS_OK 1
#define RANGE_BYTES 16
#define STEP_MS 100
#define PATIENCE_S 30ull /* of a peer that is silent, and beside what its pages may take */
#define PACE_BYTES_PER_S (1ull << 20)
#define MOST_PAGE_BYTES (1ull << 30)
#define MOST_ANSWER_BYTES (16ull << 20) /* what one call sends */

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

/* How long a peer may take: for anything at all, and for all that was asked of it. */
struct patience {
    uint64_t until_ms;
    const _Atomic bool *is_stopping;
};

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Waits until a socket that does not block would not: 0, or a negative errno. */
static int await(int fd, short events, const struct patience *patience)
{
    struct pollfd polled = {.fd = fd, .events = events};
    uint64_t silent_until_ms = now_ms() + 1000 * PATIENCE_S;
    for (uint64_t now = now_ms(); now < silent_until_ms && now < patience->until_ms;
         now = now_ms()) {
        int ready = poll(&polled, 1, STEP_MS);
        if (ready > 0)
            return 0;
        if (ready < 0 && errno != EINTR)
            return -errno;
        if (atomic_load(patience->is_stopping))
            return -ECANCELED;
    }
    return -ETIMEDOUT;
}

static int send_all(int fd, const void *from, uint64_t size, const struct patience *patience)
{
    const uint8_t *at = from;
    while (size != 0) {
        ssize_t sent = send(fd, at, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN && errno != EINTR)
            return -errno;
        if (sent < 0) {
            int result = await(fd, POLLOUT, patience);
            if (result < 0)
                return result;
            continue;
        }
        at += sent;
        size -= (uint64_t)sent;
    }
    return 0;
}

static int receive_all(int fd, void *to, uint64_t size, const struct patience *patience)
{
    uint8_t *at = to;
    while (size != 0) {
        ssize_t got = recv(fd, at, size, MSG_DONTWAIT);
        if (got == 0)
            return -ECONNRESET;
        if (got < 0 && errno != EAGAIN && errno != EINTR)
            return -errno;
        if (got < 0) {
            int result = await(fd, POLLIN, patience);
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
    struct patience patience = {
        .until_ms = now_ms() + 1000 * (PATIENCE_S + count * page / PACE_BYTES_PER_S),
        .is_stopping = is_stopping,
    };
    for (uint64_t i = 0; i < count; i++) {
        struct request request = {
            .header = {.number = COMMAND_PAGE_FAULT, .length = RANGE_BYTES},
            .gpa = gpa + i * page,
            .length = page,
        };
        int result = send_all(fd, &request, sizeof request, &patience);
        if (result < 0)
            return result;
    }
    for (uint64_t i = 0; i < count; i++) {
        struct header answer;
        int result = receive_all(fd, &answer, sizeof answer, &patience);
        if (result < 0)
            return result;
        if (answer.number != STATUS_OK || answer.length != page)
            return -EPROTO;
        result = receive_all(fd, to + i * page, page, &patience);
        if (result < 0)
            return result;
    }
    return 0;
}

/* PEER: every number may be anything. A page is in one piece of memory, or is none. */
static int begin_answer(const vk_memory *memory, const uint8_t *bytes,
                        struct vk_fault_server *server)
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
    _Static_assert(sizeof header == sizeof server->head, "the head of an answer");
    _Static_assert(offsetof(struct vk_fault_server, head) % _Alignof(struct header) == 0,
                   "it is read where it is");
    memcpy(server->head, &header, sizeof header);
    server->page = page;
    server->left = sizeof header + request.length;
    return 0;
}

/* Sends of the answer under way what there is room for: 0, or a negative errno. */
static int go_on(int fd, struct vk_fault_server *server, uint64_t *room)
{
    const struct header *header = (const void *)server->head;
    while (server->left != 0 && *room != 0) {
        uint64_t of_page = server->left < header->length ? server->left : header->length;
        uint64_t of_head = server->left - of_page;
        const uint8_t *from = of_head != 0 ? server->head + sizeof server->head - of_head
                                           : server->page + header->length - of_page;
        uint64_t size = of_head != 0 ? of_head : of_page;
        size = size < *room ? size : *room;
        int flags = MSG_DONTWAIT | MSG_NOSIGNAL | (of_head != 0 ? MSG_MORE : 0);
        ssize_t sent = send(fd, from, size, flags);
        if (sent < 0 && errno != EAGAIN && errno != EINTR)
            return -errno;
        if (sent < 0 && errno == EAGAIN)
            return 0;
        if (sent > 0) {
            server->left -= (uint64_t)sent;
            *room -= (uint64_t)sent;
        }
    }
    return 0;
}

static int receive_some(int fd, struct vk_fault_server *server)
{
    ssize_t got = recv(fd, server->bytes + server->filled, sizeof server->bytes - server->filled,
                       MSG_DONTWAIT);
    if (got < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    if (got == 0)
        return -ECONNRESET;
    server->filled += (uint32_t)got;
    return 0;
}

int64_t vk_faults_serve(int fd, const vk_memory *memory, struct vk_fault_server *server)
{
    int result = 0;
    int64_t served = 0;
    uint64_t room = MOST_ANSWER_BYTES;
    uint32_t at = 0;
    if (server->left == 0)
        result = receive_some(fd, server);
    while (result == 0) {
        bool was_under_way = server->left != 0;
        result = go_on(fd, server, &room);
        if (result < 0 || server->left != 0)
            break;
        served += was_under_way;
        if (server->filled - at < sizeof(struct request))
            break;
        result = begin_answer(memory, server->bytes + at, server);
        at += sizeof(struct request);
    }
    server->filled -= at;
    memmove(server->bytes, server->bytes + at, server->filled);
    return result < 0 ? result : served;
}
