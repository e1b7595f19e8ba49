"""The board a VM's processors sit on: interrupt controller, PCI bus, and the legacy devices.

Each range is put on the lowest rung that can answer it: configuration reads come from a read-only
memory slot or in C from the same bytes, serial and debug output goes to rings in C, the rest comes
to the loop.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol

import trio

from vmm.acpi import cpu_hotplug, memory_hotplug, pci_hotplug
from vmm.acpi.cpu_hotplug import CpuHotplug
from vmm.acpi.ged import REGISTER_SIZE, GeneralEventDevice
from vmm.acpi.machine import FW_CFG_PORT, FW_CFG_PORTS
from vmm.acpi.memory_hotplug import MemoryHotplug
from vmm.acpi.pci_hotplug import PciHotplug
from vmm.boot import layout
from vmm.errors import ConfigError
from vmm.kvm_cffi import ByteRing, ConfigAddress, Loop, PmTimer, Uart, address_of
from vmm.legacy import (
    acpi_shutdown,
    cmos,
    debug_console,
    debug_port,
    fw_debug,
    i8042,
    serial,
)
from vmm.legacy.ioapic import Ioapic
from vmm.machine.bus import AddressSpaces
from vmm.machine.interrupts import Interrupts
from vmm.machine.pci_bus import PciBus, segment_areas
from vmm.pci.access import CONFIG_DATA_PORT, CONFIG_DATA_SIZE, ConfigPorts, Ecam
from vmm.pci.segment import SHADOW_SIZE, Segment

if TYPE_CHECKING:
    from vmm.boot.layout import DeviceAreas
    from vmm.config.vm import VmConfig
    from vmm.kvm_cffi import ExitRouter, Vm
    from vmm.machine.bus import Lifecycle
    from vmm.machine.consoles import Consoles
    from vmm.machine.memory import GuestMemory
    from vmm.machine.pci_bus import SegmentAreas

PM_TIMER_PORT = 0x608
PM_TIMER_SIZE = 4
CONFIG_ADDRESS_PORT = 0xCF8
CONFIG_ADDRESS_SIZE = 8
FIXED_PORTS = (
    range(serial.PORT, serial.PORT + serial.PORTS),
    range(i8042.PORT, i8042.PORT + i8042.PORTS),
    range(cmos.PORT, cmos.PORT + cmos.PORTS),
    range(debug_port.PORT, debug_port.PORT + 1),
    range(fw_debug.PORT, fw_debug.PORT + 1),
    range(FW_CFG_PORT, FW_CFG_PORT + FW_CFG_PORTS),
    range(acpi_shutdown.PORT, acpi_shutdown.PORT + acpi_shutdown.PORTS),
    range(PM_TIMER_PORT, PM_TIMER_PORT + PM_TIMER_SIZE),
    range(CONFIG_ADDRESS_PORT, CONFIG_ADDRESS_PORT + CONFIG_ADDRESS_SIZE),
)
"""Ports that a debug console cannot be put on."""

GED_IRQ = 13
PCI_HOTPLUG_PAGE, CPU_HOTPLUG_PAGE, GED_PAGE, MEMORY_HOTPLUG_PAGE = range(4)
"""Which pages of the platform's registers are whose."""


class Task(Protocol):
    """A device that has work of its own to do while the VM is there."""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None: ...


class Registers(NamedTuple):
    """What only has registers, as far as a snapshot keeps them."""

    cmos: cmos.Cmos
    pm_timer: PmTimer
    config_address: ConfigAddress


class Chipset(NamedTuple):
    """What the owner of the machine needs to hold of it."""

    spaces: AddressSpaces
    interrupts: Interrupts
    ioapic: Ioapic
    ged: GeneralEventDevice
    pci_hotplug: PciHotplug[trio.Event]
    cpu_hotplug: CpuHotplug[trio.Event]
    memory_hotplug: MemoryHotplug | None
    buses: tuple[PciBus, ...]
    registers: Registers
    serial: serial.Serial | None
    tasks: tuple[Task, ...]
    device_tree: dict[str, dict[str, object]]


@contextmanager
def open_chipset(
    vm: Vm,
    router: ExitRouter,
    memory: GuestMemory,
    areas: DeviceAreas,
    config: VmConfig,
    consoles: Consoles,
    lifecycle: Lifecycle,
) -> Iterator[Chipset]:
    """Build the board and put everything in its place. Raises: HostError."""
    with ExitStack() as stack:
        spaces = AddressSpaces(router, Loop())
        interrupts = stack.enter_context(Interrupts(vm))
        ioapic = Ioapic(interrupts)
        spaces.claim_mmio(layout.IOAPIC, layout.IOAPIC_SIZE, ioapic)
        ged = GeneralEventDevice(interrupts.line(GED_IRQ))
        spaces.claim_mmio(areas.platform_page(GED_PAGE), REGISTER_SIZE, ged)
        shares = segment_areas(config, areas)
        buses, config_address = _add_pci(
            stack, vm, router, spaces, shares, next_slot=memory.boot_regions
        )
        pci = PciHotplug[trio.Event](ged, len(buses))
        page = areas.platform_page(PCI_HOTPLUG_PAGE)
        spaces.claim_mmio(page, pci_hotplug.REGISTERS_SIZE, pci)
        possible, present = config.cpus.max_vcpus, config.cpus.boot_vcpus
        cpu = CpuHotplug[trio.Event](ged, possible=possible, present=present)
        page = areas.platform_page(CPU_HOTPLUG_PAGE)
        spaces.claim_mmio(page, cpu_hotplug.REGISTERS_SIZE, cpu)
        memory_registers = None
        if areas.hotplug is not None:
            memory_registers = MemoryHotplug(ged)
            page = areas.platform_page(MEMORY_HOTPLUG_PAGE)
            spaces.claim_mmio(page, memory_hotplug.REGISTERS_SIZE, memory_registers)
        clock, pm_timer = _add_registers(router, spaces, memory, lifecycle)
        tasks: tuple[Task, ...] = tuple(_add_outputs(stack, router, interrupts, config, consoles))
        if config.payload is not None and config.payload.fw_cfg_config is not None:
            from vmm.machine.fw_cfg import open_fw_cfg  # Only now: few VMs have it.

            device = stack.enter_context(open_fw_cfg(config.payload, memory))
            spaces.claim_ports(FW_CFG_PORT, FW_CFG_PORTS, device)
            tasks = (*tasks, device)
        names = ["__ioapic"]
        if config.serial.mode != "Off":
            names.append("__serial")
        if config.debug_console.mode != "Off":
            names.append("__debug_console")
        tree: dict[str, dict[str, object]] = {
            name: {"id": name, "resources": [], "children": []} for name in names
        }
        yield Chipset(
            spaces,
            interrupts,
            ioapic,
            ged,
            pci,
            cpu,
            memory_registers,
            buses,
            Registers(clock, pm_timer, config_address),
            next((task for task in tasks if isinstance(task, serial.Serial)), None),
            tasks,
            tree,
        )


def _add_pci(
    stack: ExitStack,
    vm: Vm,
    router: ExitRouter,
    spaces: AddressSpaces,
    shares: Sequence[SegmentAreas],
    *,
    next_slot: int,
) -> tuple[tuple[PciBus, ...], ConfigAddress]:
    """Add the PCI segments: one shadow of configuration space behind all ways to it."""
    size = SHADOW_SIZE * len(shares)
    shadow = stack.enter_context(mmap.mmap(-1, size))
    view = stack.enter_context(memoryview(shadow))
    address = address_of(view)
    vm.set_user_memory_region(next_slot, layout.ECAM, size, address, read_only=True)
    buses = []
    for id, share in enumerate(shares):
        segment = Segment(id, view[SHADOW_SIZE * id : SHADOW_SIZE * (id + 1)])
        stack.callback(segment.close)
        spaces.claim_mmio(share.ecam.base, share.ecam.size, Ecam(segment))
        buses.append(PciBus(segment, share, spaces))
    ports = ConfigAddress(address, SHADOW_SIZE)
    first = buses[0].segment
    spaces.ports.claim(CONFIG_DATA_PORT, CONFIG_DATA_SIZE, ConfigPorts(ports, first))
    router.map_pio(CONFIG_ADDRESS_PORT, CONFIG_ADDRESS_SIZE, ports)
    return tuple(buses), ports


def _add_registers(
    router: ExitRouter,
    spaces: AddressSpaces,
    memory: GuestMemory,
    lifecycle: Lifecycle,
) -> tuple[cmos.Cmos, PmTimer]:
    """Add what only has registers: reset and power ports, clock, timer."""
    below = memory.ram[0].size
    clock = cmos.Cmos(below, memory.size - below, lifecycle)
    spaces.claim_ports(cmos.PORT, cmos.PORTS, clock)
    spaces.claim_ports(i8042.PORT, i8042.PORTS, i8042.I8042(lifecycle))
    shutdown = acpi_shutdown.AcpiShutdown(lifecycle)
    spaces.claim_ports(acpi_shutdown.PORT, acpi_shutdown.PORTS, shutdown)
    timer = PmTimer()
    router.map_pio(PM_TIMER_PORT, PM_TIMER_SIZE, timer)
    return clock, timer


def _add_outputs(
    stack: ExitStack,
    router: ExitRouter,
    interrupts: Interrupts,
    config: VmConfig,
    consoles: Consoles,
) -> Iterator[Task]:
    """Add what the guest writes text or codes to."""
    if config.serial.mode != "Off":
        uart = stack.enter_context(Uart(interrupts.line(serial.IRQ).fd))
        router.map_pio(serial.PORT, serial.PORTS, uart)
        yield serial.Serial(uart, consoles.serial)
    if config.debug_console.mode != "Off":
        given = config.debug_console.iobase
        port = debug_console.PORT if given is None else given
        if any(port in taken for taken in FIXED_PORTS):
            raise ConfigError(
                f"debug_console.iobase is {port:#x} (--debug-console iobase=…), where another "
                f"device answers; use {debug_console.PORT:#x} or a port that is free"
            )
        ring = stack.enter_context(ByteRing(debug_console.READ_VALUE))
        router.map_pio(port, 1, ring)
        yield debug_console.DebugConsole(ring, consoles.debug)
    codes = stack.enter_context(ByteRing(debug_port.READ_VALUE))
    router.map_pio(debug_port.PORT, 1, codes)
    start = time.monotonic()
    yield debug_port.DebugPort(codes, lambda: time.monotonic() - start)
    firmware = stack.enter_context(ByteRing(fw_debug.READ_VALUE))
    router.map_pio(fw_debug.PORT, 1, firmware)
    yield fw_debug.FwDebug(firmware, consoles.firmware)
