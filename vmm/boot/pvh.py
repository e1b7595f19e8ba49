"""What a kernel with a PVH entry is handed: start information, modules, memory map.

Specification: Xen's public/arch-x86/hvm/start_info.h, version 1.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vmm.boot import layout
from vmm.boot.layout import RamRange
from vmm.boot.memmap import MapEntry

START_MAGIC = 0x336EC578
START_VERSION = 1

START_INFO = struct.Struct("<IIIIQQQQII")
MODULE = struct.Struct("<QQQQ")
MAP_ENTRY = struct.Struct("<QQII")


def encode_start_info(initramfs: RamRange | None, map_entries: int) -> bytes:
    """Make ``struct hvm_start_info``, which the kernel finds through RBX."""
    return START_INFO.pack(
        START_MAGIC,
        START_VERSION,
        0,
        0 if initramfs is None else 1,
        0 if initramfs is None else layout.MODULE_LIST,
        layout.CMDLINE,
        layout.RSDP,
        layout.PVH_MEMORY_MAP,
        map_entries,
        0,
    )


def encode_module_list(initramfs: RamRange) -> bytes:
    """Make the list of ``struct hvm_modlist_entry`` with the initramfs alone."""
    return MODULE.pack(initramfs.gpa, initramfs.size, 0, 0)


def encode_memory_map(entries: Sequence[MapEntry]) -> bytes:
    """Make the array of ``struct hvm_memmap_table_entry``."""
    return b"".join(MAP_ENTRY.pack(*entry, 0) for entry in entries)
