"""Which pages of guest RAM change while the machine runs: what KVM saw the guest write, joined with
what the devices of this process wrote.

KVM protects a page again only when it is told to (KVM_CLEAR_DIRTY_LOG), and that goes in pieces, so
that the vCPUs wait for none of them long. Source: Linux Documentation/virt/kvm/api.rst, 4.117 and
7.5, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vmm.kvm_cffi import PageSet, WriteRecord, constants
from vmm.page import PAGE

if TYPE_CHECKING:
    from vmm.boot.layout import RamRange
    from vmm.kvm_cffi import GuestMemoryMap, Vm
    from vmm.machine.memory import GuestMemory, Region

BY_HAND = constants.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | constants.KVM_DIRTY_LOG_INITIALLY_SET
CLEAR_PAGES = 1 << 14
"""Pages that are protected again by one call: 64 MiB."""


class DirtyLog:
    """What changes in RAM between two calls of ``collect``; made by ``open``."""

    def __init__(
        self, vm: Vm, regions: Sequence[Region], record: WriteRecord, *, by_hand: bool
    ) -> None:
        self._vm = vm
        self._record = record
        self._by_hand = by_hand
        self._is_first = True
        self._withheld: dict[int, PageSet] = {}
        """What changed in blocks that were not plugged: it counts once they are, by region."""
        self.regions = regions

    @classmethod
    @contextmanager
    def open(cls, vm: Vm, memory: GuestMemory, memory_map: GuestMemoryMap) -> Iterator[DirtyLog]:
        """Watch all RAM until the scope is left. Raises: HostError."""
        regions = memory.regions
        with WriteRecord(
            memory_map, [(each.gpa, each.size, each.hva) for each in regions]
        ) as record:
            before, memory.wrote = memory.wrote, memory_map.wrote
            # The second flag spares protecting all of it at once when the log is turned on.
            able = vm.check_extension(constants.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) & BY_HAND
            try:
                _protect_by_hand(vm, able)
                _watch(vm, regions, wanted=True)
                yield cls(vm, regions, record, by_hand=able != 0)
            finally:
                memory.wrote = before
                _watch(vm, regions, wanted=False)
                _protect_by_hand(vm, 0)

    def collect(self) -> list[PageSet]:
        """The pages that changed since the last call, or all at the first, a set a region.

        Of a region for virtio-mem they are those of the blocks that are plugged. It takes a
        millisecond a gigabyte or more: call it in a thread while the guest runs.
        Raises: HostError.
        """
        sets = [self._collect(at, region) for at, region in enumerate(self.regions)]
        self._is_first = False
        return sets

    def _collect(self, at: int, region: Region) -> PageSet:
        pages = PageSet(region.gpa, region.size // PAGE)
        pages.bits[:] = self._vm.get_dirty_log(region.slot, region.size)
        for first in range(0, pages.pages if self._by_hand else 0, CLEAR_PAGES):
            count = min(CLEAR_PAGES, pages.pages - first)
            part = pages.bits[first // 8 : -(-(first + count) // 64) * 8]
            if any(part):
                self._vm.clear_dirty_log(region.slot, first, count, part)
        self._record.take(at, pages)
        if self._is_first:
            pages.fill()
        if at in self._withheld:
            pages.add(self._withheld.pop(at))
        if region.blocks is not None:
            # Only now: what the guest wrote by then to a block, it had plugged before.
            rest = _keep(pages, region.blocks.ranges)
            if not self._is_first:  # Else the other side has zeros there.
                self._withheld[at] = rest
        return pages


def _keep(pages: PageSet, ranges: Sequence[RamRange]) -> PageSet:
    """Keep the pages in these ranges, which begin and end at multiples of 8 pages; the others."""
    rest = PageSet(pages.gpa, pages.pages)
    rest.bits[:] = pages.bits
    kept = bytearray(len(pages.bits))
    for gpa, size in ranges:
        first = (gpa - pages.gpa) // PAGE // 8
        part = slice(first, first + size // PAGE // 8)
        kept[part] = pages.bits[part]
        rest.bits[part] = bytes(size // PAGE // 8)
    pages.bits[:] = kept
    return rest


def _protect_by_hand(vm: Vm, flags: int) -> None:
    vm.enable_cap(constants.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, flags)


def _watch(vm: Vm, regions: Sequence[Region], *, wanted: bool) -> None:
    for each in regions:
        vm.set_user_memory_region(each.slot, each.gpa, each.size, each.hva, log_dirty=wanted)
