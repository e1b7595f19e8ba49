/* Consoles under load: virtio's, and the serial port. Source: VIRTIO 1.2, section 5.3; the 16550's. */
#include "steps.h"
#include "virtio.h"

#define SERIAL_PORT 0x3f8
#define LINE_STATUS 5
#define TRANSMITTER_EMPTY 0x20
#define IN_FLIGHT 4u

static struct device device;
static struct queue rx, tx;

static uint8_t letter(uint64_t at)
{
    return (uint8_t)(at % 64 == 63 ? '\n' : 'a' + at % 26);
}

void console_write(uint32_t bytes, uint64_t times)
{
    if (tx.size == 0) {
        device_open(&device, DEVICE_CONSOLE);
        queue_open(&device, 0, &rx);
        queue_open(&device, 1, &tx);
        device_start(&device);
    }
    uint64_t mark = allocated();
    uint8_t *text = allocate(bytes);
    for (uint32_t i = 0; i < bytes; i++)
        text[i] = letter(i);
    struct used_entry entry;
    uint64_t start = cycles_now();
    for (uint64_t asked = 0, done = 0; done < times; done += queue_take(&tx, &entry)) {
        if (asked == times || asked - done == IN_FLIGHT) {
            relax();
            continue;
        }
        uint16_t head = (uint16_t)(asked++ % IN_FLIGHT);
        tx.desc[head] = (struct desc){address_of(text), bytes, 0, 0};
        queue_add(&tx, head);
        queue_publish(&tx);
    }
    uint64_t took = cycles_now() - start;
    forget(mark);
    say("console");
    say_number("bytes", bytes * times);
    say_number("cycles", took);
    say("\n");
}

/* As drivers do: one look at the line, one byte. */
void serial_write(uint64_t bytes)
{
    uint64_t start = cycles_now();
    for (uint64_t i = 0; i < bytes; i++) {
        while ((in_8(SERIAL_PORT + LINE_STATUS) & TRANSMITTER_EMPTY) == 0)
            relax();
        out_8(SERIAL_PORT, letter(i));
    }
    uint64_t took = cycles_now() - start;
    say("serial");
    say_number("bytes", bytes);
    say_number("cycles", took);
    say("\n");
}
