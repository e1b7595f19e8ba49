/*
 * The host's end of a guest's network, for the measurements: frames as net.c knows them, on a packet
 * socket bound to an interface.
 *
 *   wire INTERFACE send BYTES FRAMES WINDOW   at most WINDOW frames that the guest has not answered
 *   wire INTERFACE ping BYTES FRAMES          one after the other, each answered
 *
 * Prints nanoseconds: how long all took; for a ping, the median of one.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>

#include "../frame.h"

#define FRAME_BYTES_MOST 2048
#define BATCH 64
#define HOST_END 1
#define PATIENCE_S 5

static void give_up(const char *what)
{
    fprintf(stderr, "wire: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int open_wire(const char *interface)
{
    int fd = socket(AF_PACKET, SOCK_RAW, FRAME_ETHERTYPE);
    if (fd < 0)
        give_up("socket");
    struct sockaddr_ll address = {.sll_family = AF_PACKET,
                                  .sll_protocol = FRAME_ETHERTYPE,
                                  .sll_ifindex = (int)if_nametoindex(interface)};
    struct timeval patience = {.tv_sec = PATIENCE_S};
    int on = 1;
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
        give_up(interface);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof on);
    return fd;
}

/* Waits for an answer and returns its number. */
static uint64_t await_answer(int fd)
{
    _Alignas(struct frame) uint8_t bytes[FRAME_BYTES_MOST];
    const struct frame *frame = (const struct frame *)bytes;
    do {
        if (recv(fd, bytes, sizeof bytes, 0) < 0)
            give_up("no answer");
    } while (frame->kind != FRAME_ANSWER);
    return frame->number;
}

static void send_batch(int fd, uint64_t first, size_t bytes, unsigned count)
{
    static _Alignas(struct frame) uint8_t frames[BATCH][FRAME_BYTES_MOST];
    static struct iovec pieces[BATCH];
    static struct mmsghdr messages[BATCH];
    for (unsigned i = 0; i < count; i++) {
        frame_fill((struct frame *)frames[i], FRAME_DATA, first + i, HOST_END, bytes);
        pieces[i] = (struct iovec){frames[i], bytes};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &pieces[i], .msg_iovlen = 1};
    }
    for (unsigned sent = 0; sent < count;) {
        int result = sendmmsg(fd, messages + sent, count - sent, 0);
        if (result < 0)
            give_up("send");
        sent += (unsigned)result;
    }
}

static uint64_t send_all(int fd, size_t bytes, uint64_t count, uint64_t window)
{
    uint64_t sent = 0, answered = 0, start = now_ns();
    while (answered < count) {
        uint64_t room = answered + window - sent, left = count - sent;
        unsigned batch = (unsigned)(room < left ? room : left);
        if (batch > BATCH)
            batch = BATCH;
        if (batch != 0)
            send_batch(fd, sent, bytes, batch);
        else
            answered = await_answer(fd);
        sent += batch;
    }
    return now_ns() - start;
}

static int compare(const void *one, const void *two)
{
    uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)two;
    return (a > b) - (a < b);
}

static uint64_t ping(int fd, size_t bytes, uint64_t count)
{
    uint64_t *times = calloc(count, sizeof *times);
    if (times == NULL)
        give_up("memory");
    for (uint64_t i = 0; i < count; i++) {
        uint64_t start = now_ns();
        send_batch(fd, i, bytes, 1);
        while (await_answer(fd) != i)
            continue;
        times[i] = now_ns() - start;
    }
    qsort(times, count, sizeof *times, compare);
    return times[count / 2];
}

int main(int argc, char **argv)
{
    if (argc < 5 || (strcmp(argv[2], "send") == 0 && argc < 6)) {
        fputs("usage: wire INTERFACE send BYTES FRAMES WINDOW | ping BYTES FRAMES\n", stderr);
        return 2;
    }
    int fd = open_wire(argv[1]);
    size_t bytes = strtoul(argv[3], NULL, 10);
    uint64_t count = strtoul(argv[4], NULL, 10);
    bool sends = strcmp(argv[2], "send") == 0;
    if (bytes < sizeof(struct frame) || bytes > FRAME_BYTES_MOST || count == 0) {
        fputs("wire: BYTES are 24 to 2048, FRAMES at least 1\n", stderr);
        return 2;
    }
    uint64_t result = sends ? send_all(fd, bytes, count, strtoul(argv[5], NULL, 10))
                            : ping(fd, bytes, count);
    printf("%llu\n", (unsigned long long)result);
    return 0;
}
