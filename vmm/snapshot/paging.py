"""RAM that stays in a snapshot's file until it is touched, or the background comes to it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmm.errors import ConfigError
from vmm.kvm_cffi.pager import Pager
from vmm.machine.content import data_of
from vmm.snapshot.memory_file import parts_of

if TYPE_CHECKING:
    from vmm.machine.memory import GuestMemory


def read_on_demand(fd: int, memory: GuestMemory) -> None:
    """Begin to bring RAM from the file; ``memory`` has the pager until all of it is there.

    Raises: ConfigError for memory whose content is a file's at first (caller), HostError.
    """
    pager = Pager(fd, os.fstat(fd).st_size)
    memory.hold(pager)
    numbers = {}
    for region, offset in parts_of(memory.regions):
        if offset is None:
            continue
        zone = region.zone
        if zone.file is not None and not zone.is_file:
            raise ConfigError(
                f"Memory zone {zone.id} is a private copy of {zone.file}, which cannot be read on "
                "demand; restore with memory_restore_mode Copy"
            )
        number = pager.add(region.hva, region.size, zone.page_size, offset)
        numbers[region.slot] = number, offset
    for present in memory.present:
        if present.region.slot in numbers:
            number, offset = numbers[present.region.slot]
            for start, size in data_of(fd, offset + present.offset, present.range.size):
                pager.mark(number, start - offset, size)
    pager.start()
    memory.pager = pager
