"""What a machine that is brought back has to be before its state comes, and what it must fit.

RAM and addresses lie as they did when the machine was booted, whatever its configuration has become
since: that is for its next boot.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import trio

from vmm.boot.cpuid import KVM_FEATURES
from vmm.boot.cpuid_table import CpuidTable
from vmm.errors import ConfigError, HostError
from vmm.machine.ram_hotplug import SLOTS_BEHIND_RAM, zone_of_dimm
from vmm.machine.saved import SavedMemory, SavedRange
from vmm.machine.zones import default_zone

if TYPE_CHECKING:
    from vmm.boot.layout import Area, DeviceAreas
    from vmm.config.vm import VmConfig
    from vmm.kvm_cffi import Vm
    from vmm.kvm_cffi.structs import CpuidEntry
    from vmm.machine.interface import MachineSource
    from vmm.machine.memory import GuestMemory, Region
    from vmm.machine.processors import Processors
    from vmm.machine.saved import SavedProcessors
    from vmm.snapshot.state import MachineState

logger = logging.getLogger(__name__)

FEATURES: Final = {
    (0x1, 0): ("ecx", "edx"),
    (0x7, 0): ("ebx", "ecx", "edx"),
    (0x7, 1): ("eax", "ebx", "ecx", "edx"),
    (0x7, 2): ("edx",),
    (0xD, 0): ("eax", "edx"),
    (0xD, 1): ("eax", "ecx", "edx"),
    (0x8000_0001, 0): ("ecx", "edx"),
    (0x8000_0007, 0): ("edx",),
    (0x8000_0008, 0): ("ebx",),
    (KVM_FEATURES, 0): ("eax",),
}
"""Leaves and subleaves whose registers are sets of features, a bit each."""


def as_booted(config: VmConfig, layout: SavedMemory) -> VmConfig:
    """The configuration by which the machine was laid out."""
    cpus = config.cpus.model_copy(update={"max_phys_bits": layout.phys_bits})
    changes: dict[str, object] = {"cpus": cpus}
    if not config.memory.zones:
        changes["memory"] = config.memory.model_copy(update={"size": layout.boot_ram})
    return config.model_copy(update=changes)


async def provide(
    source: MachineSource,
    config: VmConfig,
    cpus: Processors,
    memory: GuestMemory,
    vm: Vm,
    areas: DeviceAreas,
) -> MachineState:
    """Map the RAM that came after the boot, have all of it filled, and give the machine's state.

    Raises: ConfigError when this machine cannot be that one (caller), and what the source does.
    """
    check_layout(config, source.memory, cpus)
    add_dimms(memory, source, config, areas.hotplug)
    check_ranges(memory, source.memory)
    memory.enter_slots(vm)
    state = await source.provide(memory, vm)
    mark_plugged(memory, state)
    if memory.pager is None:  # Else nobody has touched what is not plugged.
        await _discard_unplugged(memory)
    return state


async def _discard_unplugged(memory: GuestMemory) -> None:
    try:
        for _ in memory.discard_unplugged():
            await trio.lowlevel.checkpoint()
    except HostError as error:  # The guest does not miss it, and the host has it for longer.
        logger.warning("What the guest has not plugged keeps its memory: %s", error)


def mark_plugged(memory: GuestMemory, state: MachineState) -> None:
    """Have the blocks that a guest plugged be RAM. Raises: ConfigError for others (caller)."""
    for region in memory.regions:
        blocks, runs = region.blocks, state.plugged.get(region.zone.id, ())
        if blocks is not None and not blocks.replace(runs):
            raise ConfigError(
                f"The saved memory zone {region.zone.id!r} has blocks plugged beyond the "
                f"{blocks.size // blocks.block_size} of its room; restore it as it was"
            )


def check_layout(config: VmConfig, layout: SavedMemory, cpus: Processors) -> None:
    """Check what RAM and devices are placed by. Raises: ConfigError (caller)."""
    if cpus.phys_bits != layout.phys_bits:
        raise ConfigError(
            f"The saved guest has addresses of {layout.phys_bits} bits and this host's processors "
            f"have {cpus.phys_bits}; restore it on a host with as many"
        )
    if config.total_memory() != layout.boot_ram:
        raise ConfigError(
            f"The saved guest was booted with {layout.boot_ram} bytes of RAM and its configuration "
            f"has {config.total_memory()}; restore it with its own config.json"
        )


def add_dimms(
    memory: GuestMemory, source: MachineSource, config: VmConfig, area: Area | None
) -> None:
    """Map the RAM that came after the boot, where it was. Raises: ConfigError (caller)."""
    layout = source.memory
    if not layout.dimms:
        return
    end = 0 if area is None else area.base
    for number, (gpa, size) in enumerate((each.gpa, each.length) for each in layout.dimms):
        if area is None or gpa != end or gpa + size > area.end:
            raise ConfigError(
                f"The saved guest has {size} bytes of RAM at {gpa:#x}, outside the room for RAM "
                "that comes later (memory.hotplug_size); restore it with its own config.json"
            )
        end = gpa + size
        slot = memory.boot_regions + SLOTS_BEHIND_RAM + number
        zone = zone_of_dimm(default_zone(config.memory), number, size)
        memory.add(zone, gpa, slot, source.memory_fds.get(slot))


def check_ranges(memory: GuestMemory, layout: SavedMemory) -> None:
    """Check that RAM is where it was. Raises: ConfigError (caller)."""
    if (now := ranges_of(memory)) != layout.ranges:
        raise ConfigError(
            f"The saved RAM lies at {_listed(layout.ranges)} and that of this configuration at "
            f"{_listed(now)}; restore it with its own config.json"
        )


def layout_of(memory: GuestMemory, phys_bits: int) -> SavedMemory:
    """How the RAM of a machine is laid out."""
    ranges = ranges_of(memory)
    came = {region.gpa for region in memory.regions if region.slot >= memory.boot_regions}
    return SavedMemory(
        phys_bits=phys_bits,
        boot_ram=sum(region.size for region in memory.regions if _is_of_boot(region, memory)),
        dimms=tuple(each for each in ranges if each.gpa in came),
        ranges=ranges,
    )


def _is_of_boot(region: Region, memory: GuestMemory) -> bool:
    """Whether a region was RAM at boot, and no room to grow in."""
    return region.slot < memory.boot_regions and region.blocks is None


def ranges_of(memory: GuestMemory) -> tuple[SavedRange, ...]:
    """All RAM by address, as a snapshot lists it."""
    return tuple(
        SavedRange(gpa=region.gpa, length=region.size, zone=region.zone.id)
        for region in memory.regions
    )


def check_processors(cpus: Processors, saved: SavedProcessors, vcpus: Iterable[int]) -> Processors:
    """The processors with what the saved ones had in common.

    Raises: ConfigError when this host lacks a feature that the guest may be using (caller).
    """
    beyond = [index for index in vcpus if index >= len(cpus.apic_ids)]
    if beyond or not vcpus:
        raise ConfigError(
            f"The saved machine has vCPUs {sorted(vcpus)} and may have {len(cpus.apic_ids)}; "
            "restore it with its own config.json"
        )
    check_cpuid(saved.common_cpuid, cpus.common)
    model = cpus.model._replace(boot_vcpus=saved.boot_vcpus)
    return cpus._replace(model=model, common=saved.common_cpuid)


def check_cpuid(saved: Iterable[CpuidEntry], here: Iterable[CpuidEntry]) -> None:
    """Check that processors here have all that a guest saw elsewhere.

    Raises: ConfigError naming the registers and the bits that are missing (caller).
    """
    before, now = CpuidTable(saved), CpuidTable(here)
    if before.get(0)[4:] != now.get(0)[4:]:
        raise ConfigError(
            "The saved guest's processors are of another maker than this host's; restore it on a "
            "host of the same"
        )
    missing = []
    for (leaf, subleaf), registers in FEATURES.items():
        for name in registers:
            lacking = getattr(before.get(leaf, subleaf), name) & ~getattr(
                now.get(leaf, subleaf), name
            )
            if lacking:
                missing.append(f"leaf {leaf:#x}.{subleaf} {name.upper()} bits {lacking:#x}")
    if missing:
        raise ConfigError(
            f"The saved guest's processors have features that this host's lack: "
            f"{', '.join(missing)}; restore it on a host that has them"
        )


def _listed(ranges: Iterable[SavedRange]) -> str:
    return ", ".join(f"{each.gpa:#x}+{each.length:#x} ({each.zone})" for each in ranges)
