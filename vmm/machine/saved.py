"""What a snapshot keeps of the machine itself: vCPUs, clock, interrupt lines, and the RAM's layout.

The registers are KVM's own structures, with KVM's names.
"""

from collections.abc import Mapping
from typing import ClassVar

from vmm.config.units import U8, U16, U32, U64, Array, Text
from vmm.kvm_cffi.structs import CpuidEntry
from vmm.saved import Bytes, SavedState, Upgrade


class SavedSegment(SavedState):
    """``struct kvm_segment``."""

    base: U64
    limit: U32
    selector: U16
    type: U8
    present: U8
    dpl: U8
    db: U8
    s: U8
    l: U8  # noqa: E741  KVM's own name
    g: U8
    avl: U8
    unusable: U8


class SavedTable(SavedState):
    """``struct kvm_dtable``."""

    base: U64
    limit: U16


class SavedSregs(SavedState):
    """``struct kvm_sregs``."""

    segments: dict[str, SavedSegment]
    tables: dict[str, SavedTable]
    controls: dict[str, U64]
    interrupt_bitmap: Array[U64]


class SavedVcpu(SavedState):
    """One vCPU that stands: its registers, and all else that KVM knows of it.

    ``nested`` is what it does as the host of VMs of its own, empty where it cannot.
    """

    VERSION = 2
    UPGRADES: ClassVar[Mapping[int, Upgrade]] = {1: lambda before: before | {"nested": ""}}

    regs: dict[str, U64]
    sregs: SavedSregs
    xsave: Bytes
    xcrs: dict[U32, U64]
    msrs: Array[tuple[U32, U64]]
    lapic: Bytes
    events: Bytes
    debugregs: Bytes
    mp_state: U32
    tsc_khz: U32
    cpuid: Array[CpuidEntry]
    nested: Bytes


class SavedClock(SavedState):
    """The guest's paravirtual clock in ns, and the host's wall clock in ns since 1970.

    ``stood_at`` is when the clock stood, ``read_at`` when the time-stamp counters were read.
    """

    clock: U64
    stood_at: U64
    read_at: U64


class SavedProcessors(SavedState):
    """What the vCPUs have in common: how many there were at boot, and the features all see."""

    boot_vcpus: U32
    common_cpuid: Array[CpuidEntry]


class SavedLines(SavedState):
    """The IOAPIC pins whose interrupt waits until the pin is unmasked."""

    pending: Array[U32]


class SavedPorts(SavedState):
    """The PM timer's count, and the address register of PCI configuration by ports."""

    pm_ticks: U32
    config_address: U32


class SavedRange(SavedState):
    """A piece of RAM: guest address and size in bytes, and its zone."""

    gpa: U64
    length: U64
    zone: Text


class SavedMemory(SavedState):
    """How the RAM is laid out, and the width of guest addresses by which devices are placed.

    ``boot_ram`` are the bytes at boot; ``dimms`` what came later, in order. ``ranges`` are all of
    them as they follow each other in the file ``memory-ranges``.
    """

    phys_bits: U32
    boot_ram: U64
    dimms: Array[SavedRange]
    ranges: Array[SavedRange]
