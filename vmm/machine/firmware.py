"""What firmware would have done before the kernel: load it, and describe the machine to it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from vmm.acpi import tables
from vmm.acpi.machine import Iommu, Machine, NumaNode, PciSegment
from vmm.boot.assemble import BootFacts, Payload, prepare
from vmm.boot.layout import ram_ranges
from vmm.boot.payload import open_payload
from vmm.boot.ram import SupposedRam
from vmm.boot.smbios import SystemIdentity
from vmm.errors import InternalError
from vmm.machine.chipset import (
    CPU_HOTPLUG_PAGE,
    GED_IRQ,
    GED_PAGE,
    MEMORY_HOTPLUG_PAGE,
    PCI_HOTPLUG_PAGE,
)
from vmm.machine.numa import node_of_segment, nodes_of
from vmm.machine.pci_bus import segment_areas
from vmm.pci.allocator import Span

if TYPE_CHECKING:
    from vmm.boot.entry import KernelEntry
    from vmm.boot.layout import DeviceAreas
    from vmm.boot.ram import BootRam
    from vmm.config.payload import PayloadConfig
    from vmm.config.platform import PlatformConfig
    from vmm.config.vm import VmConfig
    from vmm.machine.memory import GuestMemory
    from vmm.machine.processors import Processors


def write(memory: GuestMemory, config: VmConfig, cpus: Processors) -> KernelEntry:
    """Load what is to be booted and say where the first vCPU enters; the tables come later.

    Raises: ConfigError (caller: a payload that cannot be booted), HostError (unreadable).
    """
    facts = BootFacts(cpus.apic_ids[: config.cpus.boot_vcpus], _identity(config.platform))
    return _load(memory, config.payload, facts)


def check(config: VmConfig) -> None:
    """Have the payload of a configuration loaded into its RAM, as if it were there.

    Raises: ConfigError (caller: it does not fit), HostError (unreadable).
    """
    ram = SupposedRam(ram_ranges(config.total_memory()))
    _load(ram, config.payload, BootFacts((0,), _identity(config.platform)))


def _load(memory: BootRam, payload: PayloadConfig | None, facts: BootFacts) -> KernelEntry:
    if payload is None:
        raise InternalError("A machine without a payload got past validation")
    with ExitStack() as files:
        role, path = (
            ("firmware", payload.firmware) if payload.firmware else ("kernel", payload.kernel)
        )
        image = files.enter_context(open_payload(path or "", role))
        initramfs = None
        if payload.initramfs is not None and role == "kernel":
            initramfs = files.enter_context(open_payload(payload.initramfs, "initramfs"))
        return prepare(memory, Payload(image, initramfs, payload.cmdline or ""), facts)


def write_tables(
    memory: GuestMemory,
    config: VmConfig,
    cpus: Processors,
    areas: DeviceAreas,
    iommu: Iommu | None,
) -> None:
    """Describe the machine, whose devices have their places. Raises: ConfigError (caller)."""
    room = () if areas.hotplug is None else (Span(*areas.hotplug),)
    nodes = nodes_of(config, memory.regions, cpus.apic_ids, room)
    machine = _acpi_machine(config, cpus, areas, nodes)._replace(iommu=iommu)
    memory.write(tables.RSDP_ADDRESS, tables.build(machine))


def _acpi_machine(
    config: VmConfig, cpus: Processors, areas: DeviceAreas, nodes: tuple[NumaNode, ...]
) -> Machine:
    segments = tuple(
        PciSegment(
            id,
            Span(*share.ecam),
            Span(*share.mmio32),
            Span(*share.mmio64),
            node=node_of_segment(config, id),
        )
        for id, share in enumerate(segment_areas(config, areas))
    )
    return Machine(
        apic_ids=cpus.apic_ids,
        boot_vcpus=config.cpus.boot_vcpus,
        segments=segments,
        ged_address=areas.platform_page(GED_PAGE),
        pci_hotplug_address=areas.platform_page(PCI_HOTPLUG_PAGE),
        cpu_hotplug_address=areas.platform_page(CPU_HOTPLUG_PAGE),
        memory_hotplug_address=(
            None if areas.hotplug is None else areas.platform_page(MEMORY_HOTPLUG_PAGE)
        ),
        ged_irq=GED_IRQ,
        has_serial=config.serial.mode != "Off",
        has_fw_cfg=config.payload is not None and config.payload.fw_cfg_config is not None,
        has_pm1_blocks=config.cpus.nested and config.cpus.kvm_hyperv,
        nodes=nodes,
    )


def _identity(platform: PlatformConfig | None) -> SystemIdentity:
    if platform is None:
        return SystemIdentity()
    default = SystemIdentity()
    return SystemIdentity(
        manufacturer=platform.system_manufacturer or default.manufacturer,
        product_name=platform.system_product_name or default.product_name,
        version=platform.system_version,
        serial_number=platform.system_serial_number,
        uuid=platform.system_uuid,
        sku_number=platform.system_sku_number,
        family=platform.system_family,
        chassis_asset_tag=platform.chassis_asset_tag,
        oem_strings=platform.oem_strings or (),
    )
