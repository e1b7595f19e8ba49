"""The registers of a vCPU as gdb numbers and describes them.

Source: Debugging with GDB, "Target Descriptions", "i386 Features".
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from vmm.kvm_cffi.structs import Fpu, Regs, Sregs

GENERAL: Final = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
    *(f"r{number}" for number in range(8, 16)),
    "rip",
)
FLAGS: Final = "eflags"
SEGMENTS: Final = ("cs", "ss", "ds", "es", "fs", "gs")
FPU_WORDS: Final = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
BASES: Final = ("fs_base", "gs_base")
CONTROLS: Final = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")
ST: Final = tuple(f"st{number}" for number in range(8))
XMM: Final = tuple(f"xmm{number}" for number in range(16))


class Register(NamedTuple):
    """A register: its name, its size in bytes, and its type in the description."""

    name: str
    size: int
    type: str


def _core() -> list[Register]:
    pointers = {"rbp": "data_ptr", "rsp": "data_ptr", "rip": "code_ptr"}
    return [
        *(Register(name, 8, pointers.get(name, "int64")) for name in GENERAL),
        Register(FLAGS, 4, "int32"),
        *(Register(name, 4, "int32") for name in SEGMENTS),
        *(Register(name, 10, "i387_ext") for name in ST),
        *(Register(name, 4, "int32") for name in FPU_WORDS),
    ]


FEATURES: Final[dict[str, list[Register]]] = {
    "org.gnu.gdb.i386.core": _core(),
    "org.gnu.gdb.i386.sse": [
        *(Register(name, 16, "vec128") for name in XMM),
        Register("mxcsr", 4, "int32"),
    ],
    "org.gnu.gdb.i386.segments": [Register(name, 8, "int64") for name in BASES],
    "trio-vmm.system": [Register(name, 8, "int64") for name in CONTROLS],
}
REGISTERS: Final = [register for feature in FEATURES.values() for register in feature]

_VECTOR = (
    '<vector id="v16i8" type="int8" count="16"/><vector id="v4i32" type="int32" count="4"/>'
    '<vector id="v2i64" type="int64" count="2"/><union id="vec128">'
    '<field name="v16_int8" type="v16i8"/><field name="v4_int32" type="v4i32"/>'
    '<field name="v2_int64" type="v2i64"/><field name="uint128" type="uint128"/></union>'
)


def description() -> str:
    """Write the target description."""
    features = "".join(
        f'<feature name="{name}">{_VECTOR if name.endswith("sse") else ""}'
        + "".join(
            f'<reg name="{each.name}" bitsize="{8 * each.size}" type="{each.type}"/>'
            for each in registers
        )
        + "</feature>"
        for name, registers in FEATURES.items()
    )
    return (
        '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd">'
        f"<target><architecture>i386:x86-64</architecture>{features}</target>"
    )


class Values(NamedTuple):
    """The three register files of a vCPU."""

    regs: Regs
    sregs: Sregs
    fpu: Fpu


def read(values: Values, register: Register) -> bytes:
    """Give a register's bytes, lowest first."""
    regs, sregs, fpu = values
    name = register.name
    if name in ST:
        at = 16 * ST.index(name)
        return fpu.fpr[at : at + 10]
    if name in XMM:
        at = 16 * XMM.index(name)
        return fpu.xmm[at : at + 16]
    if name in GENERAL:
        value = int(getattr(regs, name))
    elif name == FLAGS:
        value = regs.rflags
    elif name in SEGMENTS:
        value = getattr(sregs, name).selector
    elif name in BASES:
        value = getattr(sregs, name[:2]).base
    elif name in CONTROLS:
        value = getattr(sregs, name)
    else:
        value = _fpu_word(fpu, name)
    return (value & (1 << 8 * register.size) - 1).to_bytes(register.size, "little")


def write(values: Values, register: Register, data: bytes) -> Values | None:
    """Give the register files with a register changed; None for one that cannot be.

    What can be is what a debugger changes: the general registers, the flags, the vectors.
    """
    regs, sregs, fpu = values
    name, value = register.name, int.from_bytes(data, "little")
    if name in GENERAL:
        return Values(replace(regs, **{name: value}), sregs, fpu)
    if name == FLAGS:
        return Values(replace(regs, rflags=value), sregs, fpu)
    if name in XMM:
        at = 16 * XMM.index(name)
        return Values(regs, sregs, replace(fpu, xmm=fpu.xmm[:at] + data + fpu.xmm[at + 16 :]))
    if name in BASES:
        segment = getattr(sregs, name[:2])._replace(base=value)
        return Values(regs, replace(sregs, **{name[:2]: segment}), fpu)
    return None


def _fpu_word(fpu: Fpu, name: str) -> int:
    return {
        "fctrl": fpu.fcw,
        "fstat": fpu.fsw,
        "ftag": _full_tags(fpu.ftwx),
        "fioff": fpu.last_ip,
        "fooff": fpu.last_dp,
        "fop": fpu.last_opcode,
        "mxcsr": fpu.mxcsr,
    }.get(name, 0)


def _full_tags(short: int) -> int:
    """Two bits a register of the short tag word's one: empty, or not."""
    return sum((0 if short >> number & 1 else 3) << 2 * number for number in range(8))
