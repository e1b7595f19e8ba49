/* Watching rings for a while: watch.h says what for. */
#include "watch.h"

#include "limiter.h"

#define LEAST_NS 4000u /* enough for a driver that polls, little beside a wake */
#define WAKE_NS 60000u /* what it takes until the loop has been woken, about */
#define LOOKS 16       /* between two at the clock */

void vk_watch_init(struct vk_watch *watch, uint64_t most_ns)
{
    uint64_t least_ns = most_ns < LEAST_NS ? most_ns : LEAST_NS;
    *watch = (struct vk_watch){.now_ns = least_ns, .least_ns = least_ns, .most_ns = most_ns};
}

static void grow(struct vk_watch *watch)
{
    uint64_t wanted = watch->now_ns * 2;
    watch->now_ns = wanted < watch->most_ns ? wanted : watch->most_ns;
}

static void shrink(struct vk_watch *watch)
{
    uint64_t wanted = watch->now_ns / 2;
    watch->now_ns = wanted > watch->least_ns ? wanted : watch->least_ns;
}

void vk_watch_woken(struct vk_watch *watch, uint64_t now_ns)
{
    if (now_ns - watch->armed_ns <= watch->most_ns + WAKE_NS)
        grow(watch);
}

bool vk_watch_rings(struct vk_watch *watch, bool (*is_ready)(void *), void *engine)
{
    if (watch->now_ns == 0)
        return false;
    uint64_t end_ns = vk_now_ns() + watch->now_ns;
    do {
        for (int i = 0; i < LOOKS; i++) {
            if (is_ready(engine)) {
                grow(watch);
                return true;
            }
            __builtin_ia32_pause();
        }
    } while (vk_now_ns() < end_ns);
    shrink(watch);
    return false;
}
