r"""DSDT: the devices that no bus can enumerate, and what to do when the event device fires.

A device that the guest is notified of has a line in ``_reactions``: its notification and the AML
that runs then. A hot-plug controller is a module of its own, with its device and its scan method.

Spec: ACPI 6.5, sections 5.6.9 (event device) and 7.4 (sleep states).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vmm.acpi import aml, cpu_hotplug, memory_hotplug, pci_hotplug
from vmm.acpi import resources as res
from vmm.acpi.ged import REGISTER_SIZE, AcpiNotification
from vmm.acpi.machine import COM1_IRQ, FW_CFG_PORT, FW_CFG_PORTS, Machine
from vmm.acpi.pci_root import motherboard, root_bridge
from vmm.acpi.sdt import sdt

_REVISION = 6
_COM1_PORTS = (0x3F8, 8)
_RTC_PORTS = (0x70, 2)
_S5_SLEEP_TYPE = 5
_BUTTON_PRESSED = 0x80


def dsdt(machine: Machine) -> bytes:
    """Build DSDT."""
    return sdt(b"DSDT", _REVISION, b"".join(_objects(machine)), b"CHDSDT")


def _objects(machine: Machine) -> Iterator[bytes]:
    system_bus = [*map(root_bridge, machine.segments), motherboard(machine), _clock()]
    if machine.has_serial:
        system_bus.append(_serial_port())
    if machine.has_fw_cfg:
        system_bus.append(_fw_cfg())
    system_bus += [pci_hotplug.hotplug_controller(machine), _power_button()]
    system_bus += cpu_hotplug.cpu_devices(machine)
    system_bus.append(memory_hotplug.hotplug_controller(machine))
    system_bus += _event_devices(machine, _reactions())
    yield aml.scope(r"\_SB", *system_bus)
    yield aml.name(r"\_S5", aml.package(_S5_SLEEP_TYPE, _S5_SLEEP_TYPE, 0, 0))


def _reactions() -> Mapping[AcpiNotification, bytes]:
    pressed = aml.notify(aml.path(r"\_SB.PWRB"), _BUTTON_PRESSED)
    return {
        AcpiNotification.CPU: cpu_hotplug.scan(),
        AcpiNotification.MEMORY: memory_hotplug.scan(),
        AcpiNotification.PCI: pci_hotplug.scan(),
        AcpiNotification.POWER_BUTTON: pressed,
    }


def _serial_port() -> bytes:
    return aml.device(
        "COM1",
        aml.name("_HID", aml.eisa_id("PNP0501")),
        aml.name("_UID", 0),
        aml.name("_DDN", "COM1"),
        aml.name(
            "_CRS", res.resource_template(res.interrupt(COM1_IRQ), res.io_ports(*_COM1_PORTS))
        ),
    )


def _clock() -> bytes:
    """Describe the CMOS clock: without an interrupt, as a guest that finds none itself assumes one.

    It sets its time by it at boot. Until then Linux counts ticks, and loses those that come late.
    """
    return aml.device(
        "RTC",
        aml.name("_HID", aml.eisa_id("PNP0B00")),
        aml.name("_CRS", res.resource_template(res.io_ports(*_RTC_PORTS))),
    )


def _fw_cfg() -> bytes:
    return aml.device(
        "FWCF",
        aml.name("_HID", "QEMU0002"),
        aml.name("_STA", 0x0B),
        aml.name("_CRS", res.resource_template(res.io_ports(FW_CFG_PORT, FW_CFG_PORTS))),
    )


def _power_button() -> bytes:
    return aml.device("PWRB", aml.name("_HID", aml.eisa_id("PNP0C0C")), aml.name("_UID", 0))


def _event_devices(
    machine: Machine, reactions: Mapping[AcpiNotification, bytes]
) -> Iterator[bytes]:
    """Yield the controller that reads the register, then the device whose interrupt runs it."""
    register = res.qword_memory(machine.ged_address, machine.ged_address + REGISTER_SIZE - 1)
    events = aml.local(0)
    yield aml.device(
        "GEC",
        aml.name("_HID", aml.eisa_id("PNP0A06")),
        aml.name("_UID", "Generic Event Controller"),
        # The register is claimed here: a GED's own _CRS may hold nothing but interrupts.
        aml.name("_CRS", res.resource_template(register)),
        aml.operation_region(
            "GDST", aml.AddressSpace.SYSTEM_MEMORY, machine.ged_address, REGISTER_SIZE
        ),
        aml.field("GDST", aml.Access.BYTE, aml.Bits("GDAT", 8), update=aml.Update.WRITE_AS_ZEROS),
        aml.method(
            "ESCN",
            0,
            # The read clears the register: take all bits at once.
            aml.store(aml.path("GDAT"), events),
            *(aml.if_(aml.and_(events, bit), react) for bit, react in reactions.items()),
            serialized=True,
        ),
    )
    yield aml.device(
        "GED",
        aml.name("_HID", "ACPI0013"),
        aml.name("_UID", 0),
        aml.name("_CRS", res.resource_template(res.interrupt(machine.ged_irq))),
        aml.method("_EVT", 1, aml.call(r"\_SB.GEC.ESCN"), serialized=True),
    )
