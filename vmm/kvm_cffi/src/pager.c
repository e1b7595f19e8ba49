/*
 * RAM that is read from a file, or asked of a peer, when it is touched and in the background meanwhile.
 *
 * Threads that never need the interpreter: whoever touches a page that is not there sleeps in the
 * kernel until one of them has placed it, and that may well be the thread that holds the interpreter's
 * lock. Whoever gives memory back sleeps until the server has heard of it, so that waits for no peer:
 * with one, another thread asks for what is touched. `todo` has a bit for each page whose content is still only there. A page without one that
 * is touched and not there is zero: a hole of the file, or given back by the guest since.
 *
 * Source: Linux Documentation/admin-guide/mm/userfaultfd.rst.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "faults.h"
#include "pager.h"
#include "seccomp.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#define FAULT_BYTES (64u << 10)  /* what one fault brings, if its neighbours are missing too */
#define MESSAGES 16u
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

static void forget(vk_pager *pager, struct region *region, uint64_t first, uint64_t count)
{
    for (uint64_t page = first; page < first + count; page++) {
        if (!is_todo(region, page))
            continue;
        region->todo[page / 64] &= ~(1ull << page % 64);
        atomic_fetch_sub(&pager->bytes_left, region->page);
    }
}

static void wake(vk_pager *pager, uint64_t address, uint64_t size)
{
    struct uffdio_range range = {.start = address, .len = size};
    ioctl(pager->uffd, UFFDIO_WAKE, &range);
}

/* Somebody waits for what cannot be had: let him run into a page that nobody may touch. */
static void refuse(vk_pager *pager, uint64_t address, uint64_t size)
{
    mprotect((void *)(uintptr_t)address, size, PROT_NONE);
    wake(pager, address, size);
}

static void fail(vk_pager *pager, int error)
{
    int32_t none = 0;
    atomic_compare_exchange_strong(&pager->error, &none, error);
    atomic_store(&pager->state, VK_PAGER_FAILED);
    eventfd_write(pager->event_fd, 1);
}

/*
 * Place pages, all of them todo; the lock is held. 0, or an errno.
 * -EAGAIN: a range is being given back, and the server has to hear of that first.
 */
static int place(vk_pager *pager, struct region *region, uint64_t first, uint64_t count,
                 const uint8_t *source)
{
    while (count > 0) {
        struct uffdio_copy copy = {
            .dst = region->hva + first * region->page,
            .src = (uintptr_t)source,
            .len = count * region->page,
        };
        int result = ioctl(pager->uffd, UFFDIO_COPY, &copy) == 0 ? 0 : errno;
        uint64_t done = copy.copy > 0 ? (uint64_t)copy.copy / region->page : 0;
        if (result == EEXIST && done == 0) {
            done = 1;
            wake(pager, copy.dst, region->page);
        }
        forget(pager, region, first, done);
        source += done * region->page;
        first += done;
        count -= done;
        if (result == EAGAIN && done == 0)
            return -EAGAIN;
        if (result != 0 && result != EEXIST && result != EAGAIN)
            return result;
    }
    return 0;
}

/* Zero, where the file has nothing; a page that is there already only has its waiters woken. */
static void place_zeros(vk_pager *pager, const struct region *region, uint64_t page)
{
    uint64_t address = region->hva + page * region->page;
    struct uffdio_zeropage zero = {.range = {.start = address, .len = region->page}};
    if (ioctl(pager->uffd, UFFDIO_ZEROPAGE, &zero) == 0)
        return;
    if (errno == EINVAL) { /* huge pages have no shared page of zeros */
        void *zeros = mmap(NULL, region->page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (zeros != MAP_FAILED) {
            struct uffdio_copy copy = {
                .dst = address, .src = (uintptr_t)zeros, .len = region->page};
            ioctl(pager->uffd, UFFDIO_COPY, &copy);
            munmap(zeros, region->page);
        }
    }
    wake(pager, address, region->page);
}

static struct region *region_at(vk_pager *pager, uint64_t address)
{
    for (uint32_t i = 0; i < pager->count; i++) {
        struct region *region = &pager->regions[i];
        if (address - region->hva < region->size)
            return region;
    }
    return NULL;
}

/* How many pages from `first` on are todo, up to a limit. */
static uint64_t run_of(const struct region *region, uint64_t first, uint64_t most)
{
    uint64_t count = 0;
    while (count < most && first + count < region->size / region->page &&
           is_todo(region, first + count))
        count++;
    return count;
}

/* The same of a peer's answer, without what was given back since it was asked for. */
static int place_arrived(vk_pager *pager, struct region *region, uint64_t first, uint64_t count)
{
    int result = 0;
    pthread_mutex_lock(&pager->lock);
    for (uint64_t page = first; page < first + count && result == 0;) {
        uint64_t run = run_of(region, page, first + count - page);
        if (run != 0)
            result = place(pager, region, page, run,
                           pager->arrived + (page - first) * region->page);
        page += run != 0 ? run : 1;
    }
    pthread_mutex_unlock(&pager->lock);
    return result;
}

/*
 * Have a peer's pages from one on, as far as they are todo; `count` says how many those were. 0, or an
 * errno or -EAGAIN as above. A connection that has failed is used no more: what comes on it late would
 * be taken for another page.
 */
static int bring(vk_pager *pager, struct region *region, uint64_t first, uint64_t most,
                 uint64_t *count)
{
    pthread_mutex_lock(&pager->peer_lock);
    pthread_mutex_lock(&pager->lock);
    *count = run_of(region, first, most);
    pthread_mutex_unlock(&pager->lock);
    int result = 0;
    if (*count != 0) {
        uint64_t gpa = region->offset + first * region->page;
        result = atomic_load(&pager->is_stopping)
                     ? ECANCELED
                     : -vk_faults_ask(pager->peer_fd, gpa, region->page, *count, pager->arrived,
                                      &pager->is_stopping);
        if (result != 0)
            atomic_store(&pager->is_stopping, true);
        else
            result = place_arrived(pager, region, first, *count);
    }
    pthread_mutex_unlock(&pager->peer_lock);
    return result;
}

static uint64_t pages_in(const struct region *region, uint64_t bytes)
{
    return bytes > region->page ? bytes / region->page : 1;
}

/* Have the file's pages in memory before the lock is taken; an error shows when they are copied. */
static void fetch(const struct region *region, uint64_t first, uint64_t count)
{
    if (region->source == NULL)
        return;
    uintptr_t start = (uintptr_t)(region->source + first * region->page) & ~4095ull;
    uintptr_t end = (uintptr_t)(region->source + (first + count) * region->page);
    madvise((void *)start, end - start, MADV_POPULATE_READ);
}

/* What has become of the pages that somebody waits for at one of them. */
static void settle(vk_pager *pager, struct region *region, uint64_t page, int result)
{
    uint64_t address = region->hva + page * region->page;
    if (result == -EAGAIN)
        wake(pager, address, region->page); /* he touches it once more */
    if (result > 0) {
        fail(pager, result); /* before whoever waits meets it: that is why, and not what he says */
        refuse(pager, address, region->page);
    }
}

static void serve_fault(vk_pager *pager, struct region *region, uint64_t page)
{
    uint64_t most = pages_in(region, FAULT_BYTES);
    fetch(region, page, run_of(region, page, most)); /* a guess: another may be placing them */
    pthread_mutex_lock(&pager->lock);
    uint64_t count = run_of(region, page, most);
    int result = 0;
    if (count > 0)
        result = place(pager, region, page, count, region->source + page * region->page);
    else
        place_zeros(pager, region, page);
    pthread_mutex_unlock(&pager->lock);
    settle(pager, region, page, result);
}

/* Leave a fault to the asker, unless it is one that only wants zeros. */
static void want(vk_pager *pager, struct region *region, uint64_t page)
{
    uint64_t address = region->hva + page * region->page;
    pthread_mutex_lock(&pager->lock);
    if (!is_todo(region, page)) {
        place_zeros(pager, region, page);
    } else if (pager->wanted_count == MOST_WANTED) {
        wake(pager, address, region->page); /* he touches it once more */
    } else {
        uint32_t at = (pager->wanted_first + pager->wanted_count++) % MOST_WANTED;
        pager->wanted[at] = address;
        pthread_cond_signal(&pager->wanted_changed);
    }
    pthread_mutex_unlock(&pager->lock);
}

static void want_no_more(vk_pager *pager)
{
    pthread_mutex_lock(&pager->lock);
    pager->wants_no_more = true;
    pthread_cond_signal(&pager->wanted_changed);
    pthread_mutex_unlock(&pager->lock);
}

/* The address of the next fault, once there is one; 0 when there will be none. */
static uint64_t next_wanted(vk_pager *pager)
{
    uint64_t address = 0;
    pthread_mutex_lock(&pager->lock);
    while (pager->wanted_count == 0 && !pager->wants_no_more)
        pthread_cond_wait(&pager->wanted_changed, &pager->lock);
    if (pager->wanted_count != 0) {
        address = pager->wanted[pager->wanted_first];
        pager->wanted_first = (pager->wanted_first + 1) % MOST_WANTED;
        pager->wanted_count--;
    }
    pthread_mutex_unlock(&pager->lock);
    return address;
}

/* What cannot be filtered brings the VM to no end but failure; faults are still answered till then. */
static vk_pager *enter(void *argument)
{
    vk_pager *pager = argument;
    int error = vk_seccomp_enter(VK_THREAD_PAGER);
    if (error != 0) {
        fail(pager, -error);
        atomic_store(&pager->is_stopping, true);
    }
    return pager;
}

void *vk_pager_answer(void *argument)
{
    vk_pager *pager = enter(argument);
    for (uint64_t address; (address = next_wanted(pager)) != 0;) {
        struct region *region = region_at(pager, address);
        uint64_t page = (address - region->hva) / region->page, count;
        int result = bring(pager, region, page, pages_in(region, FAULT_BYTES), &count);
        if (result == 0 && count == 0) {
            pthread_mutex_lock(&pager->lock);
            place_zeros(pager, region, page);
            pthread_mutex_unlock(&pager->lock);
        } else if (result == 0) {
            wake(pager, address, region->page); /* had it been given back, he touches it once more */
        }
        settle(pager, region, page, result);
    }
    return NULL;
}

static void serve_removal(vk_pager *pager, uint64_t start, uint64_t end)
{
    struct region *region = region_at(pager, start);
    if (region == NULL)
        return;
    pthread_mutex_lock(&pager->lock);
    uint64_t first = (start - region->hva) / region->page;
    forget(pager, region, first, (end - start) / region->page);
    pthread_mutex_unlock(&pager->lock);
}

static void hear_fault(vk_pager *pager, uint64_t address)
{
    struct region *region = region_at(pager, address);
    if (region == NULL)
        return;
    atomic_fetch_add(&pager->faults, 1);
    uint64_t page = (address - region->hva) / region->page;
    if (pager->peer_fd < 0)
        serve_fault(pager, region, page);
    else
        want(pager, region, page);
}

void *vk_pager_serve(void *argument)
{
    vk_pager *pager = enter(argument);
    struct uffd_msg messages[MESSAGES];
    struct pollfd polled[] = {{pager->uffd, POLLIN, 0}, {pager->stop_fd, POLLIN, 0}};
    for (;;) {
        if (poll(polled, 2, -1) < 0 && errno != EINTR)
            break;
        ssize_t got = read(pager->uffd, messages, sizeof messages);
        for (ssize_t i = 0; i < got / (ssize_t)sizeof messages[0]; i++) {
            const struct uffd_msg *message = &messages[i];
            if (message->event == UFFD_EVENT_PAGEFAULT)
                hear_fault(pager, message->arg.pagefault.address);
            else if (message->event == UFFD_EVENT_REMOVE)
                serve_removal(pager, message->arg.remove.start, message->arg.remove.end);
        }
        if (got <= 0 && (polled[1].revents & POLLIN) != 0)
            break;
    }
    want_no_more(pager);
    return NULL;
}

/* Place the next run of a region from a page on; the page behind it. */
static uint64_t fill_some(vk_pager *pager, struct region *region, uint64_t page)
{
    uint64_t most = pages_in(region, FILL_BYTES), count;
    int result;
    if (pager->peer_fd >= 0) {
        result = bring(pager, region, page, most, &count);
    } else {
        fetch(region, page, run_of(region, page, most));
        pthread_mutex_lock(&pager->lock);
        count = run_of(region, page, most);
        result = place(pager, region, page, count, region->source + page * region->page);
        pthread_mutex_unlock(&pager->lock);
    }
    if (result == -EAGAIN) {
        sched_yield();
        return page;
    }
    if (result > 0) {
        fail(pager, result);
        atomic_store(&pager->is_stopping, true); /* faults are still answered */
    }
    return page + (count > 0 ? count : 1);
}

void *vk_pager_fill(void *argument)
{
    vk_pager *pager = enter(argument);
    setpriority(PRIO_PROCESS, 0, 19); /* of this thread: the guest and who waits come first */
    for (uint32_t i = 0; i < pager->count; i++) {
        struct region *region = &pager->regions[i];
        uint64_t pages = region->size / region->page;
        for (uint64_t page = 0; page < pages;) {
            if (atomic_load(&pager->is_stopping))
                return NULL;
            if (page % 64 == 0 && region->todo[page / 64] == 0)
                page += 64;
            else
                page = is_todo(region, page) ? fill_some(pager, region, page) : page + 1;
        }
    }
    /* All is there, or zero: from here on the kernel does without us. */
    for (uint32_t i = 0; i < pager->count; i++) {
        struct uffdio_range range = {pager->regions[i].hva, pager->regions[i].size};
        ioctl(pager->uffd, UFFDIO_UNREGISTER, &range);
    }
    atomic_store(&pager->state, VK_PAGER_DONE);
    eventfd_write(pager->stop_fd, 1);
    eventfd_write(pager->event_fd, 1);
    return NULL;
}
