"""The table of guest RAM that device code in C works with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.errors import InternalError
from vmm.kvm_cffi._kvm import ffi, lib
from vmm.kvm_cffi.mechanisms import allocated

if TYPE_CHECKING:
    from collections.abc import Iterable

ADDRESS_SPACE = 1 << 64
SPARE = 8
"""Regions that may be added: as many as ACPI has slots for."""


class GuestMemoryMap:
    """Where guest RAM is in this process: made of (guest address, bytes, host address) regions.

    The memory is its owner's and must outlive the map and every queue made with it. Raises:
    InternalError when a region is empty, overlaps another, or leaves the address space.
    """

    def __init__(self, regions: Iterable[tuple[int, int, int]]) -> None:
        self.regions: tuple[tuple[int, int, int], ...] = ()
        for region in sorted(regions):
            self._append(region)
        table = ffi.new("struct vk_memory_region[]", len(self.regions))
        for at, region in enumerate(self.regions):
            table[at].gpa, table[at].size, table[at].hva = region
        made = lib.vk_memory_new(table, len(self.regions), SPARE)
        self.handle = ffi.gc(allocated(made), lib.vk_memory_free)
        """The C object, ``vk_memory *``."""

    def add(self, gpa: int, size: int, hva: int) -> None:
        """Add a region behind all others, for devices that are at work too.

        Raises: InternalError when it is not behind them, or ``SPARE`` have been added.
        """
        before = self.regions
        self._append((gpa, size, hva))
        region = ffi.new("struct vk_memory_region *", (gpa, size, hva))
        if lib.vk_memory_add(self.handle, region) < 0:
            self.regions = before
            raise InternalError(f"{SPARE} regions have been added to guest memory; that is all")

    def _append(self, region: tuple[int, int, int]) -> None:
        gpa, size, hva = region
        end = sum(self.regions[-1][:2]) if self.regions else 0
        if gpa < end or size < 1 or gpa + size >= ADDRESS_SPACE or not 0 < hva < ADDRESS_SPACE:
            raise InternalError(
                f"Guest memory {gpa:#x}+{size:#x} at {hva:#x} is no region of its own below "
                f"2**64, or follows one that ends at {end:#x}; give disjoint ones"
            )
        self.regions += (region,)

    def wrote(self, hva: int, size: int) -> None:
        """Say that this process wrote bytes of RAM by other means than a queue's."""
        lib.vk_memory_wrote_at(self.handle, hva, size)

    def translate(self, gpa: int, size: int) -> int | None:
        """The host address of ``size`` bytes; None when they are not all in one region."""
        if not (0 <= gpa < ADDRESS_SPACE and 0 < size < ADDRESS_SPACE):
            return None
        found = lib.vk_memory_translate(self.handle, gpa, size)
        return None if found == ffi.NULL else int(ffi.cast("uintptr_t", found))
