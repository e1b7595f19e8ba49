/* What the host's processor and scheduler are asked for outside KVM. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "kvm_cffi.h"

#include <cpuid.h>
#include <errno.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define VK_ARCH_REQ_XCOMP_GUEST_PERM 0x1025
#define VK_XFEATURE_XTILE_DATA 18
#define VK_PR_SCHED_CORE 62
#define VK_PR_SCHED_CORE_CREATE 1
#define VK_PIDTYPE_PID 0

void vk_cpuid(uint32_t function, uint32_t index, uint32_t *registers)
{
    __cpuid_count(function, index, registers[0], registers[1], registers[2], registers[3]);
}

int vk_request_amx_for_guests(void)
{
    long result = syscall(SYS_arch_prctl, VK_ARCH_REQ_XCOMP_GUEST_PERM, VK_XFEATURE_XTILE_DATA);
    return result == 0 ? 0 : -errno;
}

int vk_create_core_scheduling_cookie(void)
{
    int result = prctl(VK_PR_SCHED_CORE, VK_PR_SCHED_CORE_CREATE, 0, VK_PIDTYPE_PID, 0);
    return result == 0 ? 0 : -errno;
}
