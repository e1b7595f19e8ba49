/* A pager's state, shared by what sets it up and the threads that do its work. */
#ifndef PAGER_H
#define PAGER_H

#include "kvm_cffi.h"

#define MOST_REGIONS 64u
#define MOST_WANTED 4096u
#define FILL_BYTES (256u << 10)  /* what the background places at once: a fault waits no longer */

struct region {
    uint64_t hva;
    uint64_t size;
    uint64_t page;
    const uint8_t *source; /* in the mapped file, or NULL */
    uint64_t offset;
    uint64_t *todo;
};

struct vk_pager {
    int uffd;
    int event_fd;
    int stop_fd;
    const uint8_t *file;
    uint64_t file_size;
    int peer_fd; /* negative: the content is in the file */
    uint8_t *arrived; /* what has come from the peer last */
    uint64_t arrived_bytes;
    struct region regions[MOST_REGIONS];
    uint32_t count;
    pthread_t server;
    pthread_t filler;
    pthread_t asker; /* with a peer: answers for faults, so that the server waits for nobody */
    bool has_server;
    bool has_filler;
    bool has_asker;
    pthread_mutex_t peer_lock; /* over the connection and what has arrived; taken before the next */
    pthread_mutex_t lock;      /* over todo, what is placed by it, and what is wanted */
    pthread_cond_t wanted_changed;
    uint64_t wanted[MOST_WANTED]; /* addresses of faults that the asker is to answer, a ring */
    uint32_t wanted_first;
    uint32_t wanted_count;
    bool wants_no_more;
    _Atomic bool is_stopping;
    _Atomic int32_t state;
    _Atomic int32_t error;
    _Atomic uint64_t bytes_left;
    _Atomic uint64_t faults;
};

static inline bool is_todo(const struct region *region, uint64_t page)
{
    return (region->todo[page / 64] >> page % 64 & 1) != 0;
}

/* The bodies of the threads. */
void *vk_pager_serve(void *pager);
void *vk_pager_answer(void *pager);
void *vk_pager_fill(void *pager);

#endif
