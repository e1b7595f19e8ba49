/* Bringing a device up, once. */
#include "virtio.h"

#include "pci.h"

#define IDENTITY(type) ((0x1040u + (type)) << 16 | 0x1af4u)
#define CAPABILITIES 0x34
#define VENDOR_CAPABILITY 0x09
#define NO_INTERRUPT 1u

enum { CAP_COMMON = 1, CAP_NOTIFY = 2, CAP_DEVICE = 4 };
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };
enum { EVENT_IDX = 1u << 29 };
enum { VERSION_1 = 1u << 0, RING_PACKED = 1u << 2 }; /* of the second word */

static uint32_t ring_format; /* RING_PACKED, or nothing */

/* Offsets of the common configuration's fields. */
enum {
    DEVICE_FEATURE_SELECT = 0,
    DEVICE_FEATURE = 4,
    DRIVER_FEATURE_SELECT = 8,
    DRIVER_FEATURE = 12,
    STATUS = 20,
    QUEUE_SELECT = 22,
    QUEUE_SIZE = 24,
    QUEUE_ENABLE = 28,
    QUEUE_NOTIFY_OFF = 30,
    QUEUE_DESC = 32,
    QUEUE_DRIVER = 40,
    QUEUE_DEVICE = 48,
};

void use_packed_rings(void)
{
    ring_format = RING_PACKED;
}

static volatile uint16_t *at_16(const struct device *device, uint32_t offset)
{
    return (volatile uint16_t *)(device->common + offset);
}

static volatile uint32_t *at_32(const struct device *device, uint32_t offset)
{
    return (volatile uint32_t *)(device->common + offset);
}

static void set_64(const struct device *device, uint32_t offset, uint64_t value)
{
    *at_32(device, offset) = (uint32_t)value;
    *at_32(device, offset + 4) = (uint32_t)(value >> 32);
}

static void take_capability(struct device *device, uint32_t at)
{
    uint32_t slot = device->slot;
    volatile uint8_t *place = pci_bar(slot, pci_read_8(slot, at + 4)) + pci_read(slot, at + 8);
    switch (pci_read_8(slot, at + 3)) {
    case CAP_COMMON:
        device->common = place;
        break;
    case CAP_NOTIFY:
        device->notify = place;
        device->notify_multiplier = pci_read(slot, at + 16);
        break;
    case CAP_DEVICE:
        device->config = place;
        break;
    }
}

void device_open(struct device *device, enum device_type type)
{
    int slot = pci_find(IDENTITY((uint32_t)type), 0);
    if (slot < 0)
        fail("there is no virtio device of type", type);
    device->slot = (uint32_t)slot;
    for (uint32_t at = pci_read_8(device->slot, CAPABILITIES); at != 0;
         at = pci_read_8(device->slot, at + 1))
        if (pci_read_8(device->slot, at) == VENDOR_CAPABILITY)
            take_capability(device, at);
    device->common[STATUS] = 0;
    while (device->common[STATUS] != 0)
        relax();
    device->common[STATUS] = ACKNOWLEDGE | DRIVER;
    *at_32(device, DEVICE_FEATURE_SELECT) = 0;
    uint32_t agreed = *at_32(device, DEVICE_FEATURE) & EVENT_IDX;
    *at_32(device, DRIVER_FEATURE_SELECT) = 0;
    *at_32(device, DRIVER_FEATURE) = agreed;
    *at_32(device, DRIVER_FEATURE_SELECT) = 1;
    *at_32(device, DRIVER_FEATURE) = VERSION_1 | ring_format;
    device->common[STATUS] = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    if ((device->common[STATUS] & FEATURES_OK) == 0)
        fail("a device refuses its own features; its type is", type);
    device->has_events = agreed != 0;
    device->is_packed = ring_format != 0;
}

void queue_open(const struct device *device, uint16_t index, struct queue *queue)
{
    *at_16(device, QUEUE_SELECT) = index;
    uint16_t size = *at_16(device, QUEUE_SIZE);
    if (size == 0)
        fail("a device lacks a queue; its index is", index);
    if (size > QUEUE_ENTRIES) {
        size = QUEUE_ENTRIES;
        *at_16(device, QUEUE_SIZE) = size;
    }
    *queue = (struct queue){.index = index, .size = size, .has_events = device->has_events};
    queue->desc = allocate(sizeof *queue->desc * size);
    queue->avail = allocate(2 * (3 + (uint64_t)size));
    queue->used = allocate(6 + sizeof(struct used_entry) * size);
    queue->entries = (volatile struct used_entry *)(queue->used + 2);
    queue->avail_event = (volatile uint16_t *)(queue->entries + size);
    if (!device->is_packed) {
        queue->avail[0] = NO_INTERRUPT;
        queue->avail[2 + size] = 0x8000u;
    }
    if (device->is_packed)
        packed_open(queue, (void *)(uintptr_t)queue->avail, (void *)(uintptr_t)queue->used);
    set_64(device, QUEUE_DESC,
           device->is_packed ? address_of(queue->packed.entries) : address_of(queue->desc));
    set_64(device, QUEUE_DRIVER, address_of(queue->avail));
    set_64(device, QUEUE_DEVICE, address_of(queue->used));
    uint32_t doorbell = *at_16(device, QUEUE_NOTIFY_OFF) * device->notify_multiplier;
    queue->doorbell = (volatile uint16_t *)(device->notify + doorbell);
    *at_16(device, QUEUE_ENABLE) = 1;
}

void device_start(const struct device *device)
{
    device->common[STATUS] = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
}
