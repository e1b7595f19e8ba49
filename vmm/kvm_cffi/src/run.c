/*
 * The vCPU loop. The thread enters KVM_RUN again and again, serves what C can serve, hands the rest
 * to Python through the slot, and never touches Python itself.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "seccomp.h"
#include "thread.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Exits that the 6.1 headers and older may lack. */
#define EXIT_X86_BUS_LOCK 33

#define HYPERV_HYPERCALL 2 /* KVM_EXIT_HYPERV_HCALL */
#define HV_STATUS_INVALID_HYPERCALL_CODE 2

static void count(_Atomic uint64_t *counter)
{
    /* One writer, so a plain add would do; the store is atomic for Python's sake. */
    uint64_t now = atomic_load_explicit(counter, memory_order_relaxed);
    atomic_store_explicit(counter, now + 1, memory_order_relaxed);
}

/* KVM splits accesses at page borders, so 3, 5, 6 and 7 occur; mechanisms see powers of two only. */
static uint32_t largest_part(uint32_t bytes)
{
    return bytes >= 8 ? 8 : bytes >= 4 ? 4 : bytes >= 2 ? 2 : 1;
}

/* GUEST: every argument but the thread is the guest's choice. False: EXIT was requested. */
static bool serve_access(vk_thread *thread, enum vk_exit_kind kind, uint64_t address, uint8_t *data,
                         uint32_t bytes, bool is_write, uint32_t repeats)
{
    enum vk_space space = kind == VK_EXIT_PIO ? VK_SPACE_PIO : VK_SPACE_MMIO;
    while (bytes != 0) {
        uint32_t part = largest_part(bytes);
        uint64_t value = 0;
        if (is_write)
            memcpy(&value, data, part);
        enum vk_verdict verdict = vk_router_access(thread->router, &thread->reader, space, address,
                                                   part, is_write, &value);
        if (verdict == VK_FOR_LOOP) {
            const struct vk_exit exit = {.kind = kind, .address = address, .size = part,
                                         .is_write = is_write, .count = repeats, .value = value};
            count(&thread->to_loop);
            if (!vk_slot_ask(thread, &exit, &value))
                return false;
        } else {
            count(verdict == VK_ANSWERED ? &thread->in_c : &thread->unclaimed);
        }
        if (!is_write)
            memcpy(data, &value, part);
        data += part;
        address += part;
        bytes -= part;
    }
    return true;
}

/* GUEST: port, size and count are the guest's; the kernel keeps the data within the run area. */
static bool serve_pio(vk_thread *thread)
{
    struct kvm_run *run = thread->run;
    uint32_t size = run->io.size, repeats = run->io.count;
    uint64_t offset = run->io.data_offset;
    bool is_write = run->io.direction == KVM_EXIT_IO_OUT;
    if (offset > thread->run_bytes || (uint64_t)size * repeats > thread->run_bytes - offset)
        return true; /* not a kernel we know; rather ignore the access than leave the area */
    uint8_t *data = (uint8_t *)run + offset;
    for (uint32_t i = 0; i < repeats; i++)
        if (!serve_access(thread, VK_EXIT_PIO, run->io.port, data + (size_t)i * size, size, is_write,
                          repeats))
            return false;
    return true;
}

static bool serve_mmio(vk_thread *thread)
{
    struct kvm_run *run = thread->run;
    uint32_t bytes = run->mmio.len <= sizeof run->mmio.data ? run->mmio.len : sizeof run->mmio.data;
    return serve_access(thread, VK_EXIT_MMIO, run->mmio.phys_addr, run->mmio.data, bytes,
                        run->mmio.is_write != 0, 1);
}

static bool serve_eoi(vk_thread *thread)
{
    const struct vk_exit exit = {.kind = VK_EXIT_IOAPIC_EOI, .count = 1,
                                 .value = thread->run->eoi.vector};
    uint64_t ignored;
    count(&thread->to_loop);
    return vk_slot_ask(thread, &exit, &ignored);
}

/* SynIC register writes need no answer, and the hypercalls KVM hands out are ones we do not have. */
static bool serve_hyperv(vk_thread *thread)
{
    if (thread->run->hyperv.type == HYPERV_HYPERCALL)
        thread->run->hyperv.u.hcall.result = HV_STATUS_INVALID_HYPERCALL_CODE;
    return true;
}

static bool report(vk_thread *thread, enum vk_exit_kind kind, uint64_t value)
{
    struct kvm_run *run = thread->run;
    struct vk_exit exit = {.kind = kind, .value = value};
    const uint64_t *from = exit.data;
    switch (kind) {
    case VK_EXIT_SYSTEM_EVENT:
        exit.data_count = run->system_event.ndata;
        from = (const uint64_t *)run->system_event.data;
        break;
    case VK_EXIT_INTERNAL_ERROR:
        exit.data_count = run->internal.ndata;
        from = (const uint64_t *)run->internal.data;
        break;
    case VK_EXIT_FAIL_ENTRY:
        exit.data_count = 1;
        exit.data[0] = run->fail_entry.cpu;
        break;
    case VK_EXIT_DEBUG:
        exit.data_count = 2;
        exit.data[0] = run->debug.arch.pc;
        exit.data[1] = run->debug.arch.dr6;
        break;
    default:
        break;
    }
    if (exit.data_count > 16)
        exit.data_count = 16;
    if (from != exit.data)
        memcpy(exit.data, from, exit.data_count * sizeof exit.data[0]);
    return vk_slot_report(thread, &exit);
}

/* What KVM_RUN came back with. False: EXIT was requested while this was being served. */
static bool serve_exit(vk_thread *thread)
{
    struct kvm_run *run = thread->run;
    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        thread->must_complete = true;
        return serve_pio(thread);
    case KVM_EXIT_MMIO:
        thread->must_complete = true;
        return serve_mmio(thread);
    case KVM_EXIT_IOAPIC_EOI:
        return serve_eoi(thread);
    case KVM_EXIT_HYPERV:
        thread->must_complete = true;
        return serve_hyperv(thread);
    case KVM_EXIT_X86_RDMSR:
    case KVM_EXIT_X86_WRMSR:
        thread->must_complete = true;
        run->msr.error = 1; /* #GP, as for any register that does not exist */
        return true;
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
    case KVM_EXIT_SET_TPR:
    case EXIT_X86_BUS_LOCK:
        return true;
    case KVM_EXIT_HLT:
        return report(thread, VK_EXIT_HLT, 0);
    case KVM_EXIT_SHUTDOWN:
        return report(thread, VK_EXIT_SHUTDOWN, 0);
    case KVM_EXIT_SYSTEM_EVENT:
        return report(thread, VK_EXIT_SYSTEM_EVENT, run->system_event.type);
    case KVM_EXIT_INTERNAL_ERROR:
        return report(thread, VK_EXIT_INTERNAL_ERROR, run->internal.suberror);
    case KVM_EXIT_FAIL_ENTRY:
        return report(thread, VK_EXIT_FAIL_ENTRY, run->fail_entry.hardware_entry_failure_reason);
    case KVM_EXIT_DEBUG:
        return report(thread, VK_EXIT_DEBUG, run->debug.arch.exception);
    default:
        return report(thread, VK_EXIT_UNEXPECTED, run->exit_reason);
    }
}

/* One KVM_RUN and what follows from it. False: EXIT was requested. */
static bool run_once(vk_thread *thread)
{
    if (ioctl(thread->vcpu_fd, KVM_RUN, NULL) == 0) {
        thread->must_complete = false;
        return serve_exit(thread);
    }
    switch (errno) {
    case EINTR: /* kicked; an access that was open has been completed before KVM looked */
        thread->must_complete = false;
        count(&thread->kicks);
        return true;
    case EAGAIN: /* a processor that has just been started by INIT */
        return true;
    default:
        thread->must_complete = false;
        return report(thread, VK_EXIT_RUN_ERROR, (uint64_t)errno);
    }
}

/*
 * An access that was answered is written into the guest's registers only by the next KVM_RUN. Before
 * the thread stands still, enter with immediate_exit: KVM completes and comes back without running
 * the guest. It may come back with the next part of the same instruction, hence the loop; KVM bounds
 * an instruction to 1024 parts.
 */
static bool complete_access(vk_thread *thread)
{
    while (thread->must_complete) {
        __atomic_store_n(&thread->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
        if (!run_once(thread))
            return false;
    }
    return true;
}

/* A vCPU whose thread cannot be filtered does not run. False: EXIT was requested. */
static bool enter_filter(vk_thread *thread)
{
    for (int error; (error = vk_seccomp_enter(VK_THREAD_VCPU)) != 0;)
        if (!report(thread, VK_EXIT_RUN_ERROR, (uint64_t)-error))
            return false;
    return true;
}

static void run_until_exit(vk_thread *thread)
{
    for (;;) {
        /* Clear first, look after: see kick() for why a request cannot fall between. */
        __atomic_store_n(&thread->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
        uint32_t control = atomic_load(&thread->control);
        if (control == CONTROL_EXIT)
            return;
        if (control == CONTROL_PAUSE) {
            if (!complete_access(thread) || !vk_thread_park(thread))
                return;
            continue;
        }
        /* KVM_NMI is a vCPU ioctl: from any other thread it would wait for KVM_RUN to return. */
        if (atomic_exchange(&thread->nmi, 0) != 0)
            ioctl(thread->vcpu_fd, KVM_NMI);
        if (!run_once(thread))
            return;
    }
}

void *vk_thread_main(void *argument)
{
    vk_thread *thread = argument;
    pthread_setname_np(pthread_self(), thread->name);
    vk_thread_accept_kicks();
    atomic_store(&thread->tid, gettid());
    if (enter_filter(thread)) {
        atomic_store(&thread->state, VK_RUNNING);
        vk_signal(thread->event_fd);
        run_until_exit(thread);
    }
    atomic_store(&thread->state, VK_EXITED);
    vk_signal(thread->event_fd);
    return NULL;
}
