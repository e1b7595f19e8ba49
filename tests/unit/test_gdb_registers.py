"""The registers as a debugger numbers, reads and changes them."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from vmm.gdb.registers import REGISTERS, Register, Values, description, read, write
from vmm.kvm_cffi.structs import Fpu, Regs, Segment, Sregs

VALUES = Values(
    Regs(rax=1, rbx=2, rsp=0xFFFF_8000_0000_0000, r15=15, rip=0x10, rflags=0x202),
    Sregs(cs=Segment(selector=8), fs=Segment(base=0x77), cr0=0x8000_0001, efer=0x500),
    Fpu(fpr=bytes(range(128)), xmm=bytes(range(256)), ftwx=0b1),
)


def named(name: str) -> Register:
    return next(register for register in REGISTERS if register.name == name)


def test_description_lists_them_in_their_order_with_their_sizes() -> None:
    tree = ElementTree.fromstring(description())

    shown = [(each.get("name"), int(each.get("bitsize") or 0) // 8) for each in tree.iter("reg")]
    assert shown == [(register.name, register.size) for register in REGISTERS]
    assert [name for name, _ in shown[:17]][-1] == "rip"
    assert tree.findtext("architecture") == "i386:x86-64"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("rax", b"\1" + bytes(7)),
        ("rsp", b"\0\0\0\0\0\x80\xff\xff"),
        ("eflags", b"\2\2\0\0"),
        ("cs", b"\x08\0\0\0"),
        ("fs_base", b"\x77" + bytes(7)),
        ("cr0", b"\1\0\0\x80" + bytes(4)),
        ("st1", bytes(range(16, 26))),
        ("xmm15", bytes(range(240, 256))),
        ("ftag", (0xFFFC).to_bytes(4, "little")),
        ("mxcsr", (0x1F80).to_bytes(4, "little")),
        ("fiseg", bytes(4)),
    ],
)
def test_register_is_read_lowest_byte_first(name: str, data: bytes) -> None:
    assert read(VALUES, named(name)) == data


@pytest.mark.parametrize("name", ["rax", "rip", "r15", "eflags", "xmm3", "gs_base"])
def test_register_that_is_written_is_read_back_and_no_other_has_changed(name: str) -> None:
    register = named(name)
    data = bytes(range(1, register.size + 1))

    changed = write(VALUES, register, data)

    assert changed is not None
    for each in REGISTERS:
        assert read(changed, each) == (data if each.name == name else read(VALUES, each))


@pytest.mark.parametrize("name", ["cr3", "cs", "st0", "fctrl", "mxcsr"])
def test_register_that_no_debugger_changes_is_left_alone(name: str) -> None:
    register = named(name)

    assert write(VALUES, register, bytes(register.size)) is None
