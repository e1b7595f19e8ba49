"""The PCI devices of a running machine: plugged at boot or later, each in a scope of its own.

A device's scope holds its host resources, its interrupts and doorbells, its place on the bus and
its tasks; leaving it unplugs the device.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from vmm.errors import ConfigError, NotFoundError
from vmm.machine.plug import Plugged, Wiring, plug_registers, plug_virtio
from vmm.machine.scope import Scope, enter
from vmm.machine.sections import SECTIONS, Section
from vmm.pci.bar import BarKind
from vmm.virtio.device import VirtioDevice

if TYPE_CHECKING:
    from vmm.config.pci import PciSlot
    from vmm.config.vm import VmConfig
    from vmm.machine.pci_bus import PciBus
    from vmm.virtio.block import Block
    from vmm.virtio.pci_transport import VirtioPci


class Devices:
    """All devices of one machine, by name."""

    def __init__(self, wiring: Wiring, on_failure: Callable[[Exception], None]) -> None:
        self._wiring = wiring
        self._on_failure = on_failure
        self._plugged: dict[str, Scope[Plugged]] = {}
        self._nursery: trio.Nursery | None = None

    @property
    def tree(self) -> dict[str, dict[str, object]]:
        """The devices and their transports by name, as vm.info shows them."""
        nodes = [node for scope in self._plugged.values() for node in scope.value.nodes]
        return {str(node["id"]): node for node in nodes}

    @property
    def counters(self) -> dict[str, dict[str, int]]:
        """The devices that count, and what."""
        counted = {name: scope.value.counters for name, scope in self._plugged.items()}
        return {name: counters for name, counters in counted.items() if counters}

    def described_in(self, config: VmConfig) -> VmConfig:
        """The configuration with the names of its devices, and what they chose for themselves."""
        names = DeviceNames(config)
        changes = {
            section.field: tuple(
                self._described(entry, names.name(section, entry))
                for entry in section.entries(config)
            )
            for section in SECTIONS
            if section.is_list and section.entries(config)
        }
        return config.model_copy(update=changes) if changes else config

    def _described(self, entry: PciSlot, name: str) -> PciSlot:
        device = self._plugged[name].value.device
        settled = device.settled if isinstance(device, VirtioDevice) else {}
        return entry.model_copy(update={"id": name, **settled})

    def disk(self, name: str) -> Block:
        """The disk of a name. Raises: NotFoundError (caller), ConfigError when it is none."""
        if name not in self._plugged:
            raise NotFoundError(f'No device with id "{name}"; vm.info lists what there is')
        from vmm.virtio import block  # Only now: a VM without disks starts sooner.

        device = self._plugged[name].value.device
        if not isinstance(device, block.Block):
            raise ConfigError(f"Device {name} is no disk that can be resized; name a disk")
        return device

    @property
    def ram_bytes(self) -> int:
        """What the devices add to the guest's RAM; what they take away is negative."""
        return sum(scope.value.ram_bytes for scope in self._plugged.values())

    async def sleep(self) -> None:
        """Stop every device between two requests; the vCPUs stand already."""
        async with trio.open_nursery() as nursery:
            for transport in self._transports():
                nursery.start_soon(transport.sleep)

    def wake(self) -> None:
        """Let every device go on where it stood."""
        for transport in self._transports():
            transport.wake()

    def _transports(self) -> Iterator[VirtioPci]:
        for scope in self._plugged.values():
            if scope.value.transport is not None:
                yield scope.value.transport

    @asynccontextmanager
    async def running(self, config: VmConfig, nursery: trio.Nursery) -> AsyncIterator[None]:
        """Plug the devices of a configuration, in ``nursery``; leaving unplugs all there are.

        Raises: ConfigError (caller), HostError.
        """
        self._nursery = nursery
        try:
            self._reserve_slots(config)
            names = DeviceNames(config)
            for section in SECTIONS:
                for entry in section.entries(config):
                    await self.plug(section, entry, names.name(section, entry), at_boot=True)
            yield
        finally:
            # Bounded: a device's I/O in flight has a deadline of its own.
            with trio.CancelScope(shield=True):
                for name in reversed(list(self._plugged)):
                    await self.unplug(name)

    async def plug(
        self, section: Section, entry: PciSlot, name: str, *, at_boot: bool = False
    ) -> Plugged:
        """Put one device on its bus. Raises: ConfigError (caller), HostError."""
        assert self._nursery is not None, "devices are plugged while the machine runs"
        context = self._open(section, entry, name, at_boot=at_boot)
        scope = await enter(self._nursery, context, self._on_failure)
        self._plugged[name] = scope
        return scope.value

    async def unplug(self, name: str) -> None:
        """Take a device from its bus and give back what it held."""
        await self._plugged[name].leave()
        del self._plugged[name]

    def _reserve_slots(self, config: VmConfig) -> None:
        """Keep the slots that devices ask for from those that take any."""
        for section in SECTIONS:
            for entry in section.entries(config):
                if entry.pci_device_id is not None:
                    self._bus(entry).segment.reserve(entry.pci_device_id)

    def _bus(self, entry: PciSlot) -> PciBus:
        return self._wiring.buses[entry.pci_segment]

    @asynccontextmanager
    async def _open(
        self, section: Section, entry: PciSlot, name: str, *, at_boot: bool
    ) -> AsyncIterator[Plugged]:
        bus = self._bus(entry)
        is_low = section.has_low_bar and at_boot and bus.segment.id == 0
        kind = BarKind.MEMORY32 if is_low else BarKind.MEMORY64
        slot = entry.pci_device_id
        async with section.open(entry, name, self._wiring.board) as device:
            if isinstance(device, VirtioDevice):
                async with plug_virtio(device, self._wiring, bus, slot, kind) as plugged:
                    yield plugged
            else:
                with plug_registers(device, bus, slot) as plugged:
                    yield plugged


class DeviceNames:
    """Names for the devices that have none: one counter for all, past names that are taken."""

    def __init__(self, config: VmConfig) -> None:
        self._taken = {
            entry.id
            for section in SECTIONS
            for entry in section.entries(config)
            if section.is_list and entry.id is not None
        }
        self._next = 0

    def name(self, section: Section, entry: PciSlot) -> str:
        """The name of an entry's device."""
        if not section.is_list:
            return section.name
        if entry.id is not None:
            return entry.id
        while True:
            name = f"{section.name}{self._next}"
            self._next += 1
            if name not in self._taken:
                return name
