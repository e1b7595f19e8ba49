"""The PCI devices of a running machine: plugged at boot or later, each in a scope of its own.

A device's scope holds its host resources, its interrupts and doorbells, its place on the bus and
its tasks; leaving it unplugs the device.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Container, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import trio

from vmm.errors import ConfigError, DuplicateError, NotFoundError, StateError
from vmm.machine.plug import Plugged, Wiring, plug_registers, plug_virtio
from vmm.machine.scope import Scope, enter
from vmm.machine.sections import SECTIONS, Section
from vmm.pci.bar import BarKind
from vmm.virtio.device import VirtioDevice

if TYPE_CHECKING:
    from vmm.config.pci import PciSlot
    from vmm.config.vm import VmConfig
    from vmm.machine.pci_bus import PciBus
    from vmm.snapshot.state import SavedDevice
    from vmm.virtio.balloon import Balloon
    from vmm.virtio.block import Block
    from vmm.virtio.mem import Mem
    from vmm.virtio.pci_transport import VirtioPci


class Held(NamedTuple):
    """A device that is there: what it is in the configuration, and its scope."""

    section: Section
    scope: Scope[Plugged]

    @property
    def plugged(self) -> Plugged:
        """The device on its bus."""
        return self.scope.value


class Devices:
    """All devices of one machine, by name."""

    def __init__(self, wiring: Wiring, on_failure: Callable[[Exception], None]) -> None:
        self._wiring = wiring
        self._on_failure = on_failure
        self._held: dict[str, Held] = {}
        self._names = DeviceNames()
        self._nursery: trio.Nursery | None = None
        self._saved: Mapping[str, SavedDevice] = {}

    @property
    def tree(self) -> dict[str, dict[str, object]]:
        """The devices and their transports by name, as vm.info shows them."""
        nodes = [node for held in self._held.values() for node in held.plugged.nodes]
        return {str(node["id"]): node for node in nodes}

    @property
    def counters(self) -> dict[str, dict[str, int]]:
        """The devices that count, and what."""
        counted = {name: held.plugged.counters for name, held in self._held.items()}
        return {name: counters for name, counters in counted.items() if counters}

    def described_in(self, config: VmConfig) -> VmConfig:
        """The configuration with the names of its devices, and what they chose for themselves."""
        names = DeviceNames(config)
        changes: dict[str, object] = {}
        for section in SECTIONS:
            if section.has_own_name or section.is_whole:
                continue
            described = tuple(
                self.described(entry, names.name(section, entry))
                for entry in section.entries(config)
            )
            if described:
                is_list = isinstance(getattr(config, section.field), tuple)
                changes[section.field] = described if is_list else described[0]
        return config.model_copy(update=changes) if changes else config

    def described(self, entry: PciSlot, name: str) -> PciSlot:
        """An entry of the configuration with its device's name, and what that chose for itself."""
        device = self._held[name].plugged.device
        settled = device.settled if isinstance(device, VirtioDevice) else {}
        return entry.model_copy(update={"id": name, **settled})

    def find(self, id: str) -> tuple[str, Held]:
        """The device that has a name, or whose transport has it. Raises: NotFoundError (caller)."""
        for name, held in self._held.items():
            if any(node["id"] == id for node in held.plugged.nodes):
                return name, held
        raise NotFoundError(f'No device with id "{id}"; vm.info lists what there is')

    def disk(self, name: str) -> Block:
        """The disk of a name. Raises: NotFoundError (caller), ConfigError when it is none."""
        _, held = self.find(name)
        from vmm.virtio import block  # Only now: a VM without disks starts sooner.

        device = held.plugged.device
        if not isinstance(device, block.Block):
            raise ConfigError(f"Device {name} is no disk that can be resized; name a disk")
        return device

    def mem(self, zone: str) -> Mem:
        """The device by which a memory zone grows. Raises: ConfigError (caller) without one."""
        from vmm.virtio import mem  # Only now: a VM whose memory stays as it is starts sooner.

        held = self._held.get(zone)
        device = None if held is None else held.plugged.device
        if not isinstance(device, mem.Mem):
            raise ConfigError(
                f"Memory zone {zone!r} has no hotplug_size (--memory, --memory-zone) by which "
                "virtio-mem could let it grow; give it one, and reboot"
            )
        return device

    def balloon(self) -> Balloon:
        """The balloon. Raises: ConfigError (caller) when there is none."""
        from vmm.virtio import balloon  # Only now: a VM without one starts sooner.

        for held in self._held.values():
            if isinstance(held.plugged.device, balloon.Balloon):
                return held.plugged.device
        raise ConfigError(
            "desired_balloon: this VM has no balloon (balloon, --balloon); give it one, and reboot"
        )

    @property
    def ram_bytes(self) -> int:
        """What the devices add to the guest's RAM; what they take away is negative."""
        return sum(held.plugged.ram_bytes for held in self._held.values())

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
        for held in self._held.values():
            if held.plugged.transport is not None:
                yield held.plugged.transport

    @asynccontextmanager
    async def running(
        self,
        config: VmConfig,
        nursery: trio.Nursery,
        saved: Mapping[str, SavedDevice] | None = None,
    ) -> AsyncIterator[None]:
        """Plug the devices of a configuration, in ``nursery``; leaving unplugs all there are.

        Those that were ``saved`` are what they were, and asleep. Raises: ConfigError (caller),
        HostError.
        """
        self._nursery = nursery
        try:
            self._names = DeviceNames(config)
            if saved is None:
                self._reserve_slots(config)
            else:
                self._expect(config, saved)
            # Queues that are served already are behind an IOMMU that is what it was.
            for section in sorted(SECTIONS, key=_comes_after_iommu) if saved else SECTIONS:
                for entry in section.entries(config):
                    await self.plug(section, entry, at_boot=True)
            yield
        finally:
            self._nursery = None
            # Bounded: a device's I/O in flight has a deadline of its own, which is that of all.
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as leaving:
                    for name in reversed(list(self._held)):
                        leaving.start_soon(self.unplug, name)

    def save(self) -> dict[str, SavedDevice]:
        """Read every device; they sleep."""
        from vmm.machine.device_state import save_device  # Only now: most VMs never are.

        return {name: save_device(held.plugged) for name, held in self._held.items()}

    def _expect(self, config: VmConfig, saved: Mapping[str, SavedDevice]) -> None:
        """Keep the slots of saved devices. Raises: ConfigError when others are configured."""
        names = DeviceNames(config)
        configured = {
            names.name(section, entry) for section in SECTIONS for entry in section.entries(config)
        }
        if configured != saved.keys():
            raise ConfigError(
                f"The configuration has the devices {sorted(configured)} and the saved machine "
                f"{sorted(saved)}; restore it with its own config.json"
            )
        for each in saved.values():
            if each.place.segment >= len(self._wiring.buses):
                raise ConfigError(
                    f"A saved device is on PCI segment {each.place.segment}, which this VM lacks; "
                    "restore it with its own config.json"
                )
            self._wiring.buses[each.place.segment].segment.reserve(each.place.slot)
        self._saved = saved

    async def plug(self, section: Section, entry: PciSlot, *, at_boot: bool = False) -> str:
        """Put one device on its bus, and give its name.

        Raises: ConfigError (caller), HostError; StateError when the machine ends.
        """
        if self._nursery is None:
            raise StateError("VM is not running")
        if entry.id in self.tree:
            raise DuplicateError(
                f"Identifier {entry.id} is not unique, a device has it; choose another"
            )
        name = self._names.name(section, entry, taken=self._held)
        context = self._open(section, entry, name, at_boot=at_boot)
        scope = await enter(self._nursery, context, self._on_failure)
        self._held[name] = Held(section, scope)
        return name

    async def unplug(self, name: str) -> None:
        """Take a device from its bus and give back what it held; two may ask for that at once."""
        held = self._held[name]
        await held.scope.leave()
        if self._held.get(name) is held:
            del self._held[name]

    def unplug_soon(
        self, names: Sequence[str], unplugged: Callable[[str, Plugged], None]
    ) -> trio.Event:
        """Have devices unplugged in the background; the event is set when all are.

        Each is handed to ``unplugged`` once it holds nothing any more.
        """
        done = trio.Event()
        if self._nursery is not None:
            self._nursery.start_soon(self._unplug_all, names, unplugged, done)
        else:
            done.set()  # The machine ends, and every device with it.
        return done

    async def _unplug_all(
        self, names: Sequence[str], unplugged: Callable[[str, Plugged], None], done: trio.Event
    ) -> None:
        for name in names:
            plugged = self._held[name].plugged
            await self.unplug(name)
            unplugged(name, plugged)
        done.set()

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
        saved = self._saved.get(name) if at_boot else None
        if saved is not None:
            kind, slot = BarKind[saved.place.bar_kind], saved.place.slot
        async with section.open(entry, name, self._wiring.board) as device:
            if isinstance(device, VirtioDevice):
                is_behind = entry.iommu and device.IS_TRANSLATED
                iommu = self._wiring.board.iommu if is_behind else None
                async with plug_virtio(
                    device, self._wiring, bus, slot, kind, iommu=iommu, saved=saved
                ) as plugged:
                    yield plugged
            else:
                with plug_registers(device, self._wiring, bus, slot, saved) as plugged:
                    yield plugged


def _comes_after_iommu(section: Section) -> bool:
    return section.field != "iommu"


class DeviceNames:
    """Names for the devices that have none: one counter for all, past names that are taken."""

    def __init__(self, config: VmConfig | None = None) -> None:
        self._given = {
            entry.id
            for section in SECTIONS
            for entry in (section.entries(config) if config is not None else ())
            if entry.id is not None
        }
        self._next = 0

    def name(self, section: Section, entry: PciSlot, taken: Container[str] = ()) -> str:
        """The name of an entry's device; ``taken`` has names that came after the configuration."""
        if section.has_own_name:
            return section.name
        if entry.id is not None:
            return entry.id
        while True:
            name = f"{section.name}{self._next}"
            self._next += 1
            if name not in self._given and name not in taken:
                return name
