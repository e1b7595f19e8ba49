/* Serving: packets from the transmit queue to the tap, and from the tap to the receive queue. */
#include "net.h"

#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/uio.h>
#include <unistd.h>

#define HEADER_BYTES 12u
#define NUM_BUFFERS_AT 10u
#define PACKET_BYTES_MOST (128u << 10) /* twice what any has; kernels differ in what they take */
#define ROUND_PACKETS 64 /* in one direction, before its driver is told and the other has a turn */
#define STEP_NS 200000u  /* of one call, before the loop gets its turn */

static int watch_tap(struct vk_net *net, uint32_t events)
{
    if (events == net->tap_events)
        return 0;
    int result = vk_net_watch(net, EPOLL_CTL_MOD, net->tap_fd, events, NET_SOURCE_TAP);
    if (result == 0)
        net->tap_events = events;
    return result;
}

/* Forgets the kicks so far, and learns what the tap has to say. -ENODEV: it is gone. */
static int take_wakes(struct vk_net *net)
{
    struct epoll_event events[3];
    int count = epoll_wait(net->epoll_fd, events, 3, 0);
    for (int i = 0; i < count; i++) {
        if (events[i].data.u32 != NET_SOURCE_TAP)
            continue;
        if (events[i].events & (EPOLLERR | EPOLLHUP))
            return -ENODEV;
        if (events[i].events & EPOLLOUT)
            net->tx_is_blocked = false;
    }
    return 0;
}

/* 0: it passes, else until when it has to wait. */
static uint64_t limited_until(vk_limiter *limiter, struct vk_turn *turn, uint64_t bytes)
{
    return limiter == NULL ? 0 : vk_limiter_until(limiter, turn, bytes, vk_now_ns());
}

/* Whether a direction is limited still. */
static bool is_limited(uint64_t *until_ns)
{
    if (*until_ns != 0 && vk_now_ns() >= *until_ns)
        *until_ns = 0;
    return *until_ns != 0;
}

/* Whether an error is about the packet alone. */
static bool is_tap_alive(int error)
{
    return error != EBADF && error != EBADFD && error != ENODEV && error != ECONNRESET &&
           error != EPIPE && error != ENOTCONN;
}

/* Writes the popped chain's packet: 0, or an errno. */
static int write_packet(struct vk_net *net)
{
    if (net->chain->readable_bytes > PACKET_BYTES_MOST)
        return EMSGSIZE;
    return writev(net->tap_fd, net->chain->iov, net->chain->readable) < 0 ? errno : 0;
}

/* A step serves one packet: 1; 0: there is none to serve now; or a negative errno. */
static int transmit(struct vk_net *net)
{
    vk_chain *chain = net->chain;
    if (net->tx_is_blocked || is_limited(&net->tx_until_ns))
        return 0;
    int result = vk_queue_pop(net->tx, chain);
    if (result <= 0)
        return result;
    if (chain->readable_bytes < HEADER_BYTES)
        return -EBADMSG;
    uint64_t bytes = chain->readable_bytes - HEADER_BYTES;
    if (!net->tx_is_paid) {
        net->tx_until_ns = limited_until(net->tx_limiter, &net->tx_turn, bytes);
        if (net->tx_until_ns != 0) {
            vk_queue_unpop(net->tx, chain->head);
            return 0;
        }
    }
    int error = write_packet(net);
    net->tx_is_blocked = error == EAGAIN;
    net->tx_is_paid = error == EAGAIN || error == EINTR;
    if (net->tx_is_paid || (error != 0 && !is_tap_alive(error))) {
        vk_queue_unpop(net->tx, chain->head);
        return error == EAGAIN ? 0 : error == EINTR ? 1 : -error;
    }
    if (error == 0) {
        net->counters->tx_frames++;
        net->counters->tx_bytes += bytes;
    } else {
        net->counters->tx_dropped++;
    }
    vk_queue_push(net->tx, chain->head, 0);
    return 1;
}

/*
 * Reads a packet into the popped chain: its bytes, or a negative errno. -EMSGSIZE: it was larger than
 * the chain and is lost. A tap cuts a packet to the room it finds without a word, so there is a byte
 * of room more than the chain has.
 */
static int64_t read_packet(struct vk_net *net)
{
    vk_chain *chain = net->chain;
    struct iovec *iov = chain->iov + chain->readable;
    uint32_t count = chain->writable;
    uint64_t room = chain->writable_bytes;
    if (chain->readable + count == VK_CHAIN_MAX)
        room -= iov[--count].iov_len;
    iov[count] = (struct iovec){.iov_base = &net->overflow, .iov_len = 1};
    ssize_t got = readv(net->tap_fd, iov, (int)count + 1);
    if (got < 0)
        return -errno;
    for (uint64_t i = 0, left = (uint64_t)got; i < count && left != 0; i++) {
        uint64_t part = left < iov[i].iov_len ? left : iov[i].iov_len;
        vk_memory_wrote(chain->memory, iov[i].iov_base, part);
        left -= part;
    }
    return (uint64_t)got > room ? -EMSGSIZE : got;
}

static void deliver(struct vk_net *net, uint16_t head, uint32_t bytes)
{
    net->counters->rx_frames++;
    net->counters->rx_bytes += bytes - HEADER_BYTES;
    vk_queue_push(net->rx, head, bytes);
}

/* The size of a packet is known when it has been read, so it is held when it may not pass yet. */
static bool hold(struct vk_net *net, uint16_t head, uint32_t bytes)
{
    net->rx_until_ns = limited_until(net->rx_limiter, &net->rx_turn, bytes - HEADER_BYTES);
    net->has_held = net->rx_until_ns != 0;
    net->held_head = head;
    net->held_bytes = bytes;
    return net->has_held;
}

static int receive(struct vk_net *net)
{
    if (is_limited(&net->rx_until_ns))
        return 0;
    if (net->has_held) {
        if (hold(net, net->held_head, net->held_bytes))
            return 0;
        deliver(net, net->held_head, net->held_bytes);
        return 1;
    }
    int result = vk_queue_pop(net->rx, net->chain);
    net->rx_is_starved = result == 0;
    if (result <= 0)
        return result;
    if (net->chain->writable_bytes < HEADER_BYTES)
        return -EBADMSG;
    int64_t got = read_packet(net);
    uint16_t head = net->chain->head;
    if (got < (int64_t)HEADER_BYTES) {
        vk_queue_unpop(net->rx, head);
        if (got == -EAGAIN)
            return 0;
        if (got < 0 && got != -EMSGSIZE && got != -EINTR)
            return (int)got;
        net->counters->rx_dropped += got != -EINTR;
        return 1;
    }
    static const uint8_t one_buffer[2] = {1, 0};
    vk_chain_write(net->chain, NUM_BUFFERS_AT, one_buffer, sizeof one_buffer);
    if (hold(net, head, (uint32_t)got))
        return 0;
    deliver(net, head, (uint32_t)got);
    return 1;
}

/* Some packets of one direction, and one interrupt: how many, or a negative errno. */
static int serve_round(struct vk_net *net, vk_queue *queue, int (*step)(struct vk_net *))
{
    int count = 0, result = 1;
    if (queue == NULL)
        return 0;
    while (count < ROUND_PACKETS && (result = step(net)) == 1)
        count++;
    if (count != 0)
        vk_queue_signal(queue);
    return result < 0 ? result : count;
}

static void suppress(struct vk_net *net)
{
    if (net->tx != NULL)
        vk_queue_suppress(net->tx);
    if (net->rx != NULL)
        vk_queue_suppress(net->rx);
}

/* Asks to be woken by what is waited for: 1 when it has come already, 0, or a negative errno. */
static int arm(struct vk_net *net)
{
    uint32_t events = 0;
    bool is_late = false;
    if (net->tx_is_blocked)
        events |= EPOLLOUT;
    else if (net->tx != NULL && net->tx_until_ns == 0)
        is_late = vk_queue_enable(net->tx) != 0;
    if (net->rx_is_starved)
        is_late = vk_queue_enable(net->rx) != 0 || is_late;
    else if (net->rx != NULL && net->rx_until_ns == 0)
        events |= EPOLLIN;
    int result = watch_tap(net, events);
    return result < 0 ? result : is_late;
}

/* In how long a limited direction goes on; 0 when none is limited. */
static uint64_t next_wait_ns(const struct vk_net *net, uint64_t now_ns)
{
    uint64_t until_ns = net->rx_until_ns;
    if (until_ns == 0 || (net->tx_until_ns != 0 && net->tx_until_ns < until_ns))
        until_ns = net->tx_until_ns;
    if (until_ns == 0)
        return 0;
    return until_ns > now_ns ? until_ns - now_ns : 1;
}

/* Whether a packet waits that may pass. The tap is asked by the way: that is a system call. */
static bool is_ready(void *engine)
{
    struct vk_net *net = engine;
    if (net->tx != NULL && !net->tx_is_blocked && net->tx_until_ns == 0 && vk_queue_poll(net->tx))
        return true;
    if (net->rx == NULL || net->rx_until_ns != 0)
        return false;
    if (net->rx_is_starved)
        return vk_queue_poll(net->rx) != 0;
    struct pollfd tap = {.fd = net->tap_fd, .events = POLLIN};
    return poll(&tap, 1, 0) > 0;
}

/* Goes on until there is nothing to do, or it is the loop's turn: 1 then, 0, or a negative errno. */
static int serve_all(struct vk_net *net)
{
    uint64_t start_ns = vk_now_ns();
    bool has_carried = false;
    vk_watch_woken(&net->watch, start_ns);
    suppress(net);
    for (;;) {
        int sent = serve_round(net, net->tx, transmit);
        if (sent < 0)
            return sent;
        int received = serve_round(net, net->rx, receive);
        if (received < 0)
            return received;
        if (vk_now_ns() - start_ns >= STEP_NS)
            return 1;
        has_carried |= sent + received != 0;
        if (sent + received != 0)
            continue;
        if (has_carried && vk_watch_rings(&net->watch, is_ready, net))
            continue;
        has_carried = false;
        int result = arm(net);
        if (result <= 0)
            return result;
        suppress(net);
    }
}

int vk_net_serve(vk_net *net)
{
    int result = take_wakes(net);
    net->wait_ns = 0;
    if (result < 0 || !net->is_enabled)
        return result;
    result = serve_all(net);
    if (result < 0)
        return result;
    net->watch.armed_ns = vk_now_ns();
    net->wait_ns = next_wait_ns(net, net->watch.armed_ns);
    return (result ? VK_NET_HAS_MORE : 0) | (net->wait_ns != 0 ? VK_NET_IS_TIMED : 0);
}

uint64_t vk_net_wait_ns(const vk_net *net)
{
    return net->wait_ns;
}

/* What was read is delivered, limit or not: a packet more than allowed, and none is lost. */
void vk_net_stop(vk_net *net)
{
    if (!net->has_held)
        return;
    net->has_held = false;
    deliver(net, net->held_head, net->held_bytes);
    vk_queue_signal(net->rx);
}
