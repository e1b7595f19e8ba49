"""The guest's physical memory map: the one place that knows an address.

Below 1 MiB lie the structures that a kernel is handed at entry, from 1 MiB the RAM, from 3 GiB to
4 GiB the hole with 32-bit devices, from 4 GiB the rest of the RAM, above it 64-bit devices, and in
the last MiB of the address space the platform's own registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vmm.errors import ConfigError
from vmm.page import PAGE

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

EBDA_POINTER = 0x40E
"""The BIOS data area's 16-bit word that holds the segment of the extended BIOS data area."""
BOOT_GDT = 0x500
BOOT_IDT = 0x520
START_INFO = 0x6000
MODULE_LIST = 0x6040
PVH_MEMORY_MAP = 0x7000
ZERO_PAGE = 0x7000
"""The same place as the PVH memory map: a kernel gets one or the other."""
BOOT_STACK = 0x8FF0
CMDLINE = 0x20000
CMDLINE_MAX_SIZE = 0x10000
"""In bytes, with the NUL at the end."""

LOW_RAM_END = 0xA0000
EBDA = 0xA0000
RSDP = EBDA
"""The ACPI tables follow at once, up to the SMBIOS."""
SMBIOS = 0xF0000
BIOS_END = 0x100000
HIGH_RAM = 0x100000
"""Where RAM begins that the memory map calls usable again, and where a kernel is loaded."""

HOLE = 0xC0000000
"""RAM stops here and goes on at RAM_ABOVE_HOLE."""
MMIO32 = 0xC0000000
MMIO32_SIZE = 640 * MIB
ECAM = 0xE8000000
ECAM_SIZE = 256 * MIB
ECAM_SEGMENT_SIZE = 1 * MIB
KVM_TSS = 0xF8000000
KVM_TSS_SIZE = 0x3000
KVM_IDENTITY_MAP = 0xF8003000
KVM_IDENTITY_MAP_SIZE = 0x1000
IOAPIC = 0xFEC00000
IOAPIC_SIZE = 0x20
TPM = 0xFED40000
TPM_SIZE = 0x1000
LAPIC = 0xFEE00000
MSI_WINDOW = LAPIC
MSI_WINDOW_SIZE = 0x100000
RAM_ABOVE_HOLE = 0x1_0000_0000

UNUSED_TOP = 64 * KIB
"""What is left free at the very end of the address space."""
PLATFORM_SIZE = 1 * MIB
HOTPLUG_ALIGNMENT = 128 * MIB
MMIO32_GRANULARITY = PAGE
MMIO64_GRANULARITY = 4 * GIB


class RamRange(NamedTuple):
    """A stretch of RAM: guest physical address and size in bytes."""

    gpa: int
    size: int

    @property
    def end(self) -> int:
        """The first address after the range."""
        return self.gpa + self.size


class Area(NamedTuple):
    """A stretch of addresses for devices: base and size in bytes."""

    base: int
    size: int

    @property
    def end(self) -> int:
        """The first address after the area."""
        return self.base + self.size


def ram_ranges(size: int) -> list[RamRange]:
    """Lay ``size`` bytes of RAM out below the hole and, what is left, from 4 GiB on."""
    below = min(size, HOLE)
    ranges = [RamRange(0, below)]
    if size > below:
        ranges.append(RamRange(RAM_ABOVE_HOLE, size - below))
    return ranges


class DeviceAreas(NamedTuple):
    """Where a machine's devices may live, for its amount of RAM and width of addresses.

    ``hotplug`` is where memory that is plugged in later by ACPI goes, None where none may come;
    ``virtio_mem`` are the regions of virtio-mem devices.
    """

    mmio32: Area
    ecam: Area
    mmio64: Area
    platform: Area
    hotplug: Area | None = None
    virtio_mem: tuple[Area, ...] = ()

    def platform_page(self, index: int) -> int:
        """The address of the platform's n-th page of registers, counted from the top down."""
        return self.platform.end - (index + 1) * PAGE


class Growth(NamedTuple):
    """The room that a virtio-mem device needs: bytes, and what its address is a multiple of."""

    size: int
    alignment: int


def device_areas(
    ram_size: int,
    phys_bits: int,
    hotplug_size: int | None = None,
    virtio_mem: Sequence[Growth] = (),
) -> DeviceAreas:
    """Work out the device areas of a machine.

    Units: sizes in bytes; ``hotplug_size`` is the room kept for memory that is plugged in later by
    ACPI, None where that is not configured.
    Raises: ConfigError (caller) when RAM leaves no room for devices below 2^``phys_bits``.
    """
    top = (1 << phys_bits) - UNUSED_TOP
    platform = Area(top - PLATFORM_SIZE, PLATFORM_SIZE)
    start = max(ram_ranges(ram_size)[-1].end, RAM_ABOVE_HOLE)
    hotplug = None
    if hotplug_size is not None:
        hotplug = Area(_aligned(start, HOTPLUG_ALIGNMENT), hotplug_size)
        start = hotplug.end
    regions = []
    for growth in virtio_mem:
        regions.append(Area(_aligned(start, growth.alignment), growth.size))
        start = regions[-1].end
    if start >= platform.base:
        room = (hotplug_size or 0) + sum(growth.size for growth in virtio_mem)
        raise ConfigError(
            f"Memory of {ram_size // MIB} MiB with {room // MIB} MiB for hot-plug "
            f"(memory.size, memory.hotplug_size; --memory) ends at {start:#x}, and addresses of "
            f"{phys_bits} bits leave devices nothing above {platform.base:#x}; use less memory or "
            f"raise cpus.max_phys_bits (--cpus max_phys_bits=…) up to what the host has"
        )
    return DeviceAreas(
        mmio32=Area(MMIO32, MMIO32_SIZE),
        ecam=Area(ECAM, ECAM_SIZE),
        mmio64=Area(start, platform.base - start),
        platform=platform,
        hotplug=hotplug,
        virtio_mem=tuple(regions),
    )


def _aligned(address: int, alignment: int) -> int:
    return -(-address // alignment) * alignment


def split_area(area: Area, granularity: int, weights: Sequence[int]) -> list[Area]:
    """Share an area out among PCI segments by weight; the last one takes what division leaves.

    Units: ``granularity`` in bytes; each share but the last is a multiple of it.
    """
    unit = area.size // (granularity * sum(weights)) * granularity
    shares: list[Area] = []
    base = area.base
    for weight in weights[:-1]:
        shares.append(Area(base, unit * weight))
        base += unit * weight
    return [*shares, Area(base, area.end - base)]
