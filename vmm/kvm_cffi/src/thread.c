/* Making, steering and ending a vCPU's thread. Everything here is called by the one Python thread. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "thread.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

/* Directed at vCPU threads only, never at the process; glibc keeps the first real-time ones. */
#define KICK_SIGNAL (SIGRTMIN + 5)

static void on_kick(int signal_number)
{
    (void)signal_number; /* its arrival is the message: KVM_RUN returns EINTR */
}

static int install_kick_handler(void)
{
    struct sigaction action = {.sa_handler = on_kick}; /* no SA_RESTART: system calls must return */
    sigemptyset(&action.sa_mask);
    return sigaction(KICK_SIGNAL, &action, NULL) == 0 ? 0 : -errno;
}

vk_thread *vk_thread_new(int vcpu_fd, void *run, uint64_t run_bytes, vk_router *router,
                         int event_fd, const char *name)
{
    vk_thread *thread = calloc(1, sizeof *thread);
    if (thread == NULL)
        return NULL;
    thread->vcpu_fd = vcpu_fd;
    thread->run = run;
    thread->run_bytes = run_bytes;
    thread->router = router;
    thread->event_fd = event_fd;
    thread->spin_ns = VK_MOST_SPIN_NS;
    strncpy(thread->name, name, sizeof thread->name - 1);
    return thread;
}

static int set_affinity(pthread_attr_t *attributes, const uint32_t *host_cpus, uint32_t count)
{
    uint32_t highest = 0;
    for (uint32_t i = 0; i < count; i++)
        highest = host_cpus[i] > highest ? host_cpus[i] : highest;
    cpu_set_t *set = CPU_ALLOC((size_t)highest + 1);
    if (set == NULL)
        return -ENOMEM;
    size_t size = CPU_ALLOC_SIZE((size_t)highest + 1);
    CPU_ZERO_S(size, set);
    for (uint32_t i = 0; i < count; i++)
        CPU_SET_S(host_cpus[i], size, set);
    int error = pthread_attr_setaffinity_np(attributes, size, set);
    CPU_FREE(set);
    return -error;
}

/*
 * The thread is born with every signal blocked, so that none of Python's signals lands in it. All but
 * the one that its own breach of its filter raises: where that is blocked, it dies of it in silence.
 */
static int create(vk_thread *thread, const uint32_t *host_cpus, uint32_t host_cpu_count)
{
    pthread_attr_t attributes;
    sigset_t none_allowed;
    sigfillset(&none_allowed);
    sigdelset(&none_allowed, SIGSYS);
    int error = -pthread_attr_init(&attributes);
    if (error != 0)
        return error;
    error = -pthread_attr_setsigmask_np(&attributes, &none_allowed);
    if (error == 0 && host_cpu_count != 0)
        error = set_affinity(&attributes, host_cpus, host_cpu_count);
    if (error == 0)
        error = -pthread_create(&thread->id, &attributes, vk_thread_main, thread);
    pthread_attr_destroy(&attributes);
    return error;
}

int vk_thread_start(vk_thread *thread, const uint32_t *host_cpus, uint32_t host_cpu_count)
{
    if (thread->is_started || atomic_load(&thread->state) != VK_STOPPED)
        return -EALREADY;
    int error = install_kick_handler();
    if (error != 0)
        return error;
    vk_router_add_reader(thread->router, &thread->reader);
    error = create(thread, host_cpus, host_cpu_count);
    if (error != 0)
        vk_router_remove_reader(thread->router, &thread->reader);
    else
        thread->is_started = true;
    return error;
}

/* In the new thread: let the kick, and nothing else, interrupt it. */
void vk_thread_accept_kicks(void)
{
    sigset_t kick_only;
    sigemptyset(&kick_only);
    sigaddset(&kick_only, KICK_SIGNAL);
    pthread_sigmask(SIG_UNBLOCK, &kick_only, NULL);
}

/*
 * Make the thread look at its control word and NMI flag, which the caller has already changed.
 *
 * - Inside KVM_RUN: the signal ends it with EINTR.
 * - On its way into KVM_RUN, past its look: immediate_exit, stored here before the signal, makes
 *   KVM_RUN return at once. The thread clears immediate_exit only before it looks, and the change
 *   was made before immediate_exit was set, so a set that gets cleared belongs to a change that
 *   gets seen.
 * - Waiting on the futex: the signal ends the wait, and vk_thread_changed ends it as well.
 */
static void kick(vk_thread *thread)
{
    if (!thread->is_started)
        return; /* it looks when it starts */
    __atomic_store_n(&thread->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    pthread_kill(thread->id, KICK_SIGNAL);
}

/* EXIT is final: a later wish does not undo it. */
static void set_control(vk_thread *thread, uint32_t wanted)
{
    uint32_t now = atomic_load(&thread->control);
    while (now != CONTROL_EXIT && !atomic_compare_exchange_weak(&thread->control, &now, wanted))
        ;
    vk_thread_changed(thread);
}

void vk_thread_request_pause(vk_thread *thread)
{
    set_control(thread, CONTROL_PAUSE);
    kick(thread);
}

void vk_thread_resume(vk_thread *thread)
{
    set_control(thread, CONTROL_RUN);
}

void vk_thread_request_exit(vk_thread *thread)
{
    set_control(thread, CONTROL_EXIT);
    kick(thread);
}

void vk_thread_inject_nmi(vk_thread *thread)
{
    atomic_store(&thread->nmi, 1);
    kick(thread);
}

int vk_thread_join(vk_thread *thread)
{
    if (!thread->is_started)
        return 0;
    int error = -pthread_join(thread->id, NULL);
    if (error == 0) {
        thread->is_started = false;
        vk_router_remove_reader(thread->router, &thread->reader);
    }
    return error;
}

/* The thread has been joined, or was never started. */
void vk_thread_free(vk_thread *thread)
{
    free(thread);
}

int vk_thread_state(vk_thread *thread)
{
    return (int)atomic_load(&thread->state);
}

int vk_thread_tid(vk_thread *thread)
{
    return (int)atomic_load(&thread->tid);
}

void vk_thread_exit_counts(vk_thread *thread, struct vk_exit_counts *counts)
{
    counts->in_c = atomic_load_explicit(&thread->in_c, memory_order_relaxed);
    counts->unclaimed = atomic_load_explicit(&thread->unclaimed, memory_order_relaxed);
    counts->to_loop = atomic_load_explicit(&thread->to_loop, memory_order_relaxed);
    counts->kicks = atomic_load_explicit(&thread->kicks, memory_order_relaxed);
}
