r"""PCI hot plug: the registers that say which slots changed, and the AML that reads them.

The registers are four words of 32 bits: a bit a slot of the segment that ``PSEG`` selects.

- ``PCIU`` devices that came; a read takes the bits away
- ``PCID`` devices that are wanted back; a read takes the bits away
- ``B0EJ`` written by the guest: it is done with the devices in these slots
- ``PSEG`` the segment that the other three are about

Spec: ACPI 6.5, section 6.3 (_EJ0, notifications 1 and 3); the registers are this machine's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from vmm.acpi import aml
from vmm.acpi import resources as res
from vmm.acpi.ged import AcpiNotification, Notifier
from vmm.acpi.machine import Machine, PciSegment
from vmm.errors import ConfigError

if TYPE_CHECKING:
    from vmm.acpi.saved import SavedPciHotplug

SLOTS = 32
REGISTERS_SIZE = 0x10
_WORD = 4

DEVICE_CHECK = 1
EJECT_REQUEST = 3
PRESENT_AND_WORKING = 0x0B

_CONTROLLER = r"\_SB.PHPR"

Effect_co = TypeVar("Effect_co", covariant=True)


class Register(IntEnum):
    """Where each word is, in bytes."""

    PCIU = 0x0
    PCID = 0x4
    B0EJ = 0x8
    PSEG = 0xC


class Ejector(Protocol[Effect_co]):
    """Who takes devices from their slots when the guest is done with them."""

    def eject(self, segment: int, slots: Sequence[int]) -> Effect_co | None:
        """Empty these slots; gives what the guest has to wait for, if it has to."""


class PciHotplug(Generic[Effect_co]):
    """The registers of all segments; an IoHandler once somebody ejects. Words only."""

    def __init__(self, notifier: Notifier, segments: int) -> None:
        self._notifier = notifier
        self._inserted = [0] * segments
        self._removed = [0] * segments
        self._selected = 0
        self._ejector: Ejector[Effect_co] | None = None

    def serve(self, ejector: Ejector[Effect_co]) -> None:
        """Hand the guest's ejections over from now on."""
        self._ejector = ejector

    def announce(self, segment: int, slot: int) -> None:
        """Tell the guest that a device is in a slot now."""
        self._inserted[segment] |= 1 << slot
        self._notifier.notify(AcpiNotification.PCI)

    def ask_back(self, segment: int, slot: int) -> None:
        """Ask the guest for the device in a slot."""
        self._removed[segment] |= 1 << slot
        self._notifier.notify(AcpiNotification.PCI)

    def forget(self, segment: int, slot: int) -> None:
        """Take back what the guest has not heard yet of a slot."""
        self._inserted[segment] &= ~(1 << slot)
        self._removed[segment] &= ~(1 << slot)

    def read(self, offset: int, size: int) -> int:
        """Give a register; the two bitmaps are empty then. Zero for anything else."""
        if size != _WORD:
            return 0
        if offset == Register.PSEG:
            return self._selected
        if offset == Register.PCIU:
            return self._take(self._inserted)
        return self._take(self._removed) if offset == Register.PCID else 0

    def write(self, offset: int, size: int, value: int) -> Effect_co | None:
        """Select a segment, or eject what is in slots of it; ignore anything else.

        A segment that does not exist has no slots.
        """
        if size != _WORD:
            return None
        if offset == Register.PSEG:
            self._selected = value
        elif offset == Register.B0EJ and self._ejector is not None and self._exists():
            slots = [slot for slot in range(SLOTS) if value >> slot & 1]
            return self._ejector.eject(self._selected, slots)
        return None

    def save(self) -> SavedPciHotplug:
        """Give what a snapshot keeps."""
        from vmm.acpi.saved import SavedPciHotplug  # Only now: most VMs never are.

        return SavedPciHotplug(
            inserted=tuple(self._inserted), removed=tuple(self._removed), selected=self._selected
        )

    def load(self, state: SavedPciHotplug) -> None:
        """Take over what a snapshot kept. Raises: ConfigError for other segments (caller)."""
        segments = len(self._inserted)
        if len(state.inserted) != segments or len(state.removed) != segments:
            raise ConfigError(
                f"The saved slots are of {len(state.inserted)} PCI segments and this VM has "
                f"{segments}; restore it with the platform.num_pci_segments that it had"
            )
        self._inserted, self._removed = list(state.inserted), list(state.removed)
        self._selected = state.selected

    def _take(self, bitmaps: list[int]) -> int:
        if not self._exists():
            return 0
        taken, bitmaps[self._selected] = bitmaps[self._selected], 0
        return taken

    def _exists(self) -> bool:
        return self._selected < len(self._inserted)


def hotplug_controller(machine: Machine) -> bytes:
    """Describe the registers, and the methods that scan every segment and eject from one."""
    address = machine.pci_hotplug_address
    registers = res.qword_memory(address, address + REGISTERS_SIZE - 1)
    words = (aml.Bits(register.name, 8 * _WORD) for register in Register)
    slot, segment = aml.argument(0), aml.argument(1)
    return aml.device(
        "PHPR",
        aml.name("_HID", aml.eisa_id("PNP0A06")),
        aml.name("_UID", "PCI Hotplug Controller"),
        aml.name("_STA", PRESENT_AND_WORKING),
        aml.name("_CRS", res.resource_template(registers)),
        # Between the choice of a segment and what is done to it nobody may choose another.
        aml.mutex("BLCK"),
        aml.operation_region("PCST", aml.AddressSpace.SYSTEM_MEMORY, address, REGISTERS_SIZE),
        aml.field("PCST", aml.Access.DWORD, *words, update=aml.Update.WRITE_AS_ZEROS),
        aml.method(
            "PCEJ",
            2,
            aml.acquire(aml.path("BLCK")),
            aml.store(segment, aml.path("PSEG")),
            aml.shift_left(1, slot, aml.path("B0EJ")),
            aml.release(aml.path("BLCK")),
            serialized=True,
        ),
        aml.method(
            "PSCN",
            0,
            *(aml.call(rf"\_SB.PC{each.id:02X}.PCNT") for each in machine.segments),
            serialized=True,
        ),
    )


def scan() -> bytes:
    """What to do when the event device says that slots changed."""
    return aml.call(rf"{_CONTROLLER}.PSCN")


def slots(segment: PciSegment) -> Iterator[bytes]:
    """Yield what makes a root bridge's slots pluggable: a device a slot, and how it is notified.

    The tables' place is small, and a machine may have 96 segments: what is short is so for that.
    """
    # The host bridge in slot 0 of segment 0 stays.
    numbers = range(1 if segment.id == 0 else 0, SLOTS)
    eject = aml.call(rf"{_CONTROLLER}.PCEJ", aml.argument(0), segment.id)
    yield aml.method("PCEJ", 1, eject)
    for number in numbers:
        yield aml.device(
            f"S{number:03}",
            aml.name("_SUN", number),
            aml.name("_ADR", number << 16),
            aml.method("_EJ0", 1, aml.call("PCEJ", number)),
        )
    changed, what = aml.argument(0), aml.argument(1)
    yield aml.method(
        "DVNT",
        2,
        *(
            aml.if_(aml.and_(changed, 1 << number), aml.notify(aml.path(f"S{number:03}"), what))
            for number in numbers
        ),
    )
    yield aml.method("PCNT", 0, *_count(segment), serialized=True)


def _count(segment: PciSegment) -> Iterator[bytes]:
    """Yield the statements that tell each changed slot of a segment what it is to do."""
    yield aml.acquire(aml.path(rf"{_CONTROLLER}.BLCK"))
    yield aml.store(segment.id, aml.path(rf"{_CONTROLLER}.PSEG"))
    yield aml.call("DVNT", aml.path(rf"{_CONTROLLER}.PCIU"), DEVICE_CHECK)
    yield aml.call("DVNT", aml.path(rf"{_CONTROLLER}.PCID"), EJECT_REQUEST)
    yield aml.release(aml.path(rf"{_CONTROLLER}.BLCK"))
