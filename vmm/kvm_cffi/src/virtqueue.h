/*
 * The device's side of a virtqueue, split or packed, for device code in C. The functions are declared
 * in api.h, as Python may call them too.
 *
 * One thread at a time uses a queue. Nothing the guest does makes these functions touch memory that is
 * not its RAM, loop for long, or read a value twice: what is checked is what is used. A guest that
 * breaks the ring's rules breaks its queue for good: vk_queue_breach says how, and every function then
 * gives -EPROTO until the device is reset and makes a new queue.
 *
 * A round of work: clear the kick, suppress, pop until there is none, push, signal once, enable; when
 * enable gives 1 there is more, go on popping before waiting.
 *
 * Source: Virtual I/O Device (VIRTIO) 1.2, sections 2.6 to 2.8.
 */
#ifndef VIRTQUEUE_H
#define VIRTQUEUE_H

#include "memory_map.h"
#include "translation.h"

#include <sys/uio.h>

/*
 * The most descriptors, and the most pieces of host memory, that one chain may have: what readv and
 * writev take at once. Devices announce segment limits below this. Chains made of an indirect table
 * may be longer than their queue, which the specification denies to drivers but some rely on.
 */
#define VK_CHAIN_MAX 1024

/* The most bytes of an indirect table that lies in several pieces. */
#define VK_TABLE_MAX (VK_CHAIN_MAX * 16u)

/*
 * How often the buffers of one chain may be looked up in the IOMMU's mappings: pages that are neighbours
 * in RAM are one piece, so the pieces alone are no bound. It is 64 MiB mapped page by page.
 */
#define VK_LOOKUPS_MAX 16384

struct vk_chain {
    const vk_memory *memory; /* the pieces lie in it */
    uint16_t head;           /* hand it to vk_queue_push; unique among the chains in flight */
    uint16_t readable;       /* pieces that the device reads: iov[0] and on */
    uint16_t writable;       /* pieces that the device writes: iov[readable] and on */
    uint16_t slots;          /* ring slots it occupies; the queue's own business */
    uint32_t readable_bytes; /* the two together are less than 2^32 */
    uint32_t writable_bytes;
    struct iovec iov[VK_CHAIN_MAX];
};

/* A chain in flight: the ring slots it occupies (0: none is), and where the device was after it. */
struct vk_flight {
    uint16_t slots;
    uint16_t position;
};

/* The unit of the IOMMU's mappings: what lies in one such page is together in guest memory. */
#define VK_PAGE 4096u

/*
 * A part of the ring, or a table. Through the IOMMU it may lie in pages here and there; its fields,
 * which are aligned to their size, each lie in one.
 */
struct vk_part {
    uint8_t *flat;   /* NULL: it lies in several pieces */
    uint8_t **pages; /* then: each page's first byte; NULL without an IOMMU */
    uint64_t address;
    uint64_t size;
    enum vk_access access;
};

struct vk_queue {
    const vk_memory *memory;
    vk_endpoint *endpoint;   /* NULL: addresses are the guest's own */
    uint64_t generation;     /* the endpoint's, when the parts were found */
    uint8_t *table;          /* with an endpoint: room for a copy of an indirect table in pieces */
    struct vk_part desc;     /* descriptor table or ring */
    struct vk_part driver;   /* available ring, or the driver's event suppression */
    struct vk_part device;   /* used ring, or the device's event suppression */
    uint16_t index;
    uint16_t size;
    uint32_t features; /* enum vk_queue_feature */
    /* Where the device is. Split: free-running. Packed: below size, with a wrap counter beside it. */
    uint16_t next_avail;
    uint16_t next_used;
    bool avail_wrap;
    bool used_wrap;
    uint16_t avail_seen;     /* split: the driver's index as it was last read */
    uint32_t unsignalled;    /* ring slots used since the last decision on an interrupt */
    uint32_t slots_in_flight;
    struct vk_flight *in_flight; /* by head */
    enum vk_breach breach;
    uint64_t breach_value;
    int kick_fd;
    _Atomic int interrupt_fd;
    uint64_t interrupts;     /* how often the driver was interrupted */
};

#endif
