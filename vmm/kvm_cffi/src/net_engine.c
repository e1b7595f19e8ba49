/* Making an engine and taking it apart, and what its descriptor waits for. */
#include "net.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

int vk_net_watch(struct vk_net *net, int operation, int fd, uint32_t events, enum net_source source)
{
    struct epoll_event event = {.events = events, .data.u32 = source};
    return epoll_ctl(net->epoll_fd, operation, fd, &event) < 0 ? -errno : 0;
}

/* A kick is told once and never read; two queues may share no descriptor, but may have none. */
static int watch_kicks(struct vk_net *net)
{
    vk_queue *const queues[] = {net->rx, net->tx};
    for (int i = 0; i < 2; i++) {
        if (queues[i] == NULL || queues[i]->kick_fd < 0)
            continue;
        int result = vk_net_watch(net, EPOLL_CTL_ADD, queues[i]->kick_fd, EPOLLIN | EPOLLET,
                                  NET_SOURCE_KICK);
        if (result < 0)
            return result;
    }
    return 0;
}

int vk_net_new(const struct vk_net_setup *setup, struct vk_net_counters *counters, vk_net **made)
{
    vk_net *net = calloc(1, sizeof *net);
    if (net == NULL)
        return -ENOMEM;
    net->tap_fd = setup->tap_fd;
    net->rx = setup->rx;
    net->tx = setup->tx;
    net->rx_limiter = setup->rx_limiter;
    net->tx_limiter = setup->tx_limiter;
    net->counters = counters;
    vk_watch_init(&net->watch, setup->poll_most_ns);
    net->chain = vk_chain_new();
    net->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    int result = net->chain == NULL ? -ENOMEM : net->epoll_fd < 0 ? -errno : watch_kicks(net);
    if (result < 0) {
        vk_net_free(net);
        return result;
    }
    *made = net;
    return 0;
}

void vk_net_free(vk_net *net)
{
    if (net->rx_limiter != NULL)
        vk_limiter_leave(net->rx_limiter, &net->rx_turn);
    if (net->tx_limiter != NULL)
        vk_limiter_leave(net->tx_limiter, &net->tx_turn);
    if (net->epoll_fd >= 0)
        close(net->epoll_fd);
    if (net->chain != NULL)
        vk_chain_free(net->chain);
    free(net);
}

int vk_net_fd(const vk_net *net)
{
    return net->epoll_fd;
}

/* A pair at rest does not watch its tap. The first wake afterwards is that the tap takes packets. */
int vk_net_set_enabled(vk_net *net, int enabled)
{
    if (net->is_enabled == (enabled != 0))
        return 0;
    int operation = enabled ? EPOLL_CTL_ADD : EPOLL_CTL_DEL;
    int result = vk_net_watch(net, operation, net->tap_fd, EPOLLOUT, NET_SOURCE_TAP);
    if (result < 0)
        return result;
    net->tap_events = EPOLLOUT;
    net->tx_is_blocked = false;
    net->is_enabled = enabled != 0;
    return 0;
}
