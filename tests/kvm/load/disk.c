/* A disk under load: one request a slot, its three descriptors prepared once. Source: VIRTIO 1.2, 5.2. */
#include "steps.h"
#include "virtio.h"

#define SECTOR_BYTES 512u
#define BLOCK_BYTES 4096u
#define BLOCK_WORDS (BLOCK_BYTES / 8)
#define SPREAD 0x9e3779b1u /* odd: times it, modulo a power of two, every block comes once */
#define UNANSWERED 0xee

struct header {
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;
};

struct request {
    struct header *header;
    uint64_t *data;
    volatile uint8_t *status;
    uint64_t block;
};

static struct device device;
static struct queue queue;
static struct request requests[DEPTH_MOST];
static uint64_t sectors;

static void open_disk(void)
{
    if (sectors != 0)
        return;
    device_open(&device, DEVICE_BLOCK);
    queue_open(&device, 0, &queue);
    device_start(&device);
    sectors = *(volatile uint64_t *)device.config;
}

/* Gives each slot its buffers. A flush has no data, so its chain leaves the middle out. */
static void prepare(uint32_t depth, uint32_t bytes)
{
    if (depth == 0 || depth > DEPTH_MOST || depth * 3 > queue.size)
        fail("a disk's queue has no room for the depth", depth);
    for (uint32_t i = 0; i < depth; i++) {
        struct request *request = &requests[i];
        uint8_t *page = allocate(PAGE_BYTES);
        request->header = (struct header *)page;
        request->status = page + sizeof(struct header);
        request->data = allocate(bytes);
        struct desc *desc = &queue.desc[3 * i];
        desc[0] = (struct desc){address_of(page), sizeof(struct header), DESC_NEXT,
                                (uint16_t)(3 * i + 1)};
        desc[1] = (struct desc){address_of(request->data), bytes, DESC_NEXT,
                                (uint16_t)(3 * i + 2)};
        desc[2] = (struct desc){address_of(request->status), 1, DESC_WRITE, 0};
    }
}

static void ask(uint32_t slot, uint32_t type, uint64_t sector)
{
    struct request *request = &requests[slot];
    struct desc *desc = &queue.desc[3 * slot];
    *request->header = (struct header){type, 0, sector};
    *request->status = UNANSWERED;
    desc[0].next = (uint16_t)(3 * slot + (type == DISK_FLUSH ? 2 : 1));
    desc[1].flags = type == DISK_READ ? DESC_NEXT | DESC_WRITE : DESC_NEXT;
    queue_add(&queue, (uint16_t)(3 * slot));
}

/* The slot of a request that has ended, or -1. */
static int take(void)
{
    struct used_entry entry;
    if (!queue_take(&queue, &entry))
        return -1;
    uint32_t slot = entry.head / 3;
    if (slot >= DEPTH_MOST || *requests[slot].status != 0)
        fail("a disk's request failed; its status is", *requests[slot % DEPTH_MOST].status);
    return (int)slot;
}

/* Waits for the next request to end: its slot. What was asked for meanwhile is told the device first. */
static uint32_t await_one(void)
{
    queue_publish(&queue);
    for (;;) {
        int slot = take();
        if (slot >= 0)
            return (uint32_t)slot;
        relax();
    }
}

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

void disk_run(uint32_t type, bool is_random, uint32_t depth, uint32_t bytes, uint64_t cycles)
{
    open_disk();
    uint64_t mark = allocated();
    prepare(depth, bytes);
    uint64_t units = sectors * SECTOR_BYTES / bytes, per_unit = bytes / SECTOR_BYTES;
    uint64_t random = 88172645463325252u, done = 0, unit = 0;
    uint64_t start = cycles_now(), now = start;
    uint32_t in_flight = 0;
    for (; in_flight < depth; in_flight++) {
        ask(in_flight, type, unit * per_unit);
        unit = is_random ? next_random(&random) % units : (unit + 1) % units;
    }
    while (in_flight != 0) {
        uint32_t slot = await_one();
        done++;
        now = cycles_now();
        if (now - start < cycles) {
            ask(slot, type, unit * per_unit);
            unit = is_random ? next_random(&random) % units : (unit + 1) % units;
        } else {
            in_flight--;
        }
    }
    forget(mark);
    say("disk");
    say_number("requests", done);
    say_number("cycles", now - start);
    say("\n");
}

static uint64_t content(uint64_t block, uint64_t word)
{
    return block << 32 | word;
}

static void fill(struct request *request)
{
    for (uint64_t i = 0; i < BLOCK_WORDS; i++)
        request->data[i] = content(request->block, i);
}

static bool is_right(const struct request *request)
{
    for (uint64_t i = 0; i < BLOCK_WORDS; i++)
        if (request->data[i] != content(request->block, i))
            return false;
    return true;
}

/* Starts with the next block of an order: false when all had their turn. */
static bool begin(uint32_t slot, bool writes, uint64_t *next, uint64_t blocks)
{
    if (*next == blocks)
        return false;
    struct request *request = &requests[slot];
    request->block = (*next)++ * SPREAD & (blocks - 1);
    if (writes)
        fill(request);
    ask(slot, writes ? DISK_WRITE : DISK_READ, request->block * (BLOCK_BYTES / SECTOR_BYTES));
    return true;
}

/* Goes through all blocks once: how many read wrong. Reads follow the writes of their blocks at once. */
static uint64_t pass(bool writes, uint64_t blocks, uint32_t depth)
{
    uint64_t next = 0, wrong = 0;
    uint32_t in_flight = 0;
    while (in_flight < depth && begin(in_flight, writes, &next, blocks))
        in_flight++;
    while (in_flight != 0) {
        uint32_t slot = await_one();
        struct request *request = &requests[slot];
        if (request->header->type == DISK_WRITE) {
            memset(request->data, 0, BLOCK_BYTES);
            ask(slot, DISK_READ, request->header->sector);
            continue;
        }
        wrong += !is_right(request);
        in_flight -= !begin(slot, writes, &next, blocks);
    }
    return wrong;
}

void disk_check(uint64_t blocks, uint32_t depth)
{
    open_disk();
    if (blocks == 0 || (blocks & (blocks - 1)) != 0 ||
        blocks * BLOCK_BYTES > sectors * SECTOR_BYTES)
        fail("a disk is not checked by so many blocks", blocks);
    uint64_t mark = allocated();
    prepare(depth, BLOCK_BYTES);
    uint64_t wrong = pass(true, blocks, depth);
    ask(0, DISK_FLUSH, 0);
    await_one();
    wrong += pass(false, blocks, depth);
    forget(mark);
    say("check");
    say_number("blocks", blocks);
    say_number("wrong", wrong);
    say("\n");
}
