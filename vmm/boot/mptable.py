"""The MP table, for kernels that do not read ACPI: vCPUs, one ISA bus, the IOAPIC, interrupts.

Specification: Intel MultiProcessor Specification, version 1.4, chapter 4.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vmm.boot import layout

FLOATING_POINTER = struct.Struct("<4sIBBB5x")
HEADER = struct.Struct("<4sHBB8s12sIHHIHBx")
PROCESSOR = struct.Struct("<BBBBII8x")
BUS = struct.Struct("<BB6s")
IOAPIC = struct.Struct("<BBBBI")
INTERRUPT = struct.Struct("<BBHBBBB")

SPEC_REVISION = 4
OEM_ID = b"FC      "
PRODUCT_ID = b"000000000000"

ENTRY_PROCESSOR = 0
ENTRY_BUS = 1
ENTRY_IOAPIC = 2
ENTRY_IO_INTERRUPT = 3
ENTRY_LOCAL_INTERRUPT = 4

APIC_VERSION = 0x14
PROCESSOR_ENABLED = 1
PROCESSOR_IS_BSP = 2
PROCESSOR_SIGNATURE = 0x600
FEATURE_FPU_AND_APIC = 0x201
IOAPIC_ENABLED = 1

INTERRUPT_VECTORED = 0
INTERRUPT_NMI = 1
INTERRUPT_EXTINT = 3
ALL_LAPICS = 0xFF

IOAPIC_ID = 255
MAX_APIC_ID = 253
"""The table's ids have 8 bits, and 255 is the IOAPIC's."""
ISA_INTERRUPTS = 16


def encode_mptable(apic_ids: Sequence[int], address: int) -> bytes | None:
    """Make the floating pointer, to be put at ``address``, and the table right behind it.

    ``apic_ids`` are those of the vCPUs at boot. None where an id is too wide for the table or there
    is no room below 1 MiB: the table is then left out, and kernels use ACPI.
    """
    if max(apic_ids) > MAX_APIC_ID:
        return None
    entries = _entries(apic_ids)
    body = b"".join(entries)
    table_address = address + FLOATING_POINTER.size
    if table_address + HEADER.size + len(body) > layout.BIOS_END:
        return None
    return _floating_pointer(table_address) + _table(body, len(entries))


def _entries(apic_ids: Sequence[int]) -> list[bytes]:
    processors = [
        PROCESSOR.pack(
            ENTRY_PROCESSOR,
            apic_id,
            APIC_VERSION,
            PROCESSOR_ENABLED | (PROCESSOR_IS_BSP if index == 0 else 0),
            PROCESSOR_SIGNATURE,
            FEATURE_FPU_AND_APIC,
        )
        for index, apic_id in enumerate(apic_ids)
    ]
    interrupts = [
        INTERRUPT.pack(ENTRY_IO_INTERRUPT, INTERRUPT_VECTORED, 0, 0, irq, IOAPIC_ID, irq)
        for irq in range(ISA_INTERRUPTS)
    ]
    return [
        *processors,
        BUS.pack(ENTRY_BUS, 0, b"ISA   "),
        IOAPIC.pack(ENTRY_IOAPIC, IOAPIC_ID, APIC_VERSION, IOAPIC_ENABLED, layout.IOAPIC),
        *interrupts,
        INTERRUPT.pack(ENTRY_LOCAL_INTERRUPT, INTERRUPT_EXTINT, 0, 0, 0, 0, 0),
        INTERRUPT.pack(ENTRY_LOCAL_INTERRUPT, INTERRUPT_NMI, 0, 0, 0, ALL_LAPICS, 1),
    ]


def _floating_pointer(table_address: int) -> bytes:
    def pack(checksum: int) -> bytes:
        # Its length is counted in paragraphs of 16 bytes.
        return FLOATING_POINTER.pack(b"_MP_", table_address, 1, SPEC_REVISION, checksum)

    return pack(-sum(pack(0)) & 0xFF)


def _table(body: bytes, entry_count: int) -> bytes:
    def pack(checksum: int) -> bytes:
        header = HEADER.pack(
            b"PCMP",
            HEADER.size + len(body),
            SPEC_REVISION,
            checksum,
            OEM_ID,
            PRODUCT_ID,
            0,
            0,
            entry_count,
            layout.LAPIC,
            0,
            0,
        )
        return header + body

    return pack(-sum(pack(0)) & 0xFF)
