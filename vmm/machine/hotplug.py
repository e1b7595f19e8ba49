"""Devices that come and go while the guest runs.

Adding opens a device, puts it on its bus and tells the guest. Removing only asks: the guest lets
its driver go and writes the slot to the eject register, and then the device is closed. A guest that
never does so keeps it until its machine ends.

Spec: docs/hotplug.md.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import trio

from vmm.config.changes import CHANGING_SECTIONS, with_device
from vmm.config.validation import settle, validate
from vmm.errors import ConfigError
from vmm.machine.iommu import check_may_come, check_may_go
from vmm.machine.sections import section_of
from vmm.machine.supported import check_supported

if TYPE_CHECKING:
    from vmm.acpi.pci_hotplug import PciHotplug
    from vmm.config.pci import PciSlot
    from vmm.config.vm import VmConfig
    from vmm.machine.devices import Devices
    from vmm.machine.plug import Plugged
    from vmm.machine.sections import Events
    from vmm.pci.bdf import Bdf

logger = logging.getLogger(__name__)


def extended(config: VmConfig, section: str, entry: PciSlot) -> VmConfig:
    """The configuration with one more device, checked as a whole.

    Raises: ConfigError (caller), DuplicateError, UnsupportedError when this version has no such
    device.
    """
    config = with_device(config, section, entry)
    validate(config)
    check_supported(settle(config))
    return config


class Added(NamedTuple):
    """A device that was added: its entry in the configuration, completed, and its place."""

    entry: PciSlot
    bdf: Bdf


class Hotplug:
    """Adds devices to one machine and has them given back: an Ejector of its registers."""

    def __init__(
        self,
        devices: Devices,
        registers: PciHotplug[trio.Event],
        events: Events,
        iommu_segments: Sequence[int] = (),
    ) -> None:
        self._devices = devices
        self._iommu_segments = iommu_segments
        self._registers = registers
        self._events = events
        self._asked_back: dict[tuple[int, int], str] = {}
        self._leaving: set[str] = set()
        self._unasked: set[tuple[int, int]] = set()
        """Slots of which the log has that the guest ejected them so: it may do so for ever."""
        registers.serve(self)

    async def add(self, section: str, entry: PciSlot) -> Added:
        """Add a device of a section and tell the guest.

        Raises: ConfigError (caller), DuplicateError when its id or slot is taken, HostError;
        StateError when the machine ends meanwhile.
        """
        check_may_come(entry, self._iommu_segments)
        name = await self._devices.plug(section_of(section), entry)
        _, held = self._devices.find(name)
        bdf = held.plugged.bdf
        self._registers.announce(bdf.segment, bdf.device)
        return Added(self._devices.described(entry, name), bdf)

    def remove(self, id: str) -> str:
        """Ask the guest for a device by its id or its transport's, and give its id.

        Asked again, the guest is told again. Raises: NotFoundError, ConfigError when it belongs to
        the machine (caller).
        """
        name, held = self._devices.find(id)
        if not held.section.is_removable:
            raise ConfigError(
                f"Device {name} belongs to the machine and cannot be removed; devices of the "
                f"sections {', '.join(CHANGING_SECTIONS)} can"
            )
        bdf = held.plugged.bdf
        if held.plugged.is_translated:
            check_may_go(name, bdf, self._iommu_segments)
        if name not in self._leaving:
            self._asked_back[bdf.segment, bdf.device] = name
            self._registers.ask_back(bdf.segment, bdf.device)
        return name

    @property
    def wanted_back(self) -> list[str]:
        """The devices that the guest was asked for and has not given back."""
        return sorted({*self._asked_back.values(), *self._leaving})

    def eject(self, segment: int, slots: Sequence[int]) -> trio.Event | None:
        """Close the devices in these slots that were asked for; the guest's vCPU waits for that.

        A guest cannot take away what nobody asked for: its next scan of the bus finds it again.
        """
        names = []
        for slot in slots:
            name = self._asked_back.pop((segment, slot), None)
            if name is None:
                if (segment, slot) not in self._unasked:
                    self._unasked.add((segment, slot))
                    logger.warning("The guest ejects slot %d of segment %d unasked", slot, segment)
                continue
            self._registers.forget(segment, slot)
            names.append(name)
        self._leaving.update(names)
        return self._devices.unplug_soon(names, self._unplugged) if names else None

    def _unplugged(self, name: str, plugged: Plugged) -> None:
        self._leaving.remove(name)
        bdf = str(plugged.bdf)
        self._events.emit("vm", "device-removed", {"id": name, "bdf": bdf})
