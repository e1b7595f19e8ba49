"""A PCI segment together with the addresses that its functions' BARs may take.

A guest may move a BAR anywhere. It is reachable wherever it fits: inside the segment's areas and
on top of no other BAR. One that does not fit yet, because two are about to change places, waits
until it does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol

from vmm.boot import layout
from vmm.boot.layout import Area
from vmm.errors import ConfigError
from vmm.pci.allocator import AddressAllocator
from vmm.pci.bar import BarKind

if TYPE_CHECKING:
    from types import TracebackType

    from vmm.boot.layout import DeviceAreas
    from vmm.config.vm import VmConfig
    from vmm.kvm_cffi import Mechanism
    from vmm.machine.bus import AddressSpaces, IoHandler
    from vmm.pci.segment import Segment

logger = logging.getLogger(__name__)


class SegmentAreas(NamedTuple):
    """One segment's share of the guest's addresses."""

    ecam: Area
    mmio32: Area
    mmio64: Area


def segment_areas(config: VmConfig, areas: DeviceAreas) -> list[SegmentAreas]:
    """Share the device areas out among the PCI segments, by weight; the order is the segments'."""
    count = 1 if config.platform is None else config.platform.num_pci_segments
    weights32, weights64 = [1] * count, [1] * count
    for segment in config.pci_segments or ():
        weights32[segment.pci_segment] = segment.mmio32_aperture_weight
        weights64[segment.pci_segment] = segment.mmio64_aperture_weight
    size = layout.ECAM_SEGMENT_SIZE
    ecam = [Area(layout.ECAM + size * id, size) for id in range(count)]
    mmio32 = layout.split_area(areas.mmio32, layout.MMIO32_GRANULARITY, weights32)
    mmio64 = layout.split_area(areas.mmio64, layout.MMIO64_GRANULARITY, weights64)
    return [SegmentAreas(*each) for each in zip(ecam, mmio32, mmio64, strict=True)]


class Movable(Protocol):
    """What has to follow a BAR, such as its doorbells."""

    def move(self, base: int | None) -> None: ...


class PciBus:
    """One segment's slots and address areas."""

    def __init__(self, segment: Segment, areas: SegmentAreas, spaces: AddressSpaces) -> None:
        self.segment = segment
        self._spaces = spaces
        self._areas = {
            BarKind.MEMORY32: AddressAllocator("32-bit device", *areas.mmio32),
            BarKind.MEMORY64: AddressAllocator("64-bit device", *areas.mmio64),
        }
        self._windows: list[BarWindow] = []

    def open_window(
        self,
        kind: BarKind,
        size: int,
        alignment: int,
        follower: Movable | None = None,
        *,
        at: int | None = None,
    ) -> BarWindow:
        """Take addresses for a BAR; nobody answers there before ``BarWindow.serve``.

        ``at`` is where a guest had it: there it waits for room, like one that the guest moved.
        Units: bytes. Raises: ConfigError when there is no room.
        """
        address = self._areas[kind].allocate(size, alignment) if at is None else at
        is_home = at is None or self.take(at, size)
        window = BarWindow(self, self._spaces, address, size, follower, is_home=is_home)
        self._windows.append(window)
        return window

    @contextmanager
    def room(self, size: int, alignment: int, at: int | None = None) -> Iterator[int]:
        """Take addresses of 64 bits for memory that is no BAR, until the scope is left.

        ``at`` says which, where a guest knows them already. Units: bytes. Raises: ConfigError when
        there is no room.
        """
        area = self._areas[BarKind.MEMORY64]
        if at is None:
            address = area.allocate(size, alignment)
        elif at % alignment == 0 and area.is_free(at, size):
            address = at
            area.claim(at, size)
        else:
            raise ConfigError(
                f"There is no room for {size:#x} bytes at {at:#x}, where the guest has them; "
                "restore it with the configuration that it had"
            )
        try:
            yield address
        finally:
            self.give_back(address)
            self.settle()

    def take(self, address: int, size: int) -> bool:
        """Take a range that a guest chose; whether it was free."""
        for area in self._areas.values():
            if area.is_free(address, size):
                area.claim(address, size)
                return True
        return False

    def give_back(self, address: int) -> None:
        """Free a range."""
        for area in self._areas.values():
            if area.area.base <= address < area.area.end:
                area.free(address)

    def forget(self, window: BarWindow) -> None:
        """A BAR is gone for good."""
        self._windows.remove(window)
        self.settle()

    def settle(self) -> None:
        """Place what waits for room."""
        for window in self._windows:
            window.settle()


class BarWindow:
    """One BAR where the guest sees it; a context manager that gives its addresses back."""

    def __init__(
        self,
        bus: PciBus,
        spaces: AddressSpaces,
        address: int,
        size: int,
        follower: Movable | None,
        *,
        is_home: bool,
    ) -> None:
        self._bus = bus
        self._spaces = spaces
        self._size = size
        self._follower = follower
        self._handler: IoHandler | None = None
        self._mechanism: Mechanism | None = None
        # The range that is taken in the area. It stays so while the guest has decoding off: it is
        # about to turn it on again.
        self._home: int | None = address if is_home else None
        self.address = address
        """Where the guest has the BAR, or had it last before it turned decoding off."""
        self._wanted: int | None = None
        self._mapped: int | None = None

    def __enter__(self) -> BarWindow:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._unmap()
        self._wanted = None
        if self._home is not None:
            self._bus.give_back(self._home)
        self._bus.forget(self)

    def serve(self, handler: IoHandler, mechanism: Mechanism | None = None) -> None:
        """Let a handler answer where the BAR was placed, and before it a mechanism in C."""
        self._handler = handler
        self._mechanism = mechanism
        self.move(self._home)

    def move(self, address: int | None) -> None:
        """Be reachable at an address as soon as there is room, or nowhere."""
        if address is not None and address == self._mapped:
            return  # For each doorbell taken away KVM waits until no vCPU looks at the old list.
        self._unmap()
        self._wanted = address
        if address is not None:
            self.address = address
            if self._home not in (None, address):
                self._bus.give_back(self._home)
                self._home = None
        self._bus.settle()
        if address != self._mapped:
            logger.info("A BAR at %#x is out of reach until it is moved", address or 0)

    def settle(self) -> None:
        """Be where the guest wants it, if that is possible by now."""
        if self._mapped is not None or self._wanted is None or self._handler is None:
            return
        if self._home is None and self._bus.take(self._wanted, self._size):
            self._home = self._wanted
        if self._home == self._wanted:
            self._spaces.claim_mmio(self._wanted, self._size, self._handler, self._mechanism)
            self._mapped = self._wanted
            if self._follower is not None:
                self._follower.move(self._wanted)

    def _unmap(self) -> None:
        if self._mapped is None:
            return
        if self._follower is not None:
            self._follower.move(None)
        self._spaces.release_mmio(self._mapped)
        self._mapped = None
