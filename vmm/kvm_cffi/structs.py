"""The KVM structures that cross the C boundary, as plain Python values with KVM's own field names.

Source: Linux Documentation/virt/kvm/api.rst and arch/x86/include/uapi/asm/kvm.h.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class CpuidEntry(NamedTuple):
    """One ``struct kvm_cpuid_entry2``."""

    function: int
    index: int = 0  # type: ignore[assignment]  # KVM's name, over tuple.index
    flags: int = 0
    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0


class MsrEntry(NamedTuple):
    """One ``struct kvm_msr_entry``."""

    index: int  # type: ignore[assignment]  # KVM's name, over tuple.index
    data: int


class MsiRoute(NamedTuple):
    """One GSI's entry in the routing table, of type KVM_IRQ_ROUTING_MSI."""

    gsi: int
    address: int
    data: int


class Segment(NamedTuple):
    """One ``struct kvm_segment``."""

    base: int = 0
    limit: int = 0
    selector: int = 0
    type: int = 0
    present: int = 0
    dpl: int = 0
    db: int = 0
    s: int = 0
    l: int = 0  # noqa: E741  KVM's own name
    g: int = 0
    avl: int = 0
    unusable: int = 0


class DescriptorTable(NamedTuple):
    """One ``struct kvm_dtable``: base address and limit in bytes."""

    base: int = 0
    limit: int = 0


@dataclass(slots=True)
class Regs:
    """``struct kvm_regs``: the general-purpose registers."""

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = 2


@dataclass(slots=True)
class Sregs:
    """``struct kvm_sregs``: segments, control registers, APIC base and the interrupt bitmap."""

    cs: Segment = field(default_factory=Segment)
    ds: Segment = field(default_factory=Segment)
    es: Segment = field(default_factory=Segment)
    fs: Segment = field(default_factory=Segment)
    gs: Segment = field(default_factory=Segment)
    ss: Segment = field(default_factory=Segment)
    tr: Segment = field(default_factory=Segment)
    ldt: Segment = field(default_factory=Segment)
    gdt: DescriptorTable = field(default_factory=DescriptorTable)
    idt: DescriptorTable = field(default_factory=DescriptorTable)
    cr0: int = 0
    cr2: int = 0
    cr3: int = 0
    cr4: int = 0
    cr8: int = 0
    efer: int = 0
    apic_base: int = 0
    interrupt_bitmap: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(slots=True)
class Fpu:
    """``struct kvm_fpu``: eight x87 registers of 16 bytes and sixteen XMM registers of 16 bytes.

    KVM moves ``mxcsr`` with the XSAVE area only; here it ignores it.
    """

    fpr: bytes = bytes(128)
    fcw: int = 0x37F
    fsw: int = 0
    ftwx: int = 0
    last_opcode: int = 0
    last_ip: int = 0
    last_dp: int = 0
    xmm: bytes = bytes(256)
    mxcsr: int = 0x1F80


class ClockData(NamedTuple):
    """``struct kvm_clock_data``: nanoseconds, KVM_CLOCK_* flags, and what the flags make valid."""

    clock: int
    flags: int = 0
    realtime: int = 0
    host_tsc: int = 0
