/* System calls whose result carries the errno, so that Python reads one number. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "kvm_cffi.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int vk_open(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    return fd >= 0 ? fd : -errno;
}

/* A signal to this process may interrupt the slow ones, KVM_CREATE_VM above all: they start over. */
int vk_ioctl(int fd, uint64_t request, void *argument)
{
    int result;
    do
        result = ioctl(fd, request, argument);
    while (result < 0 && errno == EINTR);
    return result >= 0 ? result : -errno;
}

int vk_ioctl_value(int fd, uint64_t request, uint64_t argument)
{
    return vk_ioctl(fd, request, (void *)(uintptr_t)argument);
}

/* Here and not in Python: the table is long, and is sent again for every vector that is unmasked. */
int vk_set_gsi_routing(int vm_fd, const struct vk_msi_route *routes, uint32_t count)
{
    struct kvm_irq_routing *table = calloc(1, sizeof *table + count * sizeof table->entries[0]);
    if (table == NULL)
        return -ENOMEM;
    table->nr = count;
    for (uint32_t i = 0; i < count; i++) {
        table->entries[i].gsi = routes[i].gsi;
        table->entries[i].type = KVM_IRQ_ROUTING_MSI;
        table->entries[i].u.msi.address_lo = (uint32_t)routes[i].address;
        table->entries[i].u.msi.address_hi = (uint32_t)(routes[i].address >> 32);
        table->entries[i].u.msi.data = routes[i].data;
    }
    int result = vk_ioctl(vm_fd, KVM_SET_GSI_ROUTING, table);
    free(table);
    return result;
}

int vk_map_run(int vcpu_fd, uint64_t run_bytes, void **run)
{
    *run = mmap(NULL, run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_fd, 0);
    return *run == MAP_FAILED ? -errno : 0;
}

int vk_unmap_run(void *run, uint64_t run_bytes)
{
    return munmap(run, run_bytes) == 0 ? 0 : -errno;
}

/* What KVM leaves in the run area at an exit; cffi cannot name a member of the union it is in. */
struct kvm_sync_regs *vk_sync_regs(void *run)
{
    return &((struct kvm_run *)run)->s.regs;
}

#define NODE_BITS 1024u

int vk_bind_to_node(uint64_t address, uint64_t size, uint32_t node)
{
    unsigned long nodes[NODE_BITS / (8 * sizeof(unsigned long))] = {0};
    const uint32_t word_bits = 8 * sizeof nodes[0];
    if (node >= NODE_BITS)
        return -EINVAL;
    nodes[node / word_bits] = 1ul << (node % word_bits);
    /* The kernel takes one bit fewer than the count it is given. */
    long result = syscall(SYS_mbind, address, size, MPOL_BIND, nodes, (unsigned long)NODE_BITS + 1,
                          MPOL_MF_STRICT | MPOL_MF_MOVE);
    return result == 0 ? 0 : -errno;
}

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* The yardstick of the bench: exits that are not looked at. Nanoseconds, or a negative errno. */
int64_t vk_raw_exit_loop(int vcpu_fd, void *run, uint64_t exits)
{
    const struct kvm_run *area = run;
    int64_t start = now_ns();
    for (uint64_t i = 0; i < exits; i++) {
        if (ioctl(vcpu_fd, KVM_RUN, NULL) < 0)
            return -errno;
        if (area->exit_reason != KVM_EXIT_IO && area->exit_reason != KVM_EXIT_MMIO)
            return -EPROTO;
    }
    return now_ns() - start;
}
