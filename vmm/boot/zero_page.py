"""What a bzImage is handed: the boot parameters, called the zero page.

Specification: Linux Documentation/arch/x86/zero-page.rst and arch/x86/include/uapi/asm/bootparam.h.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vmm.boot import layout
from vmm.boot.bzimage import HEADER_AT
from vmm.boot.entry import KernelEntry
from vmm.boot.layout import RamRange
from vmm.boot.memmap import MapEntry
from vmm.errors import InternalError

SIZE = 4096
ACPI_RSDP_ADDR = 0x070
E820_ENTRIES = 0x1E8
TYPE_OF_LOADER = 0x210
CODE32_START = 0x214
RAMDISK_IMAGE = 0x218
CMD_LINE_PTR = 0x228
E820_TABLE = 0x2D0
E820_MAX_ENTRIES = 128

UNDEFINED_LOADER = 0xFF
MAP_ENTRY = struct.Struct("<QQI")


def encode_zero_page(
    kernel: KernelEntry, initramfs: RamRange | None, entries: Sequence[MapEntry]
) -> bytes:
    """Make ``struct boot_params``, which the kernel finds through RSI."""
    if len(entries) > E820_MAX_ENTRIES:
        raise InternalError(
            f"A memory map of {len(entries)} entries does not fit into the {E820_MAX_ENTRIES} of "
            f"the boot parameters"
        )
    page = bytearray(SIZE)
    header = kernel.setup_header
    page[HEADER_AT : HEADER_AT + len(header)] = header
    page[TYPE_OF_LOADER] = page[TYPE_OF_LOADER] or UNDEFINED_LOADER
    struct.pack_into("<Q", page, ACPI_RSDP_ADDR, layout.RSDP)
    struct.pack_into("<I", page, CODE32_START, kernel.address)
    struct.pack_into("<I", page, CMD_LINE_PTR, layout.CMDLINE)
    # Both addresses are below 4 GiB: the 32-bit fields of the header are enough.
    struct.pack_into("<II", page, RAMDISK_IMAGE, *(initramfs or (0, 0)))
    page[E820_ENTRIES] = len(entries)
    for index, entry in enumerate(entries):
        MAP_ENTRY.pack_into(page, E820_TABLE + index * MAP_ENTRY.size, *entry)
    return bytes(page)
