"""Where a vCPU's page tables put an address.

Source: Intel SDM, volume 3, chapter 4: 32-bit, PAE, 4-level and 5-level paging.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vmm.kvm_cffi.structs import Sregs

PAGE: Final = 1 << 12

CR0_PG: Final = 1 << 31
CR4_PSE: Final = 1 << 4
CR4_PAE: Final = 1 << 5
CR4_LA57: Final = 1 << 12
EFER_LMA: Final = 1 << 10

PRESENT: Final = 1 << 0
LARGE: Final = 1 << 7
ADDRESS: Final = 0x000F_FFFF_FFFF_F000

Read = Callable[[int, int], bytes]
"""Reads guest memory: an address and a size. Raises: GuestError outside of RAM."""


def translate(read: Read, sregs: Sregs, address: int) -> int | None:
    """Give the guest-physical address of a linear one, None where nothing is mapped.

    Raises: GuestError when a table is outside of RAM.
    """
    if not sregs.cr0 & CR0_PG:
        return address & 0xFFFF_FFFF
    if not sregs.cr4 & CR4_PAE:
        return _translate_32(read, sregs, address & 0xFFFF_FFFF)
    if sregs.efer & EFER_LMA:
        return _walk(read, sregs.cr3 & ADDRESS, address, 5 if sregs.cr4 & CR4_LA57 else 4)
    address &= 0xFFFF_FFFF
    # Four entries, at a place that is no page's beginning.
    entry = _entry(read, (sregs.cr3 & 0xFFFF_FFE0) + 8 * (address >> 30), 8)
    return _walk(read, entry & ADDRESS, address, 2) if entry & PRESENT else None


def _walk(read: Read, table: int, address: int, levels: int) -> int | None:
    for level in range(levels - 1, -1, -1):
        shift = 12 + 9 * level
        entry = _entry(read, table + 8 * (address >> shift & 0x1FF), 8)
        if not entry & PRESENT:
            return None
        within = (1 << shift) - 1
        if level == 0 or (entry & LARGE and level <= 2):
            return entry & ADDRESS & ~within | address & within
        table = entry & ADDRESS
    return None


def _translate_32(read: Read, sregs: Sregs, address: int) -> int | None:
    entry = _entry(read, (sregs.cr3 & 0xFFFF_F000) + 4 * (address >> 22), 4)
    if not entry & PRESENT:
        return None
    if entry & LARGE and sregs.cr4 & CR4_PSE:
        # Bits 32 to 39 of a page of 4 MiB are in bits 13 to 20.
        return (entry & 0xFFC0_0000) | (entry >> 13 & 0xFF) << 32 | address & 0x3F_FFFF
    entry = _entry(read, (entry & 0xFFFF_F000) + 4 * (address >> 12 & 0x3FF), 4)
    return entry & 0xFFFF_F000 | address & 0xFFF if entry & PRESENT else None


def _entry(read: Read, at: int, size: int) -> int:
    return int.from_bytes(read(at, size), "little")
