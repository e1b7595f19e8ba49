"""Register files between KVM's structures and Python values; both sides use KVM's names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.kvm_cffi._kvm import ffi
from vmm.kvm_cffi.structs import DescriptorTable, Fpu, Regs, Segment, Sregs

if TYPE_CHECKING:
    from vmm.kvm_cffi._kvm import CData

REGS = Regs.__slots__
SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
TABLES = ("gdt", "idt")
CONTROLS = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")
FPU_WORDS = ("fcw", "fsw", "ftwx", "last_opcode", "last_ip", "last_dp", "mxcsr")


def pack_regs(regs: Regs) -> CData:
    """Make a ``struct kvm_regs``."""
    to = ffi.new("struct kvm_regs *")
    for name in REGS:
        setattr(to, name, getattr(regs, name))
    return to


def unpack_regs(regs: CData) -> Regs:
    """Read a ``struct kvm_regs``."""
    return Regs(*(getattr(regs, name) for name in REGS))


def pack_sregs(sregs: Sregs) -> CData:
    """Make a ``struct kvm_sregs``."""
    to = ffi.new("struct kvm_sregs *")
    for name in SEGMENTS:
        segment: Segment = getattr(sregs, name)
        for part, value in zip(Segment._fields, segment, strict=True):
            setattr(getattr(to, name), part, value)
    for name in TABLES:
        getattr(to, name).base, getattr(to, name).limit = getattr(sregs, name)
    for name in CONTROLS:
        setattr(to, name, getattr(sregs, name))
    for at, word in enumerate(sregs.interrupt_bitmap):
        to.interrupt_bitmap[at] = word
    return to


def unpack_sregs(sregs: CData) -> Sregs:
    """Read a ``struct kvm_sregs``."""
    to = Sregs(interrupt_bitmap=tuple(sregs.interrupt_bitmap))
    for name in SEGMENTS:
        segment = getattr(sregs, name)
        setattr(to, name, Segment(*(getattr(segment, part) for part in Segment._fields)))
    for name in TABLES:
        table = getattr(sregs, name)
        setattr(to, name, DescriptorTable(table.base, table.limit))
    for name in CONTROLS:
        setattr(to, name, getattr(sregs, name))
    return to


def pack_fpu(fpu: Fpu) -> CData:
    """Make a ``struct kvm_fpu``."""
    to = ffi.new("struct kvm_fpu *")
    for name in FPU_WORDS:
        setattr(to, name, getattr(fpu, name))
    ffi.buffer(to.fpr)[:] = fpu.fpr
    ffi.buffer(to.xmm)[:] = fpu.xmm
    return to


def unpack_fpu(fpu: CData) -> Fpu:
    """Read a ``struct kvm_fpu``."""
    words = {name: getattr(fpu, name) for name in FPU_WORDS}
    return Fpu(fpr=bytes(ffi.buffer(fpu.fpr)), xmm=bytes(ffi.buffer(fpu.xmm)), **words)
