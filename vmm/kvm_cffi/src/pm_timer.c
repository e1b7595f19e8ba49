/* The ACPI power-management timer: a 32-bit counter at 3.579545 MHz. ACPI 6.5, section 4.8.3.3. */
#include "kvm_cffi.h"

#include <stdlib.h>
#include <time.h>

#define PM_TIMER_HZ 3579545u
#define NS_PER_S 1000000000u

struct vk_pm_timer {
    vk_mechanism mechanism;
    _Atomic uint32_t offset_ticks;
};

/* Seconds and remainder apart: nanoseconds since boot times the frequency would not fit 64 bits. */
static uint32_t monotonic_ticks(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    uint64_t ticks = (uint64_t)now.tv_sec * PM_TIMER_HZ;
    return (uint32_t)(ticks + (uint64_t)now.tv_nsec * PM_TIMER_HZ / NS_PER_S);
}

static bool pm_timer_read(vk_mechanism *self, uint64_t offset, uint32_t size, uint64_t *value)
{
    vk_pm_timer *timer = (vk_pm_timer *)self;
    uint32_t ticks = monotonic_ticks() + atomic_load(&timer->offset_ticks);
    (void)size;
    *value = offset < sizeof ticks ? ticks >> (8 * offset) : UINT64_MAX; /* GUEST: any offset */
    return true;
}

static bool pm_timer_write(vk_mechanism *self, uint64_t offset, uint32_t size, uint64_t value)
{
    (void)self;
    (void)offset;
    (void)size;
    (void)value;
    return true; /* read-only register */
}

vk_pm_timer *vk_pm_timer_new(uint32_t offset_ticks)
{
    static const struct vk_mechanism_ops ops = {.read = pm_timer_read, .write = pm_timer_write};
    vk_pm_timer *timer = calloc(1, sizeof *timer);
    if (timer == NULL)
        return NULL;
    timer->mechanism.ops = &ops;
    atomic_init(&timer->offset_ticks, offset_ticks);
    return timer;
}

uint32_t vk_pm_timer_get_offset(vk_pm_timer *timer)
{
    return atomic_load(&timer->offset_ticks);
}

void vk_pm_timer_set_offset(vk_pm_timer *timer, uint32_t offset_ticks)
{
    atomic_store(&timer->offset_ticks, offset_ticks);
}
