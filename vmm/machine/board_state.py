"""What a snapshot keeps of the board, part by part."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from vmm.acpi.saved import SavedCpuHotplug, SavedGed, SavedMemoryHotplug, SavedPciHotplug
from vmm.errors import ConfigError
from vmm.legacy.saved import SavedCmos, SavedIoapic, SavedUart
from vmm.machine.saved import SavedLines, SavedPorts
from vmm.pci.saved import SavedConfiguration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm.machine.chipset import Chipset
    from vmm.pci.configuration import Configuration
    from vmm.saved import SavedState

S = TypeVar("S", bound="SavedState")


def save_board(chipset: Chipset) -> dict[str, SavedState]:
    """Read every part of a board whose vCPUs stand."""
    registers = chipset.registers
    parts: dict[str, SavedState] = {
        "__ioapic": chipset.ioapic.save(),
        "__lines": chipset.interrupts.save(),
        "__cmos": registers.cmos.save(),
        "__ports": SavedPorts(
            pm_ticks=registers.pm_timer.ticks, config_address=registers.config_address.address
        ),
        "__host_bridge": _host_bridge(chipset).save(),
        "__ged": chipset.ged.save(),
        "__pci_hotplug": chipset.pci_hotplug.save(),
        "__cpu_hotplug": chipset.cpu_hotplug.save(),
    }
    if chipset.serial is not None:
        parts["__serial"] = chipset.serial.save()
    if chipset.memory_hotplug is not None:
        parts["__memory_hotplug"] = chipset.memory_hotplug.save()
    return parts


def load_board(chipset: Chipset, parts: Mapping[str, SavedState]) -> None:
    """Set every part of a new board. The local APICs must be set before: lines are raised here.

    Raises: ConfigError when the parts are not this board's (caller), HostError.
    """
    registers = chipset.registers
    registers.cmos.load(_part(parts, "__cmos", SavedCmos))
    ports = _part(parts, "__ports", SavedPorts)
    registers.pm_timer.offset += ports.pm_ticks - registers.pm_timer.ticks
    registers.config_address.address = ports.config_address
    _host_bridge(chipset).load(_part(parts, "__host_bridge", SavedConfiguration))
    chipset.pci_hotplug.load(_part(parts, "__pci_hotplug", SavedPciHotplug))
    chipset.cpu_hotplug.load(_part(parts, "__cpu_hotplug", SavedCpuHotplug))
    if chipset.memory_hotplug is not None:
        chipset.memory_hotplug.load(_part(parts, "__memory_hotplug", SavedMemoryHotplug))
    chipset.ioapic.load(_part(parts, "__ioapic", SavedIoapic))
    chipset.interrupts.load(_part(parts, "__lines", SavedLines))
    chipset.ged.load(_part(parts, "__ged", SavedGed))
    if chipset.serial is not None:
        chipset.serial.load(_part(parts, "__serial", SavedUart))


def _host_bridge(chipset: Chipset) -> Configuration:
    _, function = next(chipset.buses[0].segment.functions())
    return function.configuration


def _part(parts: Mapping[str, SavedState], name: str, kind: type[S]) -> S:
    part = parts.get(name)
    if not isinstance(part, kind):
        raise ConfigError(
            f"The saved machine has no {name} and this VM does; restore it with its own config.json"
        )
    return part
