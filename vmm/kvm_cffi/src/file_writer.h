/*
 * Memory on its way to one file, some pieces at a time, by an io_uring of its own; one after the other
 * where the host permits none.
 *
 * All functions belong to the thread that opened it, and what is written must stay until the end. A file
 * that was opened for direct I/O and turns out to refuse it is written through the page cache.
 */
#ifndef FILE_WRITER_H
#define FILE_WRITER_H

#include "uring.h"

#include <stdbool.h>
#include <stdint.h>

#define FILE_WRITER_PIECES 16u

struct vk_piece {
    const uint8_t *from;
    uint64_t offset;
    uint32_t size;
    bool is_again; /* through the cache, after the file refused it */
};

struct vk_file_writer {
    int fd;
    bool began_direct;
    bool has_ring;
    struct vk_uring ring;
    struct vk_piece pieces[FILE_WRITER_PIECES];
    uint32_t free[FILE_WRITER_PIECES]; /* indices of pieces that are not on their way */
    uint32_t free_count;
    int error; /* the first, a negative errno */
};

void vk_file_writer_open(struct vk_file_writer *writer, int fd);

/* Begins to write; 0, or the first error so far. */
int vk_file_writer_put(struct vk_file_writer *writer, const uint8_t *from, uint64_t size,
                       uint64_t offset);

/* Waits until nothing is on its way any more, and closes; 0, or the first error. */
int vk_file_writer_close(struct vk_file_writer *writer);

#endif
