r"""CPU hot plug: the registers that say which processors change, and the AML that reads them.

A word of 32 bits at offset 0 selects a processor; the byte at offset 4 is about that one:

- bit 0 it is there
- bit 1 it has come; writing 1 says that this was noticed
- bit 2 it is wanted back; writing 1 says that this was noticed
- bit 3 writing 1 gives it back

Spec: ACPI 6.5, sections 8.4 (processor devices) and 6.2.10 (_MAT); the registers are this
machine's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntFlag
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from vmm.acpi import aml
from vmm.acpi import resources as res
from vmm.acpi.ged import AcpiNotification, Notifier
from vmm.acpi.machine import Machine
from vmm.acpi.madt import ENABLED, x2apic
from vmm.acpi.pci_hotplug import DEVICE_CHECK, EJECT_REQUEST, PRESENT_AND_WORKING
from vmm.errors import ConfigError

if TYPE_CHECKING:
    from vmm.acpi.saved import SavedCpuHotplug

REGISTERS_SIZE = 0xC
MOST = 512
"""Possible processors that the tables have room for one by one; with more, none can come or go."""

_SELECT, _STATUS = 0x0, 0x4
_ENABLED_DEVICE = 0xF
_REGISTERS = r"\_SB.PRES"

Effect_co = TypeVar("Effect_co", covariant=True)


class Status(IntFlag):
    """The byte about the selected processor."""

    PRESENT = 1
    INSERTING = 2
    REMOVING = 4
    EJECT = 8


class Ejector(Protocol[Effect_co]):
    """Who stops processors when the guest is done with them."""

    def eject_cpu(self, index: int) -> Effect_co | None:
        """Stop a processor; gives what the guest has to wait for, if it has to."""


class CpuHotplug(Generic[Effect_co]):
    """The registers of all possible processors, the first ``present`` of which are there."""

    def __init__(self, notifier: Notifier, *, possible: int, present: int) -> None:
        self._notifier = notifier
        self._status = [Status.PRESENT] * present + [Status(0)] * (possible - present)
        self._selected = 0
        self._wanted_back: set[int] = set()
        self._ejector: Ejector[Effect_co] | None = None

    @property
    def wanted_back(self) -> frozenset[int]:
        """The processors that the guest was asked for and has not given back."""
        return frozenset(self._wanted_back)

    def serve(self, ejector: Ejector[Effect_co]) -> None:
        """Hand the guest's ejections over from now on."""
        self._ejector = ejector

    def announce(self, indices: Iterable[int]) -> None:
        """Tell the guest that processors have come."""
        for index in indices:
            self._status[index] = Status.PRESENT | Status.INSERTING
        self._notifier.notify(AcpiNotification.CPU)

    def ask_back(self, indices: Iterable[int]) -> None:
        """Ask the guest for processors."""
        for index in indices:
            self._status[index] |= Status.REMOVING
            self._wanted_back.add(index)
        self._notifier.notify(AcpiNotification.CPU)

    def read(self, offset: int, size: int) -> int:
        """Give which processor is selected, or its status; zero for anything else."""
        if (offset, size) == (_SELECT, 4):
            return self._selected
        return int(self._selected_status()) if (offset, size) == (_STATUS, 1) else 0

    def write(self, offset: int, size: int, value: int) -> Effect_co | None:
        """Select a processor, take what the guest has noticed, or let it give one back.

        One that does not exist has no status; none can be given back that was not asked for.
        """
        if (offset, size) == (_SELECT, 4):
            self._selected = value
        if (offset, size) != (_STATUS, 1) or self._selected >= len(self._status):
            return None
        self._status[self._selected] &= ~(value & (Status.INSERTING | Status.REMOVING))
        if value & Status.EJECT and self._selected in self._wanted_back and self._ejector:
            self._wanted_back.remove(self._selected)
            self._status[self._selected] = Status(0)
            return self._ejector.eject_cpu(self._selected)
        return None

    def save(self) -> SavedCpuHotplug:
        """Give what a snapshot keeps."""
        from vmm.acpi.saved import SavedCpuHotplug  # Only now: most VMs never are.

        return SavedCpuHotplug(
            status=tuple(int(each) for each in self._status),
            wanted_back=tuple(sorted(self._wanted_back)),
            selected=self._selected,
        )

    def load(self, state: SavedCpuHotplug) -> None:
        """Take over what a snapshot kept. Raises: ConfigError for other processors (caller)."""
        possible = len(self._status)
        if len(state.status) != possible or any(at >= possible for at in state.wanted_back):
            raise ConfigError(
                f"The saved VM may have {len(state.status)} vCPUs and this one {possible}; restore "
                "it with the cpus.max_vcpus that it had"
            )
        self._status = [Status(each & sum(Status)) for each in state.status]
        self._wanted_back = set(state.wanted_back)
        self._selected = state.selected

    def _selected_status(self) -> Status:
        inside = self._selected < len(self._status)
        return self._status[self._selected] if inside else Status(0)


def cpu_devices(machine: Machine) -> Iterator[bytes]:
    """Yield the registers, and a container with the processors if there is room for them."""
    address = machine.cpu_hotplug_address
    registers = res.qword_memory(address, address + REGISTERS_SIZE - 1)
    yield aml.device(
        "PRES",
        aml.name("_HID", aml.eisa_id("PNP0A06")),
        aml.name("_UID", "CPU Hotplug Controller"),
        aml.name("_STA", PRESENT_AND_WORKING),
        aml.name("_CRS", res.resource_template(registers)),
        # Between the choice of a processor and what is done to it nobody may choose another.
        aml.mutex("CPLK"),
        aml.operation_region("PRST", aml.AddressSpace.SYSTEM_MEMORY, address, REGISTERS_SIZE),
        aml.field("PRST", aml.Access.DWORD, aml.Bits("CSEL", 32)),
        aml.field(
            "PRST",
            aml.Access.BYTE,
            aml.Offset(_STATUS),
            *(aml.Bits(name, 1) for name in ("CPEN", "CINS", "CRMV", "CEJ0")),
            update=aml.Update.WRITE_AS_ZEROS,
        ),
    )
    devices = _processors(machine) if len(machine.apic_ids) <= MOST else ()
    yield aml.device(
        "CPUS",
        aml.name("_HID", "ACPI0010"),
        aml.name("_CID", aml.eisa_id("PNP0A05")),
        _status(),
        _eject(),
        _tell(len(machine.apic_ids) if devices else 0),
        _scan(len(machine.apic_ids) if devices else 0),
        *devices,
    )


def scan() -> bytes:
    """What to do when the event device says that processors changed."""
    return aml.call(r"\_SB.CPUS.CSCN")


def _processors(machine: Machine) -> tuple[bytes, ...]:
    node_of = {apic_id: node.id for node in machine.nodes for apic_id in node.apic_ids}
    return tuple(
        aml.device(
            _name(index),
            aml.name("_HID", "ACPI0007"),
            aml.name("_UID", index),
            aml.method("_STA", 0, aml.return_(aml.call("CSTA", index))),
            *([aml.name("_PXM", node_of[apic_id])] if apic_id in node_of else []),
            aml.name("_MAT", aml.buffer(x2apic(index, apic_id, ENABLED))),
            # The first one stays.
            *([aml.method("_EJ0", 1, aml.call("CEJ0", index))] if index else []),
        )
        for index, apic_id in enumerate(machine.apic_ids)
    )


def _name(index: int) -> str:
    return f"C{index:03X}"


def _register(name: str) -> bytes:
    return aml.path(rf"{_REGISTERS}.{name}")


def _locked(*body: bytes) -> tuple[bytes, ...]:
    return (aml.acquire(_register("CPLK")), *body, aml.release(_register("CPLK")))


def _status() -> bytes:
    status = aml.local(0)
    look = (
        aml.store(aml.argument(0), _register("CSEL")),
        aml.store(0, status),
        aml.if_(_register("CPEN"), aml.store(_ENABLED_DEVICE, status)),
    )
    return aml.method("CSTA", 1, *_locked(*look), aml.return_(status), serialized=True)


def _eject() -> bytes:
    give = (
        aml.store(aml.argument(0), _register("CSEL")),
        aml.store(1, _register("CEJ0")),
    )
    return aml.method("CEJ0", 1, *_locked(*give), serialized=True)


def _tell(count: int) -> bytes:
    """A notification names its device: one branch a processor."""
    which, what = aml.argument(0), aml.argument(1)
    return aml.method(
        "CTFY",
        2,
        *(
            aml.if_(aml.equal(which, index), aml.notify(aml.path(_name(index)), what))
            for index in range(count)
        ),
        serialized=True,
    )


def _scan(count: int) -> bytes:
    at = aml.local(0)
    # A notification is carried out after the scan: it is no harm that the lock is held.
    look = (
        aml.store(0, at),
        aml.while_(
            aml.less(at, count),
            aml.store(at, _register("CSEL")),
            *_pass_on("CINS", at, DEVICE_CHECK),
            *_pass_on("CRMV", at, EJECT_REQUEST),
            aml.increment(at),
        ),
    )
    return aml.method("CSCN", 0, *_locked(*look), serialized=True)


def _pass_on(bit: str, at: bytes, what: int) -> tuple[bytes, ...]:
    noticed = aml.store(1, _register(bit))
    return (aml.if_(_register(bit), aml.call("CTFY", at, what), noticed),)
