"""The state in which every vCPU is created: 32-bit protected mode, flat segments, no paging.

Specification: the 32-bit entry of Linux's boot protocol and Xen's PVH entry, which agree on it; the
descriptor formats are of the Intel SDM, volume 3, section 3.4.5.
"""

from __future__ import annotations

import copy
import struct

from vmm.boot import layout
from vmm.boot.entry import KernelEntry
from vmm.kvm_cffi.structs import DescriptorTable, Regs, Segment, Sregs

NULL_DESCRIPTOR = 0
CODE_DESCRIPTOR = 0x00CF_9B00_0000_FFFF
DATA_DESCRIPTOR = 0x00CF_9300_0000_FFFF
TSS_DESCRIPTOR = 0x0000_8B00_0000_0067
GDT_DESCRIPTORS = (NULL_DESCRIPTOR, CODE_DESCRIPTOR, DATA_DESCRIPTOR, TSS_DESCRIPTOR)
CODE_SELECTOR = 0x08
DATA_SELECTOR = 0x10
TSS_SELECTOR = 0x18

GDT = struct.pack("<4Q", *GDT_DESCRIPTORS)
IDT = bytes(8)

CR0_PE = 1 << 0
RFLAGS_RESERVED = 1 << 1
APIC_BASE_X2APIC = 1 << 10

FPU_CONTROL_WORD = 0x37F
MXCSR = 0x1F80

LAPIC_LVT0 = 0x350
LAPIC_LVT1 = 0x360
DELIVERY_MODE = 7 << 8
DELIVERY_NMI = 4 << 8
DELIVERY_EXTINT = 7 << 8


def decode_segment(selector: int) -> Segment:
    """Say what loading a selector of the boot GDT puts into a segment register."""
    raw = GDT_DESCRIPTORS[selector // 8]
    granular = raw >> 55 & 1
    limit = raw & 0xFFFF | (raw >> 48 & 0xF) << 16
    return Segment(
        base=raw >> 16 & 0xFF_FFFF | (raw >> 56 & 0xFF) << 24,
        limit=limit << 12 | 0xFFF if granular else limit,
        selector=selector,
        type=raw >> 40 & 0xF,
        present=raw >> 47 & 1,
        dpl=raw >> 45 & 3,
        db=raw >> 54 & 1,
        s=raw >> 44 & 1,
        l=raw >> 53 & 1,
        g=granular,
        avl=raw >> 52 & 1,
    )


def initial_sregs(template: Sregs, *, x2apic: bool = False) -> Sregs:
    """Make the special registers of a vCPU from those that KVM created it with.

    ``x2apic`` turns x2APIC mode on: needed where an APIC id does not fit into 8 bits.
    """
    sregs = copy.copy(template)
    data = decode_segment(DATA_SELECTOR)
    sregs.cs = decode_segment(CODE_SELECTOR)
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data
    sregs.tr = decode_segment(TSS_SELECTOR)
    sregs.gdt = DescriptorTable(layout.BOOT_GDT, len(GDT) - 1)
    sregs.idt = DescriptorTable(layout.BOOT_IDT, len(IDT) - 1)
    sregs.cr0 = CR0_PE
    sregs.cr4 = 0
    if x2apic:
        sregs.apic_base |= APIC_BASE_X2APIC
    return sregs


def initial_regs(entry: KernelEntry) -> Regs:
    """Make the general registers that enter a kernel."""
    if entry.kind == "pvh":
        return Regs(rip=entry.address, rbx=layout.START_INFO, rflags=RFLAGS_RESERVED)
    return Regs(
        rip=entry.address,
        rsp=layout.BOOT_STACK,
        rsi=layout.ZERO_PAGE,
        rflags=RFLAGS_RESERVED,
    )


def configure_lapic(page: bytes) -> bytes:
    """Set the two local interrupt pins of a LAPIC's register page as firmware leaves them.

    The first takes interrupts from a PIC, the second is the NMI; whether they are masked stays.
    """
    registers = bytearray(page)
    for offset, mode in ((LAPIC_LVT0, DELIVERY_EXTINT), (LAPIC_LVT1, DELIVERY_NMI)):
        (value,) = struct.unpack_from("<I", registers, offset)
        struct.pack_into("<I", registers, offset, value & ~DELIVERY_MODE | mode)
    return bytes(registers)
