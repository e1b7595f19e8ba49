r"""Memory hot plug: the registers that describe what was plugged in, and the AML that reads them.

There are eight slots; the first register selects one, the others are about it.

- read 0x00 and 0x08: where the slot's memory begins, and its size, 64 bits each
- write 0x00: select a slot
- 0x14: bit 0 there is memory, bit 1 it has just come; the guest writes a 1 to bit 1 when it knows

Memory does not leave again: an eject is ignored.

Spec: ACPI 6.5, section 9.11.2 (memory devices); the registers are this machine's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vmm.acpi import aml
from vmm.acpi import resources as res
from vmm.acpi.ged import AcpiNotification, Notifier
from vmm.acpi.machine import Machine
from vmm.errors import ConfigError
from vmm.pci.allocator import Span

if TYPE_CHECKING:
    from vmm.acpi.saved import SavedMemoryHotplug

SLOTS = 8
REGISTERS_SIZE = 0x18

_BASE, _SIZE, _STATUS = 0x00, 0x08, 0x14
_ENABLED, _INSERTING = 1 << 0, 1 << 1

_DEVICE_CHECK = 1
_PRESENT_AND_WORKING = 0x0B
_THERE = 0x0F

# Where the three numbers are in the resource template of one QWordMemory descriptor.
_FIRST, _LAST, _LENGTH = 14, 22, 38


class MemoryHotplug:
    """The registers of all slots: an IoHandler. Accesses of 1, 4 or 8 bytes."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._slots: list[Span] = []
        self._inserting: set[int] = set()
        self._selected = 0

    @property
    def free(self) -> int:
        """How many slots have no memory yet."""
        return SLOTS - len(self._slots)

    def announce(self, memory: Span) -> None:
        """Put memory into the next free slot and tell the guest; one has to be free."""
        self._inserting.add(len(self._slots))
        self._slots.append(memory)
        self._notifier.notify(AcpiNotification.MEMORY)

    def save(self) -> SavedMemoryHotplug:
        """Give what a snapshot keeps."""
        from vmm.acpi.saved import SavedMemoryHotplug  # Only now: most VMs never are.

        return SavedMemoryHotplug(
            slots=tuple((memory.base, memory.size) for memory in self._slots),
            inserting=tuple(sorted(self._inserting)),
            selected=self._selected,
        )

    def load(self, state: SavedMemoryHotplug) -> None:
        """Take over what a snapshot kept. Raises: ConfigError for too many slots (caller)."""
        if len(state.slots) > SLOTS:
            raise ConfigError(
                f"The saved VM has RAM in {len(state.slots)} slots and there may be {SLOTS}; the "
                "state is not whole, or of another version: restore it with that"
            )
        self._slots = [Span(base, size) for base, size in state.slots]
        self._inserting = set(state.inserting)
        self._selected = state.selected

    def read(self, offset: int, size: int) -> int:
        """Give bytes of the selected slot's registers; a slot without memory reads as zero."""
        return int.from_bytes(self._registers()[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Select a slot, or note that the guest knows of its memory; ignore anything else."""
        if offset == _BASE:
            self._selected = value
        elif offset == _STATUS and value & _INSERTING:
            self._inserting.discard(self._selected)

    def _registers(self) -> bytes:
        if self._selected >= len(self._slots):
            return bytes(REGISTERS_SIZE)
        memory = self._slots[self._selected]
        is_inserting = self._selected in self._inserting
        return b"".join(
            (
                memory.base.to_bytes(8, "little"),
                memory.size.to_bytes(8, "little"),
                bytes(_STATUS - 0x10),
                bytes((_ENABLED | (_INSERTING if is_inserting else 0),)),
                bytes(REGISTERS_SIZE - _STATUS - 1),
            )
        )


def hotplug_controller(machine: Machine) -> bytes:
    """Describe the registers, the slots, and the methods that read them; empty without any."""
    address = machine.memory_hotplug_address
    if address is None:
        return aml.device(
            "MHPC",
            aml.name("_HID", aml.eisa_id("PNP0A06")),
            aml.name("_UID", "Memory Hotplug Controller"),
            aml.method("MSCN", 0, serialized=True),
        )
    registers = res.qword_memory(address, address + REGISTERS_SIZE - 1)
    return aml.device(
        "MHPC",
        aml.name("_HID", aml.eisa_id("PNP0A06")),
        aml.name("_UID", "Memory Hotplug Controller"),
        aml.name("_STA", _PRESENT_AND_WORKING),
        aml.name("_CRS", res.resource_template(registers)),
        # Between the choice of a slot and what is read of it nobody may choose another.
        aml.mutex("MLCK"),
        aml.operation_region("MHPR", aml.AddressSpace.SYSTEM_MEMORY, address, REGISTERS_SIZE),
        aml.field("MHPR", aml.Access.DWORD, aml.Bits("MHBA", 64), aml.Bits("MHLN", 64)),
        aml.field(
            "MHPR",
            aml.Access.BYTE,
            aml.Offset(_STATUS),
            aml.Bits("MHEN", 1),
            aml.Bits("MINS", 1),
            update=aml.Update.WRITE_AS_ZEROS,
        ),
        aml.field("MHPR", aml.Access.DWORD, aml.Bits("MSEL", 32)),
        _status(),
        _resources(),
        *_slots(),
        _notify_slot(),
        _scan(),
    )


def scan() -> bytes:
    """What to do when the event device says that there is more memory."""
    return aml.call(r"\_SB.MHPC.MSCN")


def _status() -> bytes:
    result = aml.local(0)
    return aml.method(
        "MSTA",
        1,
        aml.store(0, result),
        aml.acquire(aml.path("MLCK")),
        aml.store(aml.argument(0), aml.path("MSEL")),
        aml.if_(aml.equal(aml.path("MHEN"), 1), aml.store(_THERE, result)),
        aml.release(aml.path("MLCK")),
        aml.return_(result),
        serialized=True,
    )


def _resources() -> bytes:
    """Fill the numbers of a slot's memory into a template that has none yet."""
    template = aml.path("MR64")
    last = aml.local(0)
    return aml.method(
        "MCRS",
        1,
        aml.acquire(aml.path("MLCK")),
        aml.store(aml.argument(0), aml.path("MSEL")),
        aml.name("MR64", res.resource_template(res.qword_ram(0, 0))),
        aml.create_qword_field(template, _FIRST, "MMIN"),
        aml.create_qword_field(template, _LAST, "MMAX"),
        aml.create_qword_field(template, _LENGTH, "MLEN"),
        aml.store(aml.path("MHBA"), aml.path("MMIN")),
        aml.store(aml.path("MHLN"), aml.path("MLEN")),
        aml.add(aml.path("MMIN"), aml.path("MLEN"), last),
        aml.subtract(last, 1, aml.path("MMAX")),
        aml.release(aml.path("MLCK")),
        aml.return_(template),
        serialized=True,
    )


def _slots() -> Iterator[bytes]:
    for number in range(SLOTS):
        yield aml.device(
            f"M{number:03}",
            aml.name("_HID", aml.eisa_id("PNP0C80")),
            aml.name("_UID", number),
            aml.method("_STA", 0, aml.return_(aml.call("MSTA", number)), serialized=True),
            aml.method("_CRS", 0, aml.return_(aml.call("MCRS", number)), serialized=True),
        )


def _notify_slot() -> bytes:
    slot = aml.argument(0)
    return aml.method(
        "MTFY",
        1,
        *(
            aml.if_(aml.equal(slot, number), aml.notify(aml.path(f"M{number:03}"), _DEVICE_CHECK))
            for number in range(SLOTS)
        ),
        serialized=True,
    )


def _scan() -> bytes:
    """Tell each slot whose memory has just come, and take the mark away."""
    slot = aml.local(0)
    return aml.method(
        "MSCN",
        0,
        aml.store(0, slot),
        aml.acquire(aml.path("MLCK")),
        aml.while_(
            aml.less(slot, SLOTS),
            aml.store(slot, aml.path("MSEL")),
            aml.if_(
                aml.equal(aml.path("MINS"), 1),
                aml.call("MTFY", slot),
                aml.store(1, aml.path("MINS")),
            ),
            aml.increment(slot),
        ),
        aml.release(aml.path("MLCK")),
        serialized=True,
    )
