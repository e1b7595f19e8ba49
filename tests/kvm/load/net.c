/* A network under load. Source: VIRTIO 1.2, section 5.1. */
#include "frame.h"
#include "steps.h"
#include "virtio.h"

#define HEADER_BYTES 12u /* virtio-net's, before each frame */
#define BUFFER_BYTES 2048u
#define GUEST_END 2

static struct device device;
static struct queue rx, tx;
static uint8_t *rx_buffers, *tx_buffers;
static uint32_t tx_in_flight;

static struct frame *frame_of(uint8_t *buffers, uint32_t head)
{
    return (struct frame *)(buffers + head * BUFFER_BYTES + HEADER_BYTES);
}

static void open_net(void)
{
    if (rx_buffers != NULL)
        return;
    device_open(&device, DEVICE_NET);
    queue_open(&device, 0, &rx);
    queue_open(&device, 1, &tx);
    rx_buffers = allocate((uint64_t)rx.size * BUFFER_BYTES);
    tx_buffers = allocate((uint64_t)tx.size * BUFFER_BYTES);
    for (uint16_t i = 0; i < rx.size; i++) {
        rx.desc[i] = (struct desc){address_of(rx_buffers) + i * BUFFER_BYTES, BUFFER_BYTES,
                                   DESC_WRITE, 0};
        queue_add(&rx, i);
    }
    device_start(&device);
    queue_publish(&rx);
}

static void collect_sent(void)
{
    struct used_entry entry;
    while (queue_take(&tx, &entry))
        tx_in_flight--;
}

/* Buffers go round in order, which is that of their return: one queue of a tap sends in order. */
static struct frame *next_to_send(uint32_t bytes)
{
    static uint32_t next;
    while (tx_in_flight == tx.size) {
        queue_publish(&tx);
        collect_sent();
        relax();
    }
    uint32_t head = next++ & (tx.size - 1u);
    tx.desc[head] = (struct desc){address_of(tx_buffers) + head * BUFFER_BYTES,
                                  HEADER_BYTES + bytes, 0, 0};
    tx_in_flight++;
    queue_add(&tx, (uint16_t)head);
    return frame_of(tx_buffers, head);
}

static void put(enum frame_kind kind, uint64_t number, uint32_t bytes)
{
    frame_fill(next_to_send(bytes), kind, number, GUEST_END, bytes);
}

static void wait_until_sent(void)
{
    queue_publish(&tx);
    while (tx_in_flight != 0) {
        collect_sent();
        relax();
    }
}

static void give_back(uint32_t head)
{
    queue_add(&rx, (uint16_t)head);
}

/* A frame of ours that has arrived, or NULL; others are passed over. */
static struct frame *arrived(struct used_entry *entry)
{
    while (queue_take(&rx, entry)) {
        struct frame *frame = frame_of(rx_buffers, entry->head);
        entry->bytes -= HEADER_BYTES;
        if (frame->ethertype == FRAME_ETHERTYPE && frame->kind == FRAME_DATA)
            return frame;
        give_back(entry->head);
    }
    return NULL;
}

void net_send(uint32_t bytes, uint64_t frames)
{
    open_net();
    if (bytes < sizeof(struct frame) || bytes > BUFFER_BYTES - HEADER_BYTES)
        fail("a frame cannot have so many bytes", bytes);
    uint64_t start = cycles_now();
    for (uint64_t i = 0; i < frames; i++) {
        put(FRAME_DATA, i, bytes);
        if ((i & 15) == 15)
            queue_publish(&tx);
    }
    wait_until_sent();
    uint64_t took = cycles_now() - start;
    say("send");
    say_number("frames", frames);
    say_number("cycles", took);
    say("\n");
}

void net_receive(uint64_t frames, uint64_t window, uint64_t cycles)
{
    open_net();
    say("ready receive\n");
    uint64_t start = cycles_now(), first = 0, last = 0, got = 0, wrong = 0, disordered = 0;
    while (got < frames && cycles_now() - start < cycles) {
        struct used_entry entry;
        struct frame *frame = arrived(&entry);
        if (frame == NULL) {
            queue_publish(&rx);
            relax();
            continue;
        }
        last = cycles_now();
        first = got == 0 ? last : first;
        wrong += !frame_is_right(frame, entry.bytes);
        disordered += frame->number != got++;
        give_back(entry.head);
        if (got % window == 0 || got == frames) {
            queue_publish(&rx);
            put(FRAME_ANSWER, got, 64);
            queue_publish(&tx);
            collect_sent();
        }
    }
    wait_until_sent();
    say("receive");
    say_number("frames", got);
    say_number("wrong", wrong);
    say_number("disordered", disordered);
    say_number("cycles", last - first);
    say("\n");
}

void net_echo(uint64_t frames, uint64_t cycles)
{
    open_net();
    say("ready echo\n");
    uint64_t start = cycles_now(), got = 0;
    while (got < frames && cycles_now() - start < cycles) {
        struct used_entry entry;
        struct frame *frame = arrived(&entry);
        if (frame == NULL) {
            relax();
            continue;
        }
        got++;
        put(FRAME_ANSWER, frame->number, entry.bytes);
        queue_publish(&tx);
        give_back(entry.head);
        queue_publish(&rx);
        collect_sent();
    }
    wait_until_sent();
    say("echo");
    say_number("frames", got);
    say("\n");
}
