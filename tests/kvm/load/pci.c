/* Source: PCI Local Bus Specification 3.0, sections 3.2.2.3 and 6.2.5. */
#include "pci.h"

#define SLOTS 32
#define BARS 6
#define ADDRESS_PORT 0xcf8
#define DATA_PORT 0xcfc
#define ENABLE 0x80000000u
#define COMMAND 0x04
#define BAR_0 0x10
#define MEMORY_AND_MASTER 0x6
#define IS_PORT 0x1
#define IS_64_BIT 0x4
#define WINDOW 0xc0000000u /* devices are here on every machine this runs on; RAM ends below */
#define NOBODY 0xffffffffu

static uint64_t ecam;
static uint64_t window_end = WINDOW;

void pci_use_ecam(uint64_t base)
{
    ecam = base;
}

static volatile uint32_t *mapped(uint32_t slot, uint32_t offset)
{
    return (volatile uint32_t *)(uintptr_t)(ecam + ((uint64_t)slot << 15) + (offset & ~3u));
}

uint32_t pci_read(uint32_t slot, uint32_t offset)
{
    if (ecam != 0)
        return *mapped(slot, offset);
    out_32(ADDRESS_PORT, ENABLE | slot << 11 | (offset & ~3u));
    return in_32(DATA_PORT);
}

static void write(uint32_t slot, uint32_t offset, uint32_t value)
{
    if (ecam != 0) {
        *mapped(slot, offset) = value;
        return;
    }
    out_32(ADDRESS_PORT, ENABLE | slot << 11 | (offset & ~3u));
    out_32(DATA_PORT, value);
}

uint8_t pci_read_8(uint32_t slot, uint32_t offset)
{
    return (uint8_t)(pci_read(slot, offset) >> 8 * (offset & 3));
}

/* Places the BAR and says how many registers it takes. */
static uint32_t place(uint32_t slot, uint32_t bar)
{
    uint32_t at = BAR_0 + 4 * bar;
    uint32_t kind = pci_read(slot, at);
    write(slot, at, ~0u);
    uint32_t sizes = pci_read(slot, at);
    uint64_t size = ~(sizes & ~0xfu) + 1u;
    bool is_wide = (kind & IS_PORT) == 0 && (kind & IS_64_BIT) != 0;
    if ((kind & IS_PORT) != 0 || size == 0) {
        write(slot, at, kind);
        return is_wide ? 2 : 1;
    }
    window_end = (window_end + size - 1) & ~(size - 1);
    write(slot, at, (uint32_t)window_end);
    if (is_wide)
        write(slot, at + 4, 0);
    window_end += size;
    return is_wide ? 2 : 1;
}

/* None may lie where another still is while the places change, so all are turned off first. */
void pci_place_bars(void)
{
    for (uint32_t slot = 0; slot < SLOTS; slot++)
        if (pci_read(slot, 0) != NOBODY)
            write(slot, COMMAND, 0);
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        bool is_bridge = (pci_read_8(slot, 0x0e) & 0x7f) != 0;
        if (pci_read(slot, 0) == NOBODY || is_bridge)
            continue;
        for (uint32_t bar = 0; bar < BARS;)
            bar += place(slot, bar);
        write(slot, COMMAND, MEMORY_AND_MASTER);
    }
}

int pci_find(uint32_t identity, uint32_t nth)
{
    for (uint32_t slot = 0; slot < SLOTS; slot++)
        if (pci_read(slot, 0) == identity && nth-- == 0)
            return (int)slot;
    return -1;
}

volatile uint8_t *pci_bar(uint32_t slot, uint32_t bar)
{
    return (volatile uint8_t *)(uintptr_t)(pci_read(slot, BAR_0 + 4 * bar) & ~0xfu);
}
