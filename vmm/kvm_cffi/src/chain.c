/* Descriptor chains: indirect tables, and copies from and to the pieces of host memory. */
#include "ring_walk.h"

#include <stdlib.h>

/* GUEST: what lies in several pieces is copied, as far as it lies where the device may read. */
static const uint8_t *copy_table(vk_queue *queue, uint64_t address, uint32_t bytes)
{
    if (bytes > VK_TABLE_MAX) {
        vk_queue_break(queue, VK_BREACH_TABLE_PIECES, bytes);
        return NULL;
    }
    for (uint32_t done = 0; done < bytes;) {
        uint8_t *hva;
        uint64_t run = vk_queue_leading(queue, address + done, bytes - done, VK_ACCESS_READ, &hva);
        if (run == 0)
            return NULL;
        memcpy(queue->table + done, hva, run);
        done += (uint32_t)run;
    }
    return queue->table;
}

/* Pages of one buffer that the IOMMU maps one by one are often neighbours in RAM all the same. */
int vk_walk_add_translated(struct walk *walk, uint64_t address, uint64_t length, bool is_writable)
{
    enum vk_access access = is_writable ? VK_ACCESS_WRITE : VK_ACCESS_READ;
    for (uint64_t done = 0; done < length;) {
        if (walk->lookups++ == VK_LOOKUPS_MAX)
            return vk_queue_break(walk->queue, VK_BREACH_LOOKUPS, VK_LOOKUPS_MAX);
        uint8_t *hva;
        uint64_t run =
            vk_queue_leading(walk->queue, address + done, length - done, access, &hva);
        if (run == 0)
            return vk_queue_break(walk->queue, VK_BREACH_ADDRESS, address + done);
        struct iovec *piece = &walk->chain->iov[walk->pieces];
        if (done != 0 && (uint8_t *)piece[-1].iov_base + piece[-1].iov_len == hva) {
            piece[-1].iov_len += run;
        } else {
            if (walk->pieces == VK_CHAIN_MAX)
                return vk_queue_break(walk->queue, VK_BREACH_CHAIN_LENGTH, VK_CHAIN_MAX);
            *piece = (struct iovec){.iov_base = hva, .iov_len = run};
            walk->pieces++;
        }
        done += run;
    }
    return 0;
}

/* GUEST: where and how long are the driver's, as they were copied. */
const uint8_t *vk_find_table(vk_queue *queue, uint64_t gpa, uint32_t bytes)
{
    if (!vk_queue_has(queue, VK_QUEUE_INDIRECT)) {
        vk_queue_break(queue, VK_BREACH_INDIRECT_REFUSED, gpa);
        return NULL;
    }
    if (bytes == 0 || bytes % DESC_BYTES != 0) {
        vk_queue_break(queue, VK_BREACH_TABLE_SIZE, bytes);
        return NULL;
    }
    uint8_t *hva;
    uint64_t run = vk_queue_leading(queue, gpa, bytes, VK_ACCESS_READ, &hva);
    if (run == bytes)
        return hva;
    const uint8_t *copied = NULL;
    if (run != 0 && queue->endpoint != NULL)
        copied = copy_table(queue, gpa, bytes);
    if (copied == NULL)
        vk_queue_break(queue, VK_BREACH_ADDRESS, gpa);
    return copied;
}

vk_chain *vk_chain_new(void)
{
    return malloc(sizeof(vk_chain));
}

vk_chain *vk_chain_copy(const vk_chain *chain)
{
    uint32_t pieces = (uint32_t)chain->readable + chain->writable;
    size_t bytes = offsetof(vk_chain, iov) + pieces * sizeof chain->iov[0];
    vk_chain *copy = malloc(bytes);
    if (copy != NULL)
        memcpy(copy, chain, bytes);
    return copy;
}

void vk_chain_free(vk_chain *chain)
{
    free(chain);
}

void vk_chain_describe(const vk_chain *chain, struct vk_chain_facts *facts)
{
    *facts = (struct vk_chain_facts){
        .head = chain->head,
        .readable = chain->readable,
        .writable = chain->writable,
        .readable_bytes = chain->readable_bytes,
        .writable_bytes = chain->writable_bytes,
    };
}

void *vk_chain_buffer(const vk_chain *chain, uint32_t at, uint64_t *size)
{
    *size = chain->iov[at].iov_len;
    return chain->iov[at].iov_base;
}

/* Copies between `flat` and the pieces from `offset` on; the direction is into the pieces or out. */
static uint64_t copy(const vk_chain *chain, bool is_into, uint64_t offset, uint8_t *flat,
                     uint64_t size)
{
    const struct iovec *iov = chain->iov + (is_into ? chain->readable : 0);
    uint32_t count = is_into ? chain->writable : chain->readable;
    uint64_t done = 0;
    for (uint32_t i = 0; i < count && done < size; i++) {
        if (offset >= iov[i].iov_len) {
            offset -= iov[i].iov_len;
            continue;
        }
        uint8_t *piece = (uint8_t *)iov[i].iov_base + offset;
        uint64_t room = iov[i].iov_len - offset;
        uint64_t part = room < size - done ? room : size - done;
        if (is_into) {
            memcpy(piece, flat + done, part);
            vk_memory_wrote(chain->memory, piece, part);
        } else {
            memcpy(flat + done, piece, part);
        }
        done += part;
        offset = 0;
    }
    return done;
}

uint64_t vk_chain_read(const vk_chain *chain, uint64_t offset, void *to, uint64_t size)
{
    return copy(chain, false, offset, to, size);
}

uint64_t vk_chain_write(const vk_chain *chain, uint64_t offset, const void *from, uint64_t size)
{
    /* The cast drops const for a buffer that is only read in this direction. */
    return copy(chain, true, offset, (uint8_t *)(uintptr_t)from, size);
}
