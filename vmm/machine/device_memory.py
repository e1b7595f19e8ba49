"""Memory of devices that the guest uses like RAM, such as a file as persistent memory.

It lies outside RAM in the 64-bit device area of a PCI segment, each piece in a KVM slot of its own;
at an address that is its own, or where the guest has a BAR.
No device may use it for its transfers: it is not part of ``GuestMemory``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vmm.kvm_cffi import address_of

if TYPE_CHECKING:
    from vmm.kvm_cffi import Vm
    from vmm.machine.pci_bus import PciBus


class DeviceMemory:
    """The pieces of one machine; ``first_slot`` and all above it are free KVM slots."""

    def __init__(self, vm: Vm, buses: Sequence[PciBus], first_slot: int) -> None:
        self._vm = vm
        self._buses = buses
        self._first_slot = first_slot
        self.places: Mapping[str, int] = {}
        """Where a guest that is restored has the memory of some devices, by their names."""
        self._taken: set[int] = set()

    @contextmanager
    def shown(self, hva: int, size: int, *, id: str, segment: int, alignment: int) -> Iterator[int]:
        """Show memory of this process to the guest, until the scope is left; where it is there.

        ``id`` is the device's it belongs to. Units: bytes. Raises: ConfigError (caller) when there
        is no room, HostError.
        """
        place = self.places.get(id)
        with self._buses[segment].room(size, alignment, place) as gpa, self._slot() as slot:
            self._vm.set_user_memory_region(slot, gpa, size, hva)
            try:
                yield gpa
            finally:
                self._vm.set_user_memory_region(slot, gpa, 0, hva)

    @contextmanager
    def following(self, memory: memoryview) -> Iterator[MovingMemory]:
        """Memory for a BAR to take with it; the BAR has to be gone before the scope is left."""
        with self._slot() as slot:
            yield MovingMemory(self._vm, slot, memory)

    @contextmanager
    def _slot(self) -> Iterator[int]:
        slot = self._first_slot
        while slot in self._taken:
            slot += 1
        self._taken.add(slot)
        try:
            yield slot
        finally:
            self._taken.remove(slot)


class MovingMemory:
    """Memory of this process that the guest sees where it has a BAR.

    It is the IoHandler of that BAR, too: an access may be on its way here while the BAR arrives.
    """

    def __init__(self, vm: Vm, slot: int, memory: memoryview) -> None:
        self._vm = vm
        self._slot = slot
        self._memory = memory
        self._base: int | None = None

    def move(self, base: int | None) -> None:
        """Be at a guest address, or nowhere. Raises: HostError."""
        hva = address_of(self._memory)
        before, self._base = self._base, None
        if before is not None:
            self._vm.set_user_memory_region(self._slot, before, 0, hva)
        if base is not None:
            self._vm.set_user_memory_region(self._slot, base, len(self._memory), hva)
            self._base = base

    def read(self, offset: int, size: int) -> int:
        """Give what is there; zero past its end."""
        return int.from_bytes(self._memory[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Change what is there; what is past its end is dropped."""
        held = self._memory[offset : offset + size]
        held[:] = value.to_bytes(size, "little")[: len(held)]
