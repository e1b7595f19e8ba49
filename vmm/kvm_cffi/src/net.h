/*
 * The packet engine of virtio-net: one pair of queues over one queue of a tap.
 *
 *   transmit: pop -> writev to the tap -> push        receive: pop -> readv from the tap -> push
 *
 * A system call a packet, straight from and to guest memory; the tap's packets carry the same header
 * as the ring's. The loop's thread owns an engine. One descriptor says that there is something to
 * serve: it watches the kicks of both queues, and the tap for what would help just now. A driver without
 * receive buffers leaves the tap alone, a full tap leaves the transmit queue alone.
 *
 * Source: Virtual I/O Device (VIRTIO) 1.2, section 5.1.6.
 */
#ifndef NET_H
#define NET_H

#include "limiter.h"
#include "virtqueue.h"
#include "watch.h"

/* What a wake was about. */
enum net_source { NET_SOURCE_KICK, NET_SOURCE_TAP };

struct vk_net {
    int tap_fd;
    int epoll_fd;
    vk_queue *rx; /* NULL: the driver does not use it; likewise tx */
    vk_queue *tx;
    vk_limiter *rx_limiter; /* NULL: none; likewise tx_limiter */
    vk_limiter *tx_limiter;
    struct vk_turn rx_turn;
    struct vk_turn tx_turn;
    struct vk_net_counters *counters;
    uint32_t tap_events; /* that epoll_fd waits for */
    bool is_enabled;
    bool rx_is_starved; /* no buffers: the next kick says more */
    bool tx_is_blocked; /* the tap is full */
    bool tx_is_paid;    /* the next packet has passed the limiter, but not the tap */
    bool has_held;      /* a packet that was read and has to wait for the limiter */
    uint16_t held_head;
    uint32_t held_bytes;
    uint64_t rx_until_ns; /* limited until then; 0 = not; likewise tx_until_ns */
    uint64_t tx_until_ns;
    uint64_t wait_ns;
    struct vk_watch watch;
    uint8_t overflow; /* where a packet goes on that is larger than its chain */
    vk_chain *chain;
};

/* Has the engine's descriptor wait for another one: 0 or a negative errno. */
int vk_net_watch(struct vk_net *net, int operation, int fd, uint32_t events, enum net_source source);

#endif
