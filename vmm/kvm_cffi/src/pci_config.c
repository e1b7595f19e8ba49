/*
 * PCI configuration mechanism #1, ports 0xCF8-0xCFF. PCI Local Bus 3.0, section 3.2.2.3.2.
 *
 * The address register and every read are served here, the reads from shadow pages that Python keeps
 * current. Writes to the data ports have effects, so they go to the loop.
 */
#include "kvm_cffi.h"

#include <stdlib.h>

#define DATA_PORTS 4 /* offset of 0xCFC from 0xCF8 */
#define ENABLE 0x80000000u
#define WRITABLE 0x80fffffcu

struct vk_config_address {
    vk_mechanism mechanism;
    _Atomic uint32_t address;
    const uint8_t *shadow;
    uint64_t shadow_bytes;
};

/*
 * GUEST: address, offset and size are all the guest's; every way out of the shadow reads as ones.
 * The address register is loaded once: another vCPU may write it meanwhile.
 */
static uint64_t read_shadow(vk_config_address *config, uint64_t byte, uint32_t size)
{
    uint32_t address = atomic_load(&config->address);
    uint32_t bus = address >> 16 & 0xff;
    uint64_t at = (address >> 11 & 31) << 15 | (address >> 8 & 7) << 12 | (address & 0xfc);
    at += byte;
    if ((address & ENABLE) == 0 || bus != 0 || byte + size > 4 || at + size > config->shadow_bytes)
        return UINT64_MAX;
    return vk_load_shadow(config->shadow + at, size);
}

static bool config_read(vk_mechanism *self, uint64_t offset, uint32_t size, uint64_t *value)
{
    vk_config_address *config = (vk_config_address *)self;
    if (offset >= DATA_PORTS)
        *value = offset < DATA_PORTS + 4 ? read_shadow(config, offset - DATA_PORTS, size) : UINT64_MAX;
    else if (offset + size > DATA_PORTS)
        *value = UINT64_MAX;
    else
        *value = atomic_load(&config->address) >> (8 * offset);
    return true;
}

static bool config_write(vk_mechanism *self, uint64_t offset, uint32_t size, uint64_t value)
{
    vk_config_address *config = (vk_config_address *)self;
    if (offset >= DATA_PORTS)
        return false;
    if (offset == 0 && size == 4) /* narrower writes are not the address register's */
        atomic_store(&config->address, (uint32_t)value & WRITABLE);
    return true;
}

vk_config_address *vk_config_address_new(const void *shadow, uint64_t shadow_bytes)
{
    static const struct vk_mechanism_ops ops = {.read = config_read, .write = config_write};
    vk_config_address *config = calloc(1, sizeof *config);
    if (config == NULL)
        return NULL;
    config->mechanism.ops = &ops;
    config->shadow = shadow;
    config->shadow_bytes = shadow_bytes;
    return config;
}

uint32_t vk_config_address_get(vk_config_address *config)
{
    return atomic_load(&config->address);
}

void vk_config_address_set(vk_config_address *config, uint32_t address)
{
    atomic_store(&config->address, address & WRITABLE);
}
