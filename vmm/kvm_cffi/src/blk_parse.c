/*
 * What a chain asks of a disk.
 *
 * GUEST: header and segment are copied out of guest memory once and only the copies are looked at.
 * Nothing the guest wrote is used as an address: pieces come from the queue, already translated.
 */
#include "blk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ID_BYTES 20
#define UNMAP 1u

struct blk_header {
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;
};

struct blk_segment {
    uint64_t sector;
    uint32_t sectors;
    uint32_t flags;
};

static bool allows(const struct vk_disk *disk, uint32_t ability)
{
    return (disk->setup.abilities & ability) != 0;
}

/* The status byte is the last one that the device may write. */
static uint8_t *status_of(const vk_chain *chain)
{
    for (uint32_t i = chain->writable; i-- != 0;) {
        const struct iovec *piece = &chain->iov[chain->readable + i];
        if (piece->iov_len != 0)
            return (uint8_t *)piece->iov_base + piece->iov_len - 1;
    }
    return NULL;
}

static bool is_on_disk(const struct vk_disk *disk, uint64_t sector, uint64_t sectors)
{
    return sectors <= disk->sectors && sector <= disk->sectors - sectors;
}

static bool may_change(const struct vk_disk *disk, uint64_t sector)
{
    return allows(disk, VK_DISK_WRITE) && (sector != 0 || !allows(disk, VK_DISK_GUARD_FIRST));
}

static bool keep_pieces(struct blk_request *request, const struct iovec *pieces, uint32_t count,
                        uint64_t skip, uint64_t bytes)
{
    request->pieces = request->inline_pieces;
    if (count > INLINE_PIECES) {
        request->pieces = malloc(count * sizeof *pieces);
        if (request->pieces == NULL)
            return false;
    }
    uint32_t kept = 0;
    for (uint32_t i = 0; i < count && bytes != 0; i++) {
        uint64_t length = pieces[i].iov_len;
        if (skip >= length) {
            skip -= length;
            continue;
        }
        uint64_t part = length - skip < bytes ? length - skip : bytes;
        request->pieces[kept++] =
            (struct iovec){.iov_base = (uint8_t *)pieces[i].iov_base + skip, .iov_len = part};
        bytes -= part;
        skip = 0;
    }
    request->piece = 0;
    request->piece_count = kept;
    return true;
}

static bool is_aligned(const struct blk_request *request, uint64_t alignment)
{
    uint64_t all = request->offset | request->bytes;
    for (uint32_t i = 0; i < request->piece_count; i++)
        all |= (uint64_t)(uintptr_t)request->pieces[i].iov_base | request->pieces[i].iov_len;
    return all % alignment == 0;
}

static uint8_t parse_transfer(const struct vk_disk *disk, const vk_chain *chain, uint64_t sector,
                              bool is_write, struct blk_request *request)
{
    uint64_t bytes = is_write ? chain->readable_bytes - sizeof(struct blk_header)
                              : chain->writable_bytes - 1;
    if (bytes % SECTOR_BYTES != 0 || !is_on_disk(disk, sector, bytes / SECTOR_BYTES))
        return BLK_IOERR;
    if (is_write && !may_change(disk, sector))
        return BLK_IOERR;
    request->operation = is_write ? BLK_WRITE : BLK_READ;
    request->is_write = is_write;
    request->is_read = !is_write;
    request->sync_after = is_write && disk->is_written_through;
    request->offset = sector * SECTOR_BYTES;
    request->bytes = request->left = bytes;
    request->answered = is_write ? 1 : (uint32_t)bytes + 1;
    const struct iovec *pieces = is_write ? chain->iov : chain->iov + chain->readable;
    uint32_t count = is_write ? chain->readable : chain->writable;
    uint64_t skip = is_write ? sizeof(struct blk_header) : 0;
    if (!keep_pieces(request, pieces, count, skip, bytes))
        return BLK_IOERR;
    uint32_t alignment = disk->setup.alignment;
    request->needs_bounce = alignment > 1 && !is_aligned(request, alignment);
    /* A part of a block could only be written by reading the rest, and another write may be at it. */
    bool is_whole = ((request->offset | bytes) & (alignment - 1)) == 0;
    return is_write && request->needs_bounce && !is_whole ? BLK_IOERR : BLK_OK;
}

static uint8_t parse_range(const struct vk_disk *disk, const vk_chain *chain, bool is_discard,
                           struct blk_request *request)
{
    struct blk_segment segment;
    if (!allows(disk, VK_DISK_WRITE))
        return BLK_IOERR;
    if (!allows(disk, is_discard ? VK_DISK_DISCARD : VK_DISK_ZERO))
        return BLK_UNSUPP;
    if (chain->readable_bytes != sizeof(struct blk_header) + sizeof segment)
        return BLK_IOERR;
    vk_chain_read(chain, sizeof(struct blk_header), &segment, sizeof segment);
    if ((segment.flags & ~(is_discard ? 0 : UNMAP)) != 0)
        return BLK_UNSUPP;
    if (!is_on_disk(disk, segment.sector, segment.sectors) || !may_change(disk, segment.sector))
        return BLK_IOERR;
    /* As write_zeroes_may_unmap says: a guest without DISCARD gives no room back by this either. */
    bool unmaps = is_discard || ((segment.flags & UNMAP) != 0 && allows(disk, VK_DISK_DISCARD));
    request->operation = unmaps || disk->zeroes_by_punching ? BLK_PUNCH : BLK_ZERO;
    request->sync_after = disk->is_written_through;
    request->offset = segment.sector * SECTOR_BYTES;
    request->bytes = request->left = (uint64_t)segment.sectors * SECTOR_BYTES;
    request->answered = 1;
    return BLK_OK;
}

static uint8_t answer_id(const struct vk_disk *disk, const vk_chain *chain, uint32_t *answered)
{
    uint32_t room = chain->writable_bytes - 1;
    uint32_t length = room < ID_BYTES ? room : ID_BYTES;
    vk_chain_write(chain, 0, disk->setup.serial, length);
    *answered = length + 1;
    return BLK_OK;
}

static uint8_t parse(struct vk_blk *blk, const vk_chain *chain, struct blk_request *request,
                     uint32_t *answered)
{
    struct blk_header header;
    if (vk_chain_read(chain, 0, &header, sizeof header) != sizeof header)
        return BLK_IOERR;
    switch (header.type) {
    case BLK_IN:
    case BLK_OUT:
        return parse_transfer(blk->disk, chain, header.sector, header.type == BLK_OUT, request);
    case BLK_FLUSH:
        request->operation = BLK_SYNC;
        request->answered = 1;
        return BLK_OK;
    case BLK_GET_ID:
        return answer_id(blk->disk, chain, answered);
    case BLK_DISCARD:
    case BLK_WRITE_ZEROES:
        return parse_range(blk->disk, chain, header.type == BLK_DISCARD, request);
    default:
        return BLK_UNSUPP;
    }
}

int vk_blk_parse(struct vk_blk *blk, const vk_chain *chain, struct blk_request *request,
                 uint32_t *answered)
{
    request->status = status_of(chain);
    if (request->status == NULL)
        return -EBADMSG;
    request->head = chain->head;
    request->pieces = request->inline_pieces;
    request->piece_count = 0;
    request->bounce = NULL;
    request->needs_bounce = request->is_read = request->is_write = request->sync_after = false;
    request->retries = 0;
    request->operation = BLK_READ;
    request->bytes = request->left = 0;
    *answered = 1;
    uint8_t status = parse(blk, chain, request, answered);
    if (status == BLK_OK && (request->left != 0 || request->operation == BLK_SYNC))
        return 1;
    *request->status = status;
    vk_memory_wrote(chain->memory, request->status, 1);
    return 0;
}
