"""The CPUID leaves by which a Windows guest finds Hyper-V's interface.

Specification: Hyper-V Top-Level Functional Specification, section 2.4.
"""

from __future__ import annotations

from vmm.boot.cpuid_table import bits
from vmm.kvm_cffi.structs import CpuidEntry

FIRST_LEAF = 0x4000_0000
LAST_LEAF = 0x4000_000A

HYPERV_LEAVES = (
    # "Linux KVM Hv"
    CpuidEntry(FIRST_LEAF, eax=LAST_LEAF, ebx=0x756E694C, ecx=0x564B2078, edx=0x7648204D),
    # "Hv#1"
    CpuidEntry(0x4000_0001, eax=0x31237648),
    # Version 10.0, build 14393.
    CpuidEntry(0x4000_0002, eax=0x3839, ebx=0xA_0000),
    # What a guest may use: run-time and reference counters, SynIC and its timers, APIC registers,
    # hypercalls, VP index, reference TSC, frequencies; input of hypercalls in XMM registers.
    CpuidEntry(0x4000_0003, eax=bits(0, 1, 2, 3, 4, 5, 6, 9, 11), edx=bits(3, 4, 8)),
    # What it is advised to use: TLB flushes and IPIs by hypercall, APIC by MSR, relaxed timing, no
    # automatic EOI; and how often to retry a spinlock before it says so.
    CpuidEntry(0x4000_0004, eax=bits(1, 2, 3, 5, 9, 10), ebx=0xFFF),
    *(CpuidEntry(leaf) for leaf in range(0x4000_0005, LAST_LEAF + 1)),
)
