"""RAM that is plugged into a running machine by ACPI, in blocks of 128 MiB, and stays in it.

What is added lies in the area that the memory map keeps for it, has the kind of backing that
``memory`` asks for, and is shown to the guest and to every device that works on its memory before
the guest is told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from vmm.boot.layout import HOTPLUG_ALIGNMENT
from vmm.errors import ConfigError
from vmm.pci.allocator import Span

if TYPE_CHECKING:
    from vmm.acpi.memory_hotplug import MemoryHotplug
    from vmm.boot.layout import Area
    from vmm.kvm_cffi import GuestMemoryMap, Vm
    from vmm.machine.memory import GuestMemory
    from vmm.machine.zones import Zone

SLOTS_BEHIND_RAM = 1
"""KVM slots that come first after those of RAM at boot: that of PCI configuration space."""


def zone_of_dimm(zone: Zone, number: int, size: int) -> Zone:
    """The zone of the n-th RAM that came; ``zone`` says of what kind it is."""
    return zone._replace(id=f"{zone.id}-hotplug{number}", size=size)


class RamHotplug:
    """The room of one machine for more RAM; ``zone`` says of what kind that is."""

    def __init__(
        self,
        vm: Vm,
        memory: GuestMemory,
        memory_map: GuestMemoryMap,
        registers: MemoryHotplug,
        area: Area,
        zone: Zone,
    ) -> None:
        self._vm = vm
        self._memory = memory
        self._map = memory_map
        self._registers = registers
        self._area = area
        self._zone = zone
        self._first_slot = memory.boot_regions + SLOTS_BEHIND_RAM
        # Those of a machine that is restored are there already.
        self._added_bytes = sum(each.size for each in memory.regions if each.gpa >= area.base)
        self._added = len(memory.regions) - memory.boot_regions

    async def grow(self, size: int) -> None:
        """Plug ``size`` bytes in and tell the guest.

        Raises: ConfigError (caller) when they do not fit, HostError when the host has not as much;
        the machine is as before then.
        """
        self._check(size)
        gpa = self._area.base + self._added_bytes
        slot = self._first_slot + self._added
        zone = zone_of_dimm(self._zone, self._added, size)
        region = self._memory.add(zone, gpa, slot)
        try:
            for _ in self._memory.populate(region):
                await trio.lowlevel.checkpoint()
            self._vm.set_user_memory_region(slot, gpa, size, region.hva)
        except BaseException:
            self._memory.remove(region)
            raise
        self._map.add(gpa, size, region.hva)
        self._added_bytes += size
        self._added += 1
        self._registers.announce(Span(gpa, size))

    def _check(self, size: int) -> None:
        if size % HOTPLUG_ALIGNMENT:
            raise ConfigError(
                f"desired_ram would add {size} bytes; RAM is added in blocks of "
                f"{HOTPLUG_ALIGNMENT} bytes (128 MiB), give a whole number of them more"
            )
        if not self._registers.free:
            raise ConfigError(
                f"desired_ram would add RAM once more, and all {self._added} slots for it are "
                "taken; reboot the VM, which gives it all its RAM from the start"
            )
        left = self._area.size - self._added_bytes
        if size > left:
            raise ConfigError(
                f"desired_ram would add {size} bytes, and of memory.hotplug_size (--memory "
                f"hotplug_size=) {left} are left; give no more, or reboot with more"
            )
