"""Guest RAM: host mappings, the KVM slots that show them to the guest, and checked access.

Each piece of a zone is one host mapping and one KVM slot, and so is the room in which a zone grows
by virtio-mem. Nothing here trusts an address: whatever is not entirely RAM raises GuestError.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from vmm.boot.layout import RamRange
from vmm.errors import ConfigError, GuestError, HostError, InternalError
from vmm.kvm_cffi import address_of
from vmm.machine.backing import map_zone, open_backing
from vmm.machine.memory_blocks import MemoryBlocks
from vmm.machine.zones import Piece, Room, Zone, lay_out

if TYPE_CHECKING:
    from vmm.kvm_cffi import Vm
    from vmm.kvm_cffi.pager import Pager

MADV_DONTNEED = 4
MADV_REMOVE = 9
MADV_POPULATE_WRITE = 23

POPULATE_STEP = 64 << 20
"""Much memory is touched or given back in steps of so many bytes: the loop turns in between."""
PROVIDE_STEP = 2 << 20
"""The same while the guest runs: a step takes about a millisecond."""


class Region(NamedTuple):
    """One mapped piece of RAM: guest address, size in bytes, host address, KVM slot.

    ``fd`` is what it is mapped from, at ``offset``; None for memory that has no descriptor.
    ``blocks`` says what of it the guest has, where that is for virtio-mem; else it is all.
    """

    gpa: int
    size: int
    hva: int
    slot: int
    zone: Zone
    mapping: mmap.mmap
    view: memoryview
    fd: int | None
    offset: int
    blocks: MemoryBlocks | None = None


class Present(NamedTuple):
    """A stretch of RAM that the guest has, inside one region."""

    region: Region
    range: RamRange

    @property
    def offset(self) -> int:
        """Where in the region it begins, in bytes."""
        return self.range.gpa - self.region.gpa


class GuestMemory:
    """All RAM of one VM; made by ``open``, gone when its scope is left."""

    def __init__(self, regions: Sequence[Region], mappings: contextlib.ExitStack) -> None:
        self._mappings = mappings
        self._added: dict[int, contextlib.ExitStack] = {}
        """Of regions that came later, by slot, what each holds."""
        self.wrote: Callable[[int, int], None] = _nobody_asks
        """Called with host address and size of what was written or discarded by these methods."""
        self.pager: Pager | None = None
        """What brings the content of RAM that is not all there yet."""
        self.boot_regions = len(regions)
        """How many there are at boot; those are in the first KVM slots."""
        self._set(regions)

    def _set(self, regions: Sequence[Region]) -> None:
        self.regions = tuple(sorted(regions))
        self._bases = [region.gpa for region in self.regions]
        self.ram = _merged([region for region in self.regions if region.blocks is None])

    @property
    def size(self) -> int:
        """The bytes of RAM in all, without what a guest plugs by virtio-mem."""
        return sum(region.size for region in self.regions if region.blocks is None)

    def room_of(self, zone: str) -> tuple[Zone, MemoryBlocks]:
        """The zone of an id, and the blocks by which it grows; there has to be one that does."""
        return next(
            (region.zone, region.blocks)
            for region in self.regions
            if region.blocks is not None and region.zone.id == zone
        )

    @property
    def present(self) -> list[Present]:
        """What there is of RAM with all that is plugged, ascending."""
        return [
            Present(region, range_)
            for region in self.regions
            for range_ in (
                [RamRange(region.gpa, region.size)]
                if region.blocks is None
                else region.blocks.ranges
            )
        ]

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        zones: Sequence[Zone],
        ranges: Sequence[RamRange],
        rooms: Sequence[Room] = (),
        fds: Mapping[int, int] | None = None,
    ) -> Iterator[GuestMemory]:
        """Map every zone, and the rooms in which they grow; on leaving unmap them again.

        ``fds`` are the descriptors, by slot, of memory that another VMM hands over.
        Raises: ConfigError (caller: zone sizes), HostError (host: file, memfd or huge pages).
        """
        with contextlib.ExitStack() as mappings:
            pieces = lay_out(zones, ranges)
            given = fds or {}
            regions = [
                _open_region(mappings, slot, piece, given.get(slot))
                for slot, piece in enumerate(pieces)
            ]
            for slot, (zone, range_) in enumerate(rooms, len(regions)):
                piece = Piece(range_, zone, zone.size)
                region = _open_region(mappings, slot, piece, given.get(slot))
                blocks = MemoryBlocks(*range_, zone.block_size)
                regions.append(region._replace(blocks=blocks))
            yield cls(regions, mappings)

    def add(self, zone: Zone, gpa: int, slot: int, fd: int | None = None) -> Region:
        """Map one more zone, behind all others; its slot is the caller's to enter.

        ``fd`` is the descriptor of memory that another VMM hands over.
        Raises: ConfigError (caller: its size), HostError.
        """
        [piece] = lay_out([zone], [RamRange(gpa, zone.size)])
        with contextlib.ExitStack() as held:
            region = _open_region(held, slot, piece, fd)
            self._added[slot] = self._mappings.enter_context(held.pop_all())
        self._set([*self.regions, region])
        return region

    def enter_slots(self, vm: Vm) -> None:
        """Show every region to the guest. Raises: HostError."""
        for region in self.regions:
            vm.set_user_memory_region(region.slot, region.gpa, region.size, region.hva)

    def hold(self, resource: contextlib.AbstractContextManager[object]) -> None:
        """Enter what works on this memory: it is left before any of it is unmapped."""
        self._mappings.enter_context(resource)

    def remove(self, region: Region) -> None:
        """Unmap a region that was added and that nobody has seen yet."""
        self._set([each for each in self.regions if each.slot != region.slot])
        self._added.pop(region.slot).close()

    def populate(self, *regions: Region, unasked: bool = False) -> Iterator[None]:
        """Touch the pages of the zones that ask for it, a step at a time; of all or some regions.

        ``unasked`` touches those of the other zones as well. Raises: HostError when the host runs
        out of memory.
        """
        for region in regions or self.regions:
            if (region.zone.prefault or unasked) and region.blocks is None:
                yield from _populate(region, 0, region.size, POPULATE_STEP)

    def provide(self, gpa: int, size: int) -> Iterator[None]:
        """Have memory behind a range that is plugged, a step at a time, where its zone wants so.

        Huge pages that were given back may be somebody else's by now: they are got here, where it
        is no harm if there are none. Raises: GuestError when a byte is not RAM, HostError.
        """
        for region, start, taken in self._spans(gpa, size):
            if region.zone.prefault or region.zone.hugepages:
                step = max(PROVIDE_STEP, region.zone.page_size)
                yield from _populate(region, start, taken, step)

    def read(self, gpa: int, size: int) -> bytes:
        """Copy ``size`` bytes out. Raises: GuestError when a byte of them is not RAM."""
        with self._pieces(gpa, size) as pieces:
            return b"".join(pieces)

    def write(self, gpa: int, data: bytes | memoryview) -> None:
        """Copy bytes in; nothing is written when a byte would miss RAM. Raises: GuestError."""
        source = memoryview(data)
        spans = self._spans(gpa, len(source))
        with self._pieces(gpa, len(source)) as pieces:
            for piece in pieces:
                piece[:] = source[: len(piece)]
                source = source[len(piece) :]
        for region, start, taken in spans:
            self.wrote(region.hva + start, taken)

    def write_from_file(
        self, gpa: int, size: int, file: io.BufferedIOBase | io.RawIOBase, offset: int
    ) -> None:
        """Read a piece of a file straight into RAM.

        Raises: GuestError when a byte would miss RAM, ConfigError when the file is shorter,
        HostError when it cannot be read.
        """
        spans = self._spans(gpa, size)
        try:
            with self._pieces(gpa, size) as pieces:
                for piece in pieces:
                    _fill_from_file(piece, file, offset)
                    offset += len(piece)
        finally:  # A file that is too short has written something, too.
            for region, start, taken in spans:
                self.wrote(region.hva + start, taken)

    def discard(self, gpa: int, size: int) -> None:
        """Give the whole pages of a range back to the host: until written they read as zeros, or
        as the file of a zone that is a private copy of one.

        Raises: GuestError when a byte is not RAM, HostError when a zone's file keeps its pages.
        """
        for region, start, taken in self._spans(gpa, size):
            page = region.zone.page_size
            first, end = -(-start // page) * page, (start + taken) // page * page
            if first < end:
                _discard(region, first, end - first)
                self.wrote(region.hva + first, end - first)

    def discard_unplugged(self) -> Iterator[None]:
        """Give back what lies behind blocks that are not plugged, a step at a time.

        Raises: HostError when a zone's file keeps its pages.
        """
        for region in self.regions:
            for gpa, size in () if region.blocks is None else region.blocks.gaps:
                for start in range(gpa, gpa + size, POPULATE_STEP):
                    self.discard(start, min(POPULATE_STEP, gpa + size - start))
                    yield

    def gpa_of(self, view: memoryview) -> int:
        """Where a view of RAM is for the guest. Raises: InternalError when it is none."""
        hva = address_of(view)
        for region in self.regions:
            if region.hva <= hva < region.hva + region.size:
                return region.gpa + hva - region.hva
        raise InternalError(f"Nothing of guest memory is at host address {hva:#x}")

    @contextlib.contextmanager
    def _pieces(self, gpa: int, size: int) -> Iterator[list[memoryview]]:
        """The views that cover a range of guest memory, checked whole before any is used.

        They are released at the end of the block: one that an error's traceback kept alive would
        keep the memory from being unmapped.
        """
        with contextlib.ExitStack() as views:
            yield [
                views.enter_context(region.view[start : start + taken])
                for region, start, taken in self._spans(gpa, size)
            ]

    def _spans(self, gpa: int, size: int) -> list[tuple[Region, int, int]]:
        """The regions that cover a range: of each, where in it the range begins, and how much."""
        spans = []
        while size > 0:
            at = bisect_right(self._bases, gpa) - 1
            region = self.regions[at] if at >= 0 else None
            if region is None or gpa >= region.gpa + region.size:
                raise GuestError(f"Guest address {gpa:#x} is not RAM")
            start = gpa - region.gpa
            taken = min(size, region.size - start)
            spans.append((region, start, taken))
            gpa += taken
            size -= taken
        return spans


def _nobody_asks(hva: int, size: int) -> None:
    """Most of the time nobody copies RAM while it changes."""


def _populate(region: Region, start: int, size: int, step: int) -> Iterator[None]:
    for at in range(start, start + size, step):
        try:
            region.mapping.madvise(MADV_POPULATE_WRITE, at, min(step, start + size - at))
        except OSError as error:
            raise HostError.from_os_error(
                "madvise(MADV_POPULATE_WRITE)",
                error,
                hint=f"zone {region.zone.id!r} needs {size >> 20} MiB of free memory; make the VM "
                "smaller or turn prefault off",
            ) from error
        yield


def _open_region(
    mappings: contextlib.ExitStack, slot: int, piece: Piece, given: int | None = None
) -> Region:
    (gpa, size), zone = piece.range, piece.zone
    fd, flags, offset = open_backing(zone, size, piece.offset, given, mappings)
    mapping = mappings.enter_context(map_zone(zone, size, fd, flags, offset))
    view = mappings.enter_context(memoryview(mapping))
    hva = address_of(view)
    return Region(gpa, size, hva, slot, zone, mapping, view, None if fd < 0 else fd, offset)


def _discard(region: Region, start: int, size: int) -> None:
    # To forget a mapping of a file leaves the file's pages in memory: they have to be cut out.
    advice = MADV_REMOVE if region.zone.is_file else MADV_DONTNEED
    try:
        region.mapping.madvise(advice, start, size)
    except OSError as error:
        raise HostError.from_os_error(
            "madvise(MADV_REMOVE)" if region.zone.is_file else "madvise(MADV_DONTNEED)",
            error,
            hint=f"zone {region.zone.id!r} cannot shrink; leave out the balloon, and hotplug_size",
        ) from error


def _fill_from_file(
    target: memoryview, file: io.BufferedIOBase | io.RawIOBase, offset: int
) -> None:
    done = 0
    while done < len(target):
        with target[done:] as rest:
            try:
                count = os.preadv(file.fileno(), [rest], offset + done)
            except OSError as error:
                raise HostError.from_os_error(
                    "read", error, path=str(getattr(file, "name", "?"))
                ) from error
        if count == 0:
            raise ConfigError(
                f"{getattr(file, 'name', 'The file')} ends at byte {offset + done}, "
                f"{len(target) - done} bytes before its own headers say; use an intact file"
            )
        done += count


def _merged(regions: Sequence[Region]) -> tuple[RamRange, ...]:
    merged: list[RamRange] = []
    for region in regions:
        if merged and merged[-1].gpa + merged[-1].size == region.gpa:
            merged[-1] = RamRange(merged[-1].gpa, merged[-1].size + region.size)
        else:
            merged.append(RamRange(region.gpa, region.size))
    return tuple(merged)
