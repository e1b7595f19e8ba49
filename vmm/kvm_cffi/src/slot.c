/*
 * The exit slot and every place where a vCPU thread waits.
 *
 * There is one futex, `wake`, used as an event count. A waiter reads it, then looks at what it waits
 * for, then sleeps only if the count has not moved. Whoever changes something a waiter looks at makes
 * the change first and moves the count after. So a change is either seen by the look, or moves the
 * count and turns the sleep into a return: no wake-up is lost.
 *
 * Towards Python the same holds with the eventfd: the slot or the state is written first, the eventfd
 * after; Python clears the eventfd first and looks after.
 */
#include "thread.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

static void wait_for_change(vk_thread *thread, uint32_t seen)
{
    /* Returns at once when the count moved (EAGAIN), or early on a kick (EINTR): callers look again. */
    syscall(SYS_futex, &thread->wake, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

void vk_thread_changed(vk_thread *thread)
{
    atomic_fetch_add(&thread->wake, 1);
    syscall(SYS_futex, &thread->wake, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/*
 * To wake this thread again costs more than most answers take, so it looks for the answer for a while
 * before it sleeps. The while grows when that helped, or would have: the answer came so soon after that
 * the wake was the dearer part. It shrinks when the answer takes long, or the loop waits for this very
 * processor.
 */
#define LEAST_SPIN_NS 1000u
#define WAKE_NS 60000u /* what it takes until the thread runs again, about */
#define LOOKS 16       /* between two at the clock */

static void learn(vk_thread *thread, uint64_t waited_ns)
{
    if (waited_ns <= VK_MOST_SPIN_NS + WAKE_NS) {
        uint32_t more = thread->spin_ns * 2;
        thread->spin_ns = more < VK_MOST_SPIN_NS ? more : VK_MOST_SPIN_NS;
    } else {
        uint32_t less = thread->spin_ns / 2;
        thread->spin_ns = less > LEAST_SPIN_NS ? less : LEAST_SPIN_NS;
    }
}

static void spin_for_answer(vk_thread *thread, uint64_t asked_ns)
{
    do {
        for (int i = 0; i < LOOKS; i++) {
            if (atomic_load(&thread->slot_state) == SLOT_ANSWERED)
                return;
            __builtin_ia32_pause();
        }
    } while (vk_now_ns() - asked_ns < thread->spin_ns);
}

/* ---- the vCPU thread's side ---- */

bool vk_slot_ask(vk_thread *thread, const struct vk_exit *exit, uint64_t *answer)
{
    thread->slot = *exit;
    atomic_store(&thread->slot_state, SLOT_FULL);
    uint64_t asked_ns = vk_now_ns();
    vk_signal(thread->event_fd);
    spin_for_answer(thread, asked_ns);
    for (;;) {
        uint32_t seen = atomic_load(&thread->wake);
        if (atomic_load(&thread->slot_state) == SLOT_ANSWERED)
            break;
        /* PAUSE does not end this wait: the access is finished first, then the thread stands. */
        if (atomic_load(&thread->control) == CONTROL_EXIT)
            return false;
        wait_for_change(thread, seen);
    }
    *answer = thread->answer;
    atomic_store(&thread->slot_state, SLOT_EMPTY);
    learn(thread, vk_now_ns() - asked_ns);
    return true;
}

bool vk_thread_park(vk_thread *thread)
{
    uint32_t running = VK_RUNNING;
    for (;;) {
        uint32_t seen = atomic_load(&thread->wake);
        uint32_t control = atomic_load(&thread->control);
        if (control == CONTROL_EXIT)
            return false;
        /* A report not yet read keeps the slot, so the guest must not run and make another. */
        if (control == CONTROL_RUN && atomic_load(&thread->slot_state) == SLOT_EMPTY)
            break;
        if (atomic_compare_exchange_strong(&thread->state, &running, VK_PAUSED))
            vk_signal(thread->event_fd);
        running = VK_RUNNING;
        wait_for_change(thread, seen);
    }
    /*
     * The state is stored before the caller looks at the control word again, and Python stores the
     * control word before it looks at the state. So whoever asks for a pause and then reads "paused"
     * knows that the thread will see the request before it enters the guest.
     */
    if (atomic_exchange(&thread->state, VK_RUNNING) != VK_RUNNING)
        vk_signal(thread->event_fd);
    return true;
}

bool vk_slot_report(vk_thread *thread, const struct vk_exit *exit)
{
    uint32_t run = CONTROL_RUN;
    thread->slot = *exit;
    /* The thread pauses itself; a PAUSE or EXIT that is already there stays. */
    atomic_compare_exchange_strong(&thread->control, &run, CONTROL_PAUSE);
    atomic_store(&thread->state, VK_PAUSED);
    atomic_store(&thread->slot_state, SLOT_FULL);
    vk_signal(thread->event_fd);
    return vk_thread_park(thread);
}

/* ---- Python's side ---- */

int vk_thread_take_exit(vk_thread *thread, struct vk_exit *exit)
{
    if (atomic_load(&thread->slot_state) != SLOT_FULL)
        return 0;
    *exit = thread->slot;
    if (exit->kind <= VK_EXIT_IOAPIC_EOI) {
        atomic_store(&thread->slot_state, SLOT_TAKEN);
    } else { /* nobody waits for an answer, but the thread may wait for the slot */
        atomic_store(&thread->slot_state, SLOT_EMPTY);
        vk_thread_changed(thread);
    }
    return 1;
}

int vk_thread_answer(vk_thread *thread, uint64_t value)
{
    /* Only Python moves the slot on from TAKEN, so looking and storing need not be one step. */
    if (atomic_load(&thread->slot_state) != SLOT_TAKEN)
        return -EPROTO;
    thread->answer = value;
    atomic_store(&thread->slot_state, SLOT_ANSWERED);
    vk_thread_changed(thread);
    return 0;
}
