/* Landlock: a thread, and those it makes from then on, may open only what a ruleset allows. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "kvm_cffi.h"

#include <errno.h>
#include <linux/landlock.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int vk_landlock_abi(void)
{
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    return version >= 0 ? (int)version : -errno;
}

int vk_landlock_new(uint64_t handled)
{
    /* Only the first field, which every version of the kernel knows. */
    uint64_t attributes = handled;
    long fd = syscall(SYS_landlock_create_ruleset, &attributes, sizeof attributes, 0);
    return fd >= 0 ? (int)fd : -errno;
}

int vk_landlock_allow(int ruleset, int path_fd, uint64_t rights)
{
    const struct landlock_path_beneath_attr rule = {.allowed_access = rights, .parent_fd = path_fd};
    long result = syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0);
    return result == 0 ? 0 : -errno;
}

int vk_landlock_restrict(int ruleset)
{
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return -errno;
    return syscall(SYS_landlock_restrict_self, ruleset, 0) == 0 ? 0 : -errno;
}
