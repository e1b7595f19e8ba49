/* The life of a pager: what it watches, where the content is, its threads. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "pager.h"
#include "uffd.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

int vk_pager_new(int file_fd, uint64_t file_size, int event_fd, vk_pager **made)
{
    vk_pager *pager = calloc(1, sizeof *pager);
    if (pager == NULL)
        return -ENOMEM;
    pager->event_fd = event_fd;
    pager->stop_fd = -1;
    pager->peer_fd = -1;
    pager->file_size = file_size;
    pthread_mutex_init(&pager->peer_lock, NULL);
    pthread_mutex_init(&pager->lock, NULL);
    pthread_cond_init(&pager->wanted_changed, NULL);
    pager->uffd = vk_uffd_open();
    int result = pager->uffd < 0 ? pager->uffd : 0;
    if (result == 0 && (pager->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
        result = -errno;
    if (result == 0 && file_size > 0) {
        void *file = mmap(NULL, file_size, PROT_READ, MAP_SHARED, file_fd, 0);
        if (file == MAP_FAILED)
            result = -errno;
        else
            pager->file = file;
    }
    if (result < 0) {
        vk_pager_free(pager);
        return result;
    }
    *made = pager;
    return 0;
}

void vk_pager_ask(vk_pager *pager, int socket_fd)
{
    pager->peer_fd = socket_fd;
}

int vk_pager_add(vk_pager *pager, uint64_t hva, uint64_t size, uint64_t page, uint64_t offset)
{
    bool has_content = pager->peer_fd >= 0 || offset + size <= pager->file_size;
    if (pager->count == MOST_REGIONS || !has_content)
        return -EINVAL;
    struct region *region = &pager->regions[pager->count];
    uint64_t words = (size / page + 63) / 64;
    uint64_t *todo = calloc(words, sizeof *todo);
    if (todo == NULL)
        return -ENOMEM;
    struct uffdio_register range = {
        .range = {.start = hva, .len = size},
        .mode = UFFDIO_REGISTER_MODE_MISSING,
    };
    if (ioctl(pager->uffd, UFFDIO_REGISTER, &range) < 0) {
        int result = -errno;
        free(todo);
        return result;
    }
    *region = (struct region){
        .hva = hva, .size = size, .page = page, .offset = offset, .todo = todo};
    if (pager->peer_fd < 0)
        region->source = pager->file + offset;
    return (int)pager->count++;
}

void vk_pager_mark(vk_pager *pager, uint32_t number, uint64_t start, uint64_t size)
{
    struct region *region = &pager->regions[number];
    uint64_t last = (start + size - 1) / region->page;
    uint64_t added = 0;
    for (uint64_t page = start / region->page; page <= last; page++) {
        uint64_t bit = 1ull << page % 64;
        added += (region->todo[page / 64] & bit) == 0;
        region->todo[page / 64] |= bit;
    }
    atomic_fetch_add(&pager->bytes_left, added * region->page);
}

/* Room for what one answer of the peer's may be. */
static int make_room(vk_pager *pager)
{
    pager->arrived_bytes = FILL_BYTES;
    for (uint32_t i = 0; i < pager->count; i++)
        if (pager->regions[i].page > pager->arrived_bytes)
            pager->arrived_bytes = pager->regions[i].page;
    void *room = mmap(NULL, pager->arrived_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED)
        return -errno;
    pager->arrived = room;
    return 0;
}

static int begin(vk_pager *pager, pthread_t *thread, bool *has_begun, void *(*body)(void *),
                 const char *name)
{
    int result = pthread_create(thread, NULL, body, pager);
    *has_begun = result == 0;
    if (result == 0)
        pthread_setname_np(*thread, name);
    return result;
}

int vk_pager_start(vk_pager *pager)
{
    int room = pager->peer_fd < 0 ? 0 : make_room(pager);
    if (room < 0)
        return room;
    sigset_t all, before;
    sigfillset(&all);
    sigdelset(&all, SIGSYS); /* of a breach of its filter it dies, but not in silence */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int result = begin(pager, &pager->server, &pager->has_server, vk_pager_serve, "pager");
    if (result == 0 && pager->peer_fd >= 0)
        result = begin(pager, &pager->asker, &pager->has_asker, vk_pager_answer, "pager-ask");
    if (result == 0)
        result = begin(pager, &pager->filler, &pager->has_filler, vk_pager_fill, "pager-fill");
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -result;
}

void vk_pager_progress(vk_pager *pager, struct vk_pager_progress *progress)
{
    progress->state = atomic_load(&pager->state);
    progress->error = atomic_load(&pager->error);
    progress->bytes_left = atomic_load(&pager->bytes_left);
    progress->faults = atomic_load(&pager->faults);
}

void vk_pager_give_up(vk_pager *pager)
{
    atomic_store(&pager->is_stopping, true);
}

void vk_pager_free(vk_pager *pager)
{
    atomic_store(&pager->is_stopping, true);
    if (pager->has_filler)
        pthread_join(pager->filler, NULL);
    if (pager->has_server) {
        eventfd_write(pager->stop_fd, 1);
        pthread_join(pager->server, NULL); /* it ends the asker */
    }
    if (pager->has_asker)
        pthread_join(pager->asker, NULL);
    if (pager->uffd >= 0)
        close(pager->uffd);
    if (pager->stop_fd >= 0)
        close(pager->stop_fd);
    if (pager->arrived != NULL)
        munmap(pager->arrived, pager->arrived_bytes);
    if (pager->file != NULL)
        munmap((void *)(uintptr_t)pager->file, pager->file_size);
    for (uint32_t i = 0; i < pager->count; i++)
        free(pager->regions[i].todo);
    pthread_cond_destroy(&pager->wanted_changed);
    pthread_mutex_destroy(&pager->lock);
    pthread_mutex_destroy(&pager->peer_lock);
    free(pager);
}
