"""A VM while it runs: everything it is made of, in one scope.

open_machine
├─ KVM, memory, chipset, vCPUs        plain resources, released in reverse order
├─ devices                            one task each; they end after the vCPUs do
└─ vCPUs                              one task each, one thread each
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING

import trio

from vmm.acpi.memory_hotplug import SLOTS as RAM_SLOTS
from vmm.boot import layout
from vmm.boot.layout import ram_ranges
from vmm.config.memory import HotplugMethod
from vmm.config.validation import settle, validate
from vmm.events import EventSink
from vmm.kvm_cffi import (
    ExitRouter,
    GuestMemoryMap,
    Kvm,
)
from vmm.machine import firmware, processors
from vmm.machine.chipset import open_chipset
from vmm.machine.device_memory import DeviceMemory
from vmm.machine.interrupts import split_irqchip
from vmm.machine.iommu import iommu_segments, open_iommu
from vmm.machine.memory import GuestMemory
from vmm.machine.ram_hotplug import SLOTS_BEHIND_RAM, RamHotplug
from vmm.machine.sections import Board
from vmm.machine.supported import check_supported
from vmm.machine.vcpus import Vcpus
from vmm.machine.virtual_machine import VirtualMachine
from vmm.machine.zones import default_zone, rooms_of, zones_of

if TYPE_CHECKING:
    from vmm.config.vm import VmConfig
    from vmm.gdb.server import DebugServer
    from vmm.machine.bus import Lifecycle
    from vmm.machine.consoles import Consoles
    from vmm.machine.disks import DiskPool
    from vmm.machine.interface import MachineSource
    from vmm.machine.sections import Events
    from vmm.machine.zones import Zone


@asynccontextmanager
async def open_machine(
    config: VmConfig,
    consoles: Consoles,
    lifecycle: Lifecycle,
    events: Events | None = None,
    source: MachineSource | None = None,
    debug: DebugServer | None = None,
) -> AsyncIterator[VirtualMachine]:
    """Build the machine of a configuration and let it run until the scope is left.

    ``events`` hears of the devices; without it the log does. A machine from a ``source`` is what
    another was, and stands until it is resumed. With ``debug`` the vCPUs stand until a debugger
    lets them run.

    Raises: ConfigError (caller), HostError; nothing is left behind then.
    """
    validate(config, path_exists=os.path.exists)
    config = settle(config)
    check_supported(config)
    booted = config
    if source is not None:
        from vmm.machine import brought_back  # Only now: most VMs are booted.

        booted = brought_back.as_booted(config, source.memory)
    with ExitStack() as stack:
        kvm = stack.enter_context(Kvm.open())
        cpus = processors.describe(kvm, booted.cpus)
        vm = stack.enter_context(kvm.create_vm())
        split_irqchip(vm)
        zones = zones_of(booted.memory)
        areas = _device_areas(booted, zones, cpus.phys_bits)
        ranges, rooms = ram_ranges(booted.total_memory()), rooms_of(zones, areas.virtio_mem)
        handed_over = None if source is None else source.memory_fds
        memory = stack.enter_context(GuestMemory.open(zones, ranges, rooms, handed_over))
        state = None
        if source is None:
            memory.enter_slots(vm)
            for _ in memory.populate():
                await trio.lowlevel.checkpoint()
        else:
            state = await brought_back.provide(source, booted, cpus, memory, vm, areas)
            cpus = brought_back.check_processors(cpus, state.processors, state.vcpus)
        router = ExitRouter()
        chipset = stack.enter_context(
            open_chipset(vm, router, memory, areas, config, consoles, lifecycle)
        )
        entry = firmware.write(memory, config, cpus) if state is None else None
        saved = () if state is None else (state.vcpus, state.clock.read_at)
        spaces, registers = chipset.spaces, chipset.cpu_hotplug
        vcpus = stack.enter_context(
            Vcpus(vm, cpus, entry, config.cpus, router, spaces, registers, *saved)
        )
        memory_map = GuestMemoryMap((each.gpa, each.size, each.hva) for each in memory.regions)
        # Behind the slots of RAM are that of PCI configuration space, those of RAM that comes
        # later, and then those of devices.
        first_slot = memory.boot_regions + SLOTS_BEHIND_RAM + RAM_SLOTS
        device_memory = DeviceMemory(vm, chipset.buses, first_slot)
        sink, pool = events or EventSink(), _disk_pool(config)
        iommu = open_iommu(config)
        board = Board(
            memory,
            memory_map,
            device_memory,
            consoles,
            lifecycle,
            sink,
            pool,
            iommu,
            iommu_segments(config),
        )
        machine = VirtualMachine(kvm, vm, cpus, memory, chipset, board, vcpus)
        if chipset.memory_hotplug is not None and areas.hotplug is not None:
            slots, area, zone = chipset.memory_hotplug, areas.hotplug, default_zone(config.memory)
            machine.ram_hotplug = RamHotplug(vm, memory, memory_map, slots, area, zone)
        if state is not None:
            machine.load(state)
            device_memory.places = state.places
        async with trio.open_nursery() as nursery:
            # A device outlives the vCPUs, so that what they wrote last still goes out: whoever
            # cancels this machine, the devices are cancelled as soon as the vCPUs have ended.
            devices = trio.CancelScope()
            await nursery.start(machine.run_devices, config, devices)
            try:
                if state is None:
                    # Only now is it known where devices are.
                    places = None if iommu is None else machine.iommu_places(config, iommu)
                    firmware.write_tables(memory, config, cpus, areas, places)
                async with trio.open_nursery() as running:
                    if debug is not None:
                        vcpus.hold_from_the_start()
                    await machine.run_vcpus(running)
                    if debug is not None:
                        shown = debug.showing(vcpus, memory, lifecycle)
                        machine.debuggee = stack.enter_context(shown)
                    yield machine
                    running.cancel_scope.cancel()
            finally:
                devices.cancel()


def _device_areas(config: VmConfig, zones: Sequence[Zone], phys_bits: int) -> layout.DeviceAreas:
    """Where devices may be, behind RAM and what it grows by. Raises: ConfigError (caller)."""
    is_acpi = config.memory.hotplug_method == HotplugMethod.ACPI
    return layout.device_areas(
        config.total_memory(),
        phys_bits,
        (config.memory.hotplug_size or None) if is_acpi else None,
        [zone.growth for zone in zones if zone.room],
    )


def _disk_pool(config: VmConfig) -> Callable[[], DiskPool]:
    """What disks share, made for the first of them. Raises: ConfigError (caller)."""

    @cache
    def pool() -> DiskPool:
        from vmm.machine.disks import pool_of  # Only now: a VM without disks starts sooner.

        return pool_of(config.disks or (), config.rate_limit_groups or ())

    return pool
