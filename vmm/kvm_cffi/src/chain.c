/* Descriptor chains: from guest addresses to pieces of host memory, and copies from and to them. */
#include "ring_walk.h"

#include <stdlib.h>

/*
 * GUEST: address and length are the driver's copy of a moment ago; they are not read again. A buffer
 * without bytes has no address to check and adds nothing, but its direction counts.
 */
int vk_walk_add(struct walk *walk, uint64_t gpa, uint32_t length, bool is_writable)
{
    vk_chain *chain = walk->chain;
    if (walk->descriptors++ == VK_CHAIN_MAX)
        return vk_queue_break(walk->queue, VK_BREACH_CHAIN_LENGTH, VK_CHAIN_MAX);
    if (walk->in_writable && !is_writable)
        return vk_queue_break(walk->queue, VK_BREACH_ORDER, gpa);
    walk->in_writable = is_writable;
    uint64_t bytes = (uint64_t)chain->readable_bytes + chain->writable_bytes + length;
    if (bytes > UINT32_MAX)
        return vk_queue_break(walk->queue, VK_BREACH_CHAIN_BYTES, bytes);
    *(is_writable ? &chain->writable_bytes : &chain->readable_bytes) += length;
    for (uint64_t left = length; left != 0;) {
        uint32_t pieces = (uint32_t)chain->readable + chain->writable;
        uint8_t *hva;
        uint64_t run = vk_memory_leading(walk->queue->memory, gpa, left, &hva);
        if (run == 0)
            return vk_queue_break(walk->queue, VK_BREACH_ADDRESS, gpa);
        if (pieces == VK_CHAIN_MAX)
            return vk_queue_break(walk->queue, VK_BREACH_CHAIN_LENGTH, VK_CHAIN_MAX);
        chain->iov[pieces] = (struct iovec){.iov_base = hva, .iov_len = run};
        *(is_writable ? &chain->writable : &chain->readable) += 1;
        gpa += run;
        left -= run;
    }
    return 0;
}

int vk_walk_table(struct walk *walk, uint64_t gpa, uint32_t bytes, uint8_t **table,
                  uint32_t *entries)
{
    if (!vk_queue_has(walk->queue, VK_QUEUE_INDIRECT))
        return vk_queue_break(walk->queue, VK_BREACH_INDIRECT_REFUSED, gpa);
    if (bytes == 0 || bytes % DESC_BYTES != 0)
        return vk_queue_break(walk->queue, VK_BREACH_TABLE_SIZE, bytes);
    *table = vk_memory_translate(walk->queue->memory, gpa, bytes);
    if (*table == NULL)
        return vk_queue_break(walk->queue, VK_BREACH_ADDRESS, gpa);
    *entries = bytes / DESC_BYTES;
    return 0;
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
static uint64_t copy(const struct iovec *iov, uint32_t count, uint64_t offset, uint8_t *flat,
                     uint64_t size, bool is_into)
{
    uint64_t done = 0;
    for (uint32_t i = 0; i < count && done < size; i++) {
        if (offset >= iov[i].iov_len) {
            offset -= iov[i].iov_len;
            continue;
        }
        uint8_t *piece = (uint8_t *)iov[i].iov_base + offset;
        uint64_t room = iov[i].iov_len - offset;
        uint64_t part = room < size - done ? room : size - done;
        if (is_into)
            memcpy(piece, flat + done, part);
        else
            memcpy(flat + done, piece, part);
        done += part;
        offset = 0;
    }
    return done;
}

uint64_t vk_chain_read(const vk_chain *chain, uint64_t offset, void *to, uint64_t size)
{
    return copy(chain->iov, chain->readable, offset, to, size, false);
}

uint64_t vk_chain_write(const vk_chain *chain, uint64_t offset, const void *from, uint64_t size)
{
    /* The cast drops const for a buffer that is only read in this direction. */
    return copy(chain->iov + chain->readable, chain->writable, offset, (uint8_t *)(uintptr_t)from,
                size, true);
}
