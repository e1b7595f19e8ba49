/* Memory to a file by io_uring: file_writer.h says what for. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "file_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

/* Large enough for a disk to work at its speed, and small enough for several to be on their way. */
#define PIECE_BYTES (1u << 20)

static void fail(struct vk_file_writer *writer, int error)
{
    if (writer->error == 0)
        writer->error = error;
}

static bool is_direct(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && (flags & O_DIRECT) != 0;
}

/* Some file systems agree to direct I/O, and refuse how memory is aligned then. */
static bool leave_direct(const struct vk_file_writer *writer, struct vk_piece *piece)
{
    if (!writer->began_direct || piece->is_again)
        return false;
    piece->is_again = true;
    int flags = fcntl(writer->fd, F_GETFL);
    return flags >= 0 && fcntl(writer->fd, F_SETFL, flags & ~O_DIRECT) == 0;
}

/* What a write came to: true when the rest of the piece is to be written. */
static bool is_left(struct vk_file_writer *writer, struct vk_piece *piece, int64_t result)
{
    if (result == -EINTR || result == -EAGAIN)
        return true;
    if (result == -EINVAL && leave_direct(writer, piece))
        return true;
    if (result <= 0) {
        fail(writer, result < 0 ? (int)result : -EIO);
        return false;
    }
    piece->from += result;
    piece->offset += (uint64_t)result;
    piece->size -= (uint32_t)result;
    return piece->size != 0;
}

/* There is room: no more pieces can wait to be submitted than there are entries. */
static void submit(struct vk_file_writer *writer, uint32_t index)
{
    const struct vk_piece *piece = &writer->pieces[index];
    struct io_uring_sqe *sqe = vk_uring_next(&writer->ring);
    sqe->opcode = IORING_OP_WRITE;
    sqe->addr = (uintptr_t)piece->from;
    sqe->len = piece->size;
    sqe->off = piece->offset;
    sqe->user_data = index;
}

/* Waits for one piece at least. A ring that cannot be entered any more has an end: false. */
static bool reap(struct vk_file_writer *writer)
{
    int result = vk_uring_wait(&writer->ring);
    if (result < 0 && result != -EBUSY && result != -EAGAIN) {
        fail(writer, result);
        return false;
    }
    uint64_t index;
    int64_t written;
    while (vk_uring_reap(&writer->ring, &index, &written)) {
        if (is_left(writer, &writer->pieces[index], written) && writer->error == 0)
            submit(writer, (uint32_t)index);
        else
            writer->free[writer->free_count++] = (uint32_t)index;
    }
    return true;
}

static void write_here(struct vk_file_writer *writer, struct vk_piece piece)
{
    while (writer->error == 0) {
        ssize_t written = pwrite(writer->fd, piece.from, piece.size, (off_t)piece.offset);
        if (!is_left(writer, &piece, written < 0 ? -errno : written))
            return;
    }
}

void vk_file_writer_open(struct vk_file_writer *writer, int fd)
{
    *writer = (struct vk_file_writer){
        .fd = fd, .began_direct = is_direct(fd), .free_count = FILE_WRITER_PIECES};
    for (uint32_t i = 0; i < FILE_WRITER_PIECES; i++)
        writer->free[i] = i;
    const uint32_t room = FILE_WRITER_PIECES;
    writer->has_ring = vk_uring_open(&writer->ring, room, room, fd, -1) == 0;
}

int vk_file_writer_put(struct vk_file_writer *writer, const uint8_t *from, uint64_t size,
                       uint64_t offset)
{
    while (size != 0 && writer->error == 0) {
        uint32_t taken = size < PIECE_BYTES ? (uint32_t)size : PIECE_BYTES;
        struct vk_piece piece = {.from = from, .offset = offset, .size = taken};
        if (!writer->has_ring) {
            write_here(writer, piece);
        } else if (writer->free_count == 0) {
            if (!reap(writer))
                break;
            continue;
        } else {
            uint32_t index = writer->free[--writer->free_count];
            writer->pieces[index] = piece;
            submit(writer, index);
            vk_uring_enter(&writer->ring); /* what this cannot submit the next does */
        }
        from += taken;
        offset += taken;
        size -= taken;
    }
    return writer->error;
}

int vk_file_writer_close(struct vk_file_writer *writer)
{
    while (writer->has_ring && writer->free_count < FILE_WRITER_PIECES && reap(writer))
        ;
    if (writer->has_ring)
        vk_uring_close(&writer->ring);
    return writer->error;
}
