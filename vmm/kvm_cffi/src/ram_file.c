/*
 * RAM to a file and back, in a worker thread that has let go of the interpreter's lock.
 *
 * A page that was never touched is not looked at: a look would give it memory. pagemap says which those
 * are, of memory without a file; the caller knows them of the rest. Pages of zeros become holes.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "file_writer.h"
#include "kvm_cffi.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define PAGE 4096u
#define BATCH 1024u /* pages whose entries are read at once */
#define HAS_MEMORY (3ull << 62) /* present, or swapped out: Documentation/admin-guide/mm/pagemap.rst */

static bool is_zero(const uint8_t *page)
{
    uint64_t seen = 0;
    for (const uint64_t *at = (const uint64_t *)page; at < (const uint64_t *)(page + PAGE); at += 64) {
        for (uint32_t i = 0; i < 64; i++)
            seen |= at[i];
        if (seen != 0)
            return false;
    }
    return true;
}

/* Write the pages from `first` up to `end` that hold anything; `has_memory` is NULL for all of them. */
static int64_t write_pages(struct vk_file_writer *writer, const uint8_t *base, uint64_t pages,
                           uint64_t offset, const uint64_t *has_memory)
{
    uint64_t start = 0;
    int64_t written = 0;
    bool in_run = false;
    for (uint64_t page = 0; page <= pages; page++) {
        bool is_data = page < pages && (has_memory == NULL || (has_memory[page] & HAS_MEMORY) != 0) &&
                       !is_zero(base + page * PAGE);
        if (is_data && !in_run)
            start = page;
        if (!is_data && in_run) {
            uint64_t size = (page - start) * PAGE;
            const uint64_t at = start * PAGE;
            int result = vk_file_writer_put(writer, base + at, size, offset + at);
            if (result < 0)
                return result;
            written += (int64_t)size;
        }
        in_run = is_data;
    }
    return written;
}

static int64_t write_ram(struct vk_file_writer *writer, const void *from, uint64_t size,
                         uint64_t offset, int pagemap_fd)
{
    uint64_t entries[BATCH];
    int64_t written = 0;
    for (uint64_t at = 0; at < size; at += (uint64_t)BATCH * PAGE) {
        const uint8_t *base = (const uint8_t *)from + at;
        uint64_t pages = (size - at) / PAGE < BATCH ? (size - at) / PAGE : BATCH;
        if (pagemap_fd >= 0) {
            off_t entry = (off_t)((uintptr_t)base / PAGE * sizeof entries[0]);
            ssize_t wanted = (ssize_t)(pages * sizeof entries[0]);
            ssize_t got = pread(pagemap_fd, entries, (size_t)wanted, entry);
            if (got != wanted)
                return got < 0 ? -errno : -EIO;
        }
        int64_t result = write_pages(writer, base, pages, offset + at, pagemap_fd < 0 ? NULL : entries);
        if (result < 0)
            return result;
        written += result;
    }
    return written;
}

int64_t vk_ram_write(int fd, const void *from, uint64_t size, uint64_t offset, int pagemap_fd)
{
    struct vk_file_writer writer;
    vk_file_writer_open(&writer, fd);
    int64_t written = write_ram(&writer, from, size, offset, pagemap_fd);
    int error = vk_file_writer_close(&writer);
    return error < 0 ? error : written;
}

int64_t vk_ram_read(int fd, void *to, uint64_t size, uint64_t offset)
{
    uint64_t done = 0;
    while (done < size) {
        ssize_t got = pread(fd, (uint8_t *)to + done, size - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? -errno : (int64_t)done;
        done += (uint64_t)got;
    }
    return (int64_t)done;
}
