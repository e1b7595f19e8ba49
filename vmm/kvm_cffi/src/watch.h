/*
 * How long an engine watches its rings after a batch, before it asks to be woken.
 *
 * A wake of the loop costs tens of microseconds, so a few of watching are cheap where something comes.
 * The while grows when something did, or came so soon afterwards that the wake was dearer than the
 * wait; it shrinks when nothing does. A guest that is idle has no batches, and costs nothing.
 */
#ifndef WATCH_H
#define WATCH_H

#include <stdbool.h>
#include <stdint.h>

struct vk_watch {
    uint64_t now_ns; /* the while; 0: never */
    uint64_t least_ns;
    uint64_t most_ns;
    uint64_t armed_ns; /* when the engine asked to be woken last */
};

void vk_watch_init(struct vk_watch *watch, uint64_t most_ns);

/* A call begins: was what woke it so soon that watching would have seen it? */
void vk_watch_woken(struct vk_watch *watch, uint64_t now_ns);

/* Watches for the while: true at once when there is something. */
bool vk_watch_rings(struct vk_watch *watch, bool (*is_ready)(void *), void *engine);

#endif
