"""How much of guest RAM the host has given memory to."""

from __future__ import annotations

import os

from vmm.machine.memory import GuestMemory

PAGE = 4096


def resident(memory: GuestMemory) -> int:
    """The pages of RAM, of one region, that the host has given."""
    [region] = memory.regions
    if region.fd is not None:
        return os.fstat(region.fd).st_blocks * 512 // PAGE
    with open("/proc/self/pagemap", "rb") as pagemap:
        pagemap.seek(region.hva // PAGE * 8)
        entries = pagemap.read(8 * region.size // PAGE)
    return sum(1 for at in range(7, len(entries), 8) if entries[at] & 0xC0)
