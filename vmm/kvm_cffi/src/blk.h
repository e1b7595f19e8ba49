/*
 * The request engine of virtio-blk: from the chains of some queues to I/O on one file and back.
 *
 *   pop -> vk_blk_parse -> backlog -> io_uring, or a thread of Python's -> vk_blk_done -> push
 *
 * The loop's thread owns an engine; the one exception is vk_blk_perform, which touches nothing but
 * its own request. Requests in flight are bounded by the rings' sizes, memory for copies by a pool.
 *
 * Source: Virtual I/O Device (VIRTIO) 1.2, section 5.2.6.
 */
#ifndef BLK_H
#define BLK_H

#include "limiter.h"
#include "uring.h"
#include "virtqueue.h"
#include "watch.h"

#define SECTOR_BYTES 512
#define INLINE_PIECES 16
#define BOUNCE_BUFFERS 16
#define BOUNCE_BYTES (64u << 10)
#define OPERATION_BYTES (4u << 20) /* of one system call; longer requests take several */

enum vk_blk_type {
    BLK_IN = 0,
    BLK_OUT = 1,
    BLK_FLUSH = 4,
    BLK_GET_ID = 8,
    BLK_DISCARD = 11,
    BLK_WRITE_ZEROES = 13,
};

enum vk_blk_status { BLK_OK = 0, BLK_IOERR = 1, BLK_UNSUPP = 2 };

enum blk_operation { BLK_READ, BLK_WRITE, BLK_SYNC, BLK_PUNCH, BLK_ZERO };

/* What outlives a driver: the file, what the guest may do with it, and what it has done so far. */
struct vk_disk {
    struct vk_disk_setup setup;
    uint64_t sectors;
    bool is_written_through;
    bool zeroes_by_punching; /* the file system refused to zero a range in place */
    struct vk_disk_counters counters;
};

struct blk_queue {
    vk_queue *queue;
    bool has_pushed; /* since its driver was signalled last */
};

/* One request between pop and push. */
struct blk_request {
    struct blk_request *next;
    struct blk_queue *queue;
    uint8_t *status; /* in guest memory: the last byte of the writable part */
    uint16_t head;
    uint8_t operation;
    bool is_read;     /* counted as such */
    bool is_write;    /* counted as such */
    bool sync_after;  /* written through */
    uint8_t retries;
    uint32_t answered; /* bytes of the writable part that the device writes on success */
    uint64_t bytes;    /* of data, in all */
    uint64_t left;     /* of them, not yet done */
    uint64_t offset;   /* in the file, of what is left */
    uint64_t started_ns;
    uint8_t *bounce;       /* aligned copy of a part, or NULL */
    uint32_t bounce_lead;  /* bytes in it before those asked for */
    uint32_t bounce_bytes; /* of the request that are in it */
    bool needs_bounce;
    uint32_t piece;        /* the first piece not yet done */
    uint32_t piece_count;
    struct iovec *pieces;  /* inline_pieces, or allocated */
    struct iovec inline_pieces[INLINE_PIECES];
};

struct blk_list {
    struct blk_request *first;
    struct blk_request **end;
};

struct vk_blk {
    struct vk_disk *disk;
    struct vk_limiter *limiter; /* NULL: none */
    struct vk_turn turn;        /* with it */
    struct blk_queue *queues;
    uint32_t queue_count;
    struct blk_request *requests;
    uint32_t request_count;
    uint32_t in_flight;
    struct blk_list backlog; /* not yet submitted, oldest first */
    struct blk_request *unused;
    uint8_t *bounces;        /* the pool, made when first needed */
    uint8_t *free_bounces[BOUNCE_BUFFERS];
    uint32_t free_bounce_count;
    struct vk_uring ring;
    int epoll_fd;
    int completion_fd;
    uint32_t next_queue;
    bool has_ring;
    bool is_limited;
    bool is_stopping;
    uint64_t limited_until_ns;
    uint64_t wait_ns; /* what the last call asked for */
    uint64_t errors_told;
    struct vk_watch watch;
    vk_chain *chain;
};

uint64_t vk_now_ns(void);

static inline void blk_append(struct blk_list *list, struct blk_request *request)
{
    request->next = NULL;
    *list->end = request;
    list->end = &request->next;
}

static inline struct blk_request *blk_take_first(struct blk_list *list)
{
    struct blk_request *request = list->first;
    list->first = request->next;
    if (list->first == NULL)
        list->end = &list->first;
    return request;
}

/*
 * Reads what a chain asks for into `request`: 1 when that needs I/O. 0: the chain was answered at once,
 * *answered bytes were written. -EBADMSG: it has no room for an answer. In the last two cases only
 * vk_blk_release is left to do.
 */
int vk_blk_parse(struct vk_blk *blk, const vk_chain *chain, struct blk_request *request,
                 uint32_t *answered);

/* Gives a bounce buffer to a request that needs one: false when it has to wait for one. */
bool vk_blk_prepare(struct vk_blk *blk, struct blk_request *request);

/* Fills in the submission of a prepared request's next operation. */
void vk_blk_submit(const struct vk_blk *blk, struct blk_request *request, struct io_uring_sqe *sqe);

/* The same operation, done at once in any thread: its result, as a completion would give it. */
int64_t vk_blk_do(const struct vk_blk *blk, struct blk_request *request);

enum blk_course { BLK_GOES_ON, BLK_SUCCEEDED, BLK_FAILED };

/* Takes in an operation's result. A request that goes on has a next operation, to be prepared anew. */
enum blk_course vk_blk_done(struct vk_blk *blk, struct blk_request *request, int64_t result);

/* Lets the other users of the limiter have its turn. */
void vk_blk_leave_limiter(struct vk_blk *blk);

/* Gives back what a request holds. */
void vk_blk_release(struct vk_blk *blk, struct blk_request *request);

#endif
