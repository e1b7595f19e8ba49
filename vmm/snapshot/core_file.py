"""The layout of a core file of a VM: an ELF core with a note for each vCPU, then all RAM.

Two notes a vCPU: the one that debuggers read, NT_PRSTATUS as Linux writes it for a process, and
one named QEMU with what only a processor has, which ``crash`` knows. Segments carry the physical
address as the virtual one too, so that a debugger finds memory by it.

Source: System V ABI, chapter 5; Linux include/uapi/linux/elfcore.h; QEMU's dump format.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from vmm.kvm_cffi.structs import DescriptorTable, Regs, Segment, Sregs

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
ET_CORE, EM_X86_64, EV_CURRENT = 4, 62, 1
PT_LOAD, PT_NOTE = 1, 4
NT_PRSTATUS = 1
MOST_SEGMENTS = 0xFFFE
"""One more would need a section header to count them."""

_IDENT = b"\x7fELF" + bytes((2, 1, EV_CURRENT)) + bytes(9)
# signal, pending and held signals; pid; times of no interest; registers; whether FPU notes follow
_PRSTATUS = struct.Struct("<12xH2x16xi76x27QI4x")
_CPU_STATE = struct.Struct("<II18Q")
_CPU_SEGMENT = struct.Struct("<IIIIQ")
_CPU_REST = struct.Struct("<5QQ")
_CPU_STATE_BYTES = _CPU_STATE.size + 10 * _CPU_SEGMENT.size + _CPU_REST.size
_GENERAL = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags"),
)


class VcpuRegisters(NamedTuple):
    """What a core file has of a vCPU."""

    index: int  # type: ignore[assignment]  # the vCPU's number, over tuple.index
    regs: Regs
    sregs: Sregs
    kernel_gs_base: int


class Piece(NamedTuple):
    """A stretch of RAM: guest address and size in bytes."""

    gpa: int
    size: int


def headers(vcpus: Sequence[VcpuRegisters], ram: Sequence[Piece]) -> bytes:
    """Build all that stands before the memory; the pieces of RAM follow it without gaps."""
    notes = b"".join(_note(b"CORE", NT_PRSTATUS, _prstatus(vcpu)) for vcpu in vcpus)
    notes += b"".join(_note(b"QEMU", 0, _cpu_state(vcpu)) for vcpu in vcpus)
    count = 1 + len(ram)
    begin = EHDR.size + PHDR.size * count
    ehdr = EHDR.pack(
        _IDENT, ET_CORE, EM_X86_64, EV_CURRENT, 0, EHDR.size, 0, 0, EHDR.size, PHDR.size, count,
        0, 0, 0,
    )  # fmt: skip
    phdrs = PHDR.pack(PT_NOTE, 0, begin, 0, 0, len(notes), len(notes), 0)
    offset = begin + len(notes)
    for piece in ram:
        phdrs += PHDR.pack(PT_LOAD, 0, offset, piece.gpa, piece.gpa, piece.size, piece.size, 0)
        offset += piece.size
    return ehdr + phdrs + notes


def _note(name: bytes, kind: int, description: bytes) -> bytes:
    header = struct.pack("<III", len(name) + 1, len(description), kind)
    return header + name.ljust(8, b"\0") + description + bytes(-len(description) % 4)


def _prstatus(vcpu: VcpuRegisters) -> bytes:
    r, s = vcpu.regs, vcpu.sregs
    no_system_call = (1 << 64) - 1
    return _PRSTATUS.pack(
        0, vcpu.index,
        r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9, r.r8, r.rax, r.rcx, r.rdx,
        r.rsi, r.rdi, no_system_call, r.rip, s.cs.selector, r.rflags, r.rsp, s.ss.selector,
        s.fs.base, s.gs.base, s.ds.selector, s.es.selector, s.fs.selector, s.gs.selector,
        0,
    )  # fmt: skip


def _cpu_state(vcpu: VcpuRegisters) -> bytes:
    regs, sregs = vcpu.regs, vcpu.sregs
    segments = (sregs.cs, sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss, sregs.ldt, sregs.tr)
    return b"".join(
        (
            _CPU_STATE.pack(1, _CPU_STATE_BYTES, *(getattr(regs, name) for name in _GENERAL)),
            *map(_segment, segments),
            *map(_table, (sregs.gdt, sregs.idt)),
            # There is no CR1.
            _CPU_REST.pack(sregs.cr0, 0, sregs.cr2, sregs.cr3, sregs.cr4, vcpu.kernel_gs_base),
        )
    )


def _segment(segment: Segment) -> bytes:
    """Write a segment register; its flags are the upper half of a descriptor."""
    flags = segment.type << 8 | segment.s << 12 | segment.dpl << 13 | segment.present << 15
    flags |= segment.avl << 20 | segment.l << 21 | segment.db << 22 | segment.g << 23
    return _CPU_SEGMENT.pack(segment.selector, segment.limit, flags, 0, segment.base)


def _table(table: DescriptorTable) -> bytes:
    return _CPU_SEGMENT.pack(0, table.limit, 0, 0, table.base)
