/* A vCPU's thread: its control word, its exit slot, and what the two files that serve them share. */
#ifndef THREAD_H
#define THREAD_H

#include "kvm_cffi.h"

#include <sys/types.h>

#define VK_MOST_SPIN_NS 60000u

enum control { CONTROL_RUN, CONTROL_PAUSE, CONTROL_EXIT };

/* Who may touch the slot: the thread when EMPTY or ANSWERED, Python when FULL or TAKEN. */
enum slot_state { SLOT_EMPTY, SLOT_FULL, SLOT_TAKEN, SLOT_ANSWERED };

struct vk_thread {
    struct vk_reader reader;
    vk_router *router;
    struct kvm_run *run;
    uint64_t run_bytes;
    int vcpu_fd;
    int event_fd;
    char name[16];

    pthread_t id;
    bool is_started; /* and not yet joined; touched by the controlling thread alone */
    bool must_complete; /* KVM holds an access that the next KVM_RUN finishes; the vCPU thread's */

    _Atomic uint32_t control; /* enum control; EXIT is for ever */
    _Atomic uint32_t state;   /* enum vk_thread_state */
    _Atomic uint32_t nmi;     /* one is wanted */
    _Atomic uint32_t wake;    /* futex: counts changes of what a waiting thread waits for */
    _Atomic uint32_t slot_state;
    _Atomic pid_t tid;

    struct vk_exit slot;
    uint64_t answer;
    uint32_t spin_ns; /* how long to look for an answer before sleeping; the vCPU thread's */

    /* Written by the vCPU thread only; atomic so that Python may look at any time. */
    _Atomic uint64_t in_c, unclaimed, to_loop, kicks;
};

/* Let the kick signal interrupt the calling thread. */
void vk_thread_accept_kicks(void);

/* The body of the thread. */
void *vk_thread_main(void *thread);

/* Tell a waiting thread to look again; call it after the change. */
void vk_thread_changed(vk_thread *thread);

/* Fill the slot, tell Python and wait for the answer. False: EXIT was requested meanwhile. */
bool vk_slot_ask(vk_thread *thread, const struct vk_exit *exit, uint64_t *answer);

/* Fill the slot, tell Python, and wait for resume. False: EXIT was requested meanwhile. */
bool vk_slot_report(vk_thread *thread, const struct vk_exit *exit);

/* Stand still while PAUSE is requested. False: EXIT was requested. */
bool vk_thread_park(vk_thread *thread);

#endif
