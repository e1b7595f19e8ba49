/*
 * A request's operations on the file: what each system call is asked for, and what its result means.
 *
 * Data goes straight between the file and guest memory. Only where O_DIRECT cannot take a request's
 * addresses does it go through a bounce buffer, a part at a time.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "blk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RETRIES_MOST 16
#define PAGE_BYTES 4096
/* From here on: what is copied in less time than a call may take is not worth a worker. */
#define TO_WORKER_BYTES ((1u << 20) + 1)

/* What one operation transfers. */
struct span {
    struct iovec single;
    const struct iovec *pieces;
    uint32_t count;
    uint64_t offset;
    uint64_t bytes;
};

static bool make_pool(struct vk_blk *blk)
{
    void *pool;
    if (posix_memalign(&pool, PAGE_BYTES, (size_t)BOUNCE_BUFFERS * BOUNCE_BYTES) != 0)
        return false;
    blk->bounces = pool;
    for (uint32_t i = 0; i < BOUNCE_BUFFERS; i++)
        blk->free_bounces[i] = blk->bounces + (size_t)i * BOUNCE_BYTES;
    blk->free_bounce_count = BOUNCE_BUFFERS;
    return true;
}

static bool is_transfer(const struct blk_request *request)
{
    return request->operation == BLK_READ || request->operation == BLK_WRITE;
}

/* Copies between the first bytes not yet done and a flat buffer. */
static void copy(const struct blk_request *request, uint8_t *flat, uint64_t bytes, bool is_out)
{
    for (uint32_t i = request->piece; bytes != 0; i++) {
        const struct iovec *piece = &request->pieces[i];
        uint64_t part = piece->iov_len < bytes ? piece->iov_len : bytes;
        if (is_out)
            memcpy(flat, piece->iov_base, part);
        else
            memcpy(piece->iov_base, flat, part);
        flat += part;
        bytes -= part;
    }
}

/* A read is widened to whole blocks; a write consists of them, or was refused. */
bool vk_blk_prepare(struct vk_blk *blk, struct blk_request *request)
{
    if (!request->needs_bounce || !is_transfer(request))
        return true;
    if (request->bounce == NULL) {
        if (blk->bounces == NULL && !make_pool(blk))
            return false;
        if (blk->free_bounce_count == 0)
            return false;
        request->bounce = blk->free_bounces[--blk->free_bounce_count];
    }
    request->bounce_lead = (uint32_t)(request->offset % blk->disk->setup.alignment);
    uint64_t room = BOUNCE_BYTES - request->bounce_lead;
    request->bounce_bytes = (uint32_t)(request->left < room ? request->left : room);
    if (request->operation == BLK_WRITE)
        copy(request, request->bounce, request->bounce_bytes, true);
    return true;
}

void vk_blk_release(struct vk_blk *blk, struct blk_request *request)
{
    if (request->bounce != NULL)
        blk->free_bounces[blk->free_bounce_count++] = request->bounce;
    request->bounce = NULL;
    if (request->pieces != request->inline_pieces)
        free(request->pieces);
    request->pieces = request->inline_pieces;
}

static void span_of(const struct vk_blk *blk, const struct blk_request *request, struct span *span)
{
    span->offset = request->offset;
    span->count = 1;
    span->pieces = &span->single;
    if (request->bounce != NULL) {
        uint32_t alignment = blk->disk->setup.alignment;
        uint32_t bytes = request->bounce_lead + request->bounce_bytes;
        span->offset -= request->bounce_lead;
        span->bytes = (bytes + alignment - 1) & ~(uint64_t)(alignment - 1);
        span->single = (struct iovec){request->bounce, span->bytes};
        return;
    }
    const struct iovec *first = &request->pieces[request->piece];
    if (first->iov_len >= OPERATION_BYTES) {
        span->bytes = OPERATION_BYTES;
        span->single = (struct iovec){first->iov_base, span->bytes};
        return;
    }
    uint32_t most = request->piece_count - request->piece;
    span->pieces = first;
    span->bytes = first->iov_len;
    while (span->count < most && span->bytes + first[span->count].iov_len <= OPERATION_BYTES)
        span->bytes += first[span->count++].iov_len;
}

static int range_mode(const struct blk_request *request)
{
    int kind = request->operation == BLK_PUNCH ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
    return kind | FALLOC_FL_KEEP_SIZE;
}

static void submit_transfer(const struct vk_blk *blk, struct blk_request *request,
                            struct io_uring_sqe *sqe)
{
    struct span span;
    span_of(blk, request, &span);
    bool is_write = request->operation == BLK_WRITE;
    bool is_flat = span.count == 1;
    const uint8_t flat[] = {IORING_OP_READ, IORING_OP_WRITE};
    const uint8_t vectored[] = {IORING_OP_READV, IORING_OP_WRITEV};
    sqe->opcode = is_flat ? flat[is_write] : vectored[is_write];
    sqe->addr = (uintptr_t)(is_flat ? span.pieces->iov_base : (const void *)span.pieces);
    sqe->len = is_flat ? (uint32_t)span.bytes : span.count;
    sqe->off = span.offset;
    /* Out of the page cache it would be copied while the loop waits. */
    if (blk->disk->setup.alignment <= 1 && span.bytes >= TO_WORKER_BYTES)
        sqe->flags |= IOSQE_ASYNC;
}

void vk_blk_submit(const struct vk_blk *blk, struct blk_request *request, struct io_uring_sqe *sqe)
{
    sqe->user_data = (uintptr_t)request;
    switch ((enum blk_operation)request->operation) {
    case BLK_READ:
    case BLK_WRITE:
        submit_transfer(blk, request, sqe);
        break;
    case BLK_SYNC:
        sqe->opcode = IORING_OP_FSYNC;
        sqe->fsync_flags = IORING_FSYNC_DATASYNC;
        break;
    case BLK_PUNCH:
    case BLK_ZERO:
        sqe->opcode = IORING_OP_FALLOCATE;
        sqe->len = (uint32_t)range_mode(request);
        sqe->off = request->offset;
        sqe->addr = request->left;
        break;
    }
}

static int64_t transfer(const struct vk_blk *blk, const struct blk_request *request)
{
    struct span span;
    int fd = blk->disk->setup.fd;
    span_of(blk, request, &span);
    if (request->operation == BLK_WRITE)
        return pwritev(fd, span.pieces, (int)span.count, (off_t)span.offset);
    return preadv(fd, span.pieces, (int)span.count, (off_t)span.offset);
}

int64_t vk_blk_do(const struct vk_blk *blk, struct blk_request *request)
{
    int fd = blk->disk->setup.fd;
    int64_t result = -1;
    switch ((enum blk_operation)request->operation) {
    case BLK_READ:
    case BLK_WRITE:
        result = transfer(blk, request);
        break;
    case BLK_SYNC:
        result = fdatasync(fd);
        break;
    case BLK_PUNCH:
    case BLK_ZERO:
        result = fallocate(fd, range_mode(request), (off_t)request->offset, (off_t)request->left);
        break;
    }
    return result < 0 ? -errno : result;
}

/* The first `bytes` of what was left are done. */
static void advance(struct blk_request *request, uint64_t bytes)
{
    request->left -= bytes;
    request->offset += bytes;
    while (bytes != 0) {
        struct iovec *piece = &request->pieces[request->piece];
        if (request->operation == BLK_READ)
            vk_memory_wrote(request->queue->queue->memory, piece->iov_base,
                            bytes < piece->iov_len ? bytes : piece->iov_len);
        if (bytes < piece->iov_len) {
            piece->iov_base = (uint8_t *)piece->iov_base + bytes;
            piece->iov_len -= bytes;
            return;
        }
        bytes -= piece->iov_len;
        request->piece++;
    }
}

/* How many of the request's own bytes a transfer has moved; 0 is the end of the file. */
static uint64_t moved(struct blk_request *request, uint64_t result)
{
    if (request->bounce == NULL)
        return result < request->left ? result : request->left;
    uint64_t own = result > request->bounce_lead ? result - request->bounce_lead : 0;
    if (own > request->bounce_bytes)
        own = request->bounce_bytes;
    if (request->operation == BLK_READ)
        copy(request, request->bounce + request->bounce_lead, own, false);
    return own;
}

static enum blk_course fail(struct vk_blk *blk, int64_t result)
{
    blk->disk->counters.errors++;
    blk->disk->counters.last_errno = (uint32_t)-result;
    return BLK_FAILED;
}

static enum blk_course after_change(struct blk_request *request)
{
    if (!request->sync_after)
        return BLK_SUCCEEDED;
    request->operation = BLK_SYNC;
    return BLK_GOES_ON;
}

static enum blk_course done_transfer(struct vk_blk *blk, struct blk_request *request,
                                     int64_t result)
{
    uint64_t bytes = moved(request, (uint64_t)result);
    if (bytes == 0)
        return fail(blk, -EIO);
    request->retries = 0;
    advance(request, bytes);
    return request->left != 0 ? BLK_GOES_ON : after_change(request);
}

/* A range reads as zeroes afterwards either way; a host may know only one of the two. */
static bool may_zero_otherwise(struct vk_disk *disk, struct blk_request *request)
{
    if (request->operation == BLK_ZERO) {
        disk->zeroes_by_punching = true;
        request->operation = BLK_PUNCH;
        return true;
    }
    if (request->operation == BLK_PUNCH && !disk->zeroes_by_punching) {
        request->operation = BLK_ZERO;
        return true;
    }
    return false;
}

enum blk_course vk_blk_done(struct vk_blk *blk, struct blk_request *request, int64_t result)
{
    if ((result == -EINTR || result == -EAGAIN) && request->retries < RETRIES_MOST) {
        request->retries++;
        return BLK_GOES_ON;
    }
    if (result == -EOPNOTSUPP && may_zero_otherwise(blk->disk, request))
        return BLK_GOES_ON;
    if (result < 0)
        return fail(blk, result);
    switch ((enum blk_operation)request->operation) {
    case BLK_READ:
    case BLK_WRITE:
        return done_transfer(blk, request, result);
    case BLK_SYNC:
        return BLK_SUCCEEDED;
    case BLK_PUNCH:
    case BLK_ZERO:
        return after_change(request);
    }
    return BLK_SUCCEEDED;
}
