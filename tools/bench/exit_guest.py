"""A vCPU that makes one kind of access again and again, for exits to be counted and timed.

Its program runs in real mode:

    out START, al;  then, ``times`` times, the access;  out END, al;  hlt

The access is unrolled, so that the loop around it weighs little even where a host's KVM emulates
every instruction.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from vmm.boot import layout
from vmm.kvm_cffi import Kvm, Regs, Vcpu, Vm, address_of
from vmm.kvm_cffi.constants import KVM_CAP_SPLIT_IRQCHIP

START_PORT = 0x10
END_PORT = 0x11

CODE = 0x1000
RAM_SIZE = 64 << 10
UNROLLED = 16
IOAPIC_PINS = 24


class Access(NamedTuple):
    """One instruction to repeat, and the registers it takes: a port or offset, a base, a value."""

    code: bytes
    port: int = 0
    value: int = 0
    data_base: int = 0


def read_port(port: int) -> Access:
    """``in al, dx``"""
    return Access(b"\xec", port)


def read_port_32(port: int) -> Access:
    """``in eax, dx``"""
    return Access(b"\x66\xed", port)


def write_port(port: int) -> Access:
    """``out dx, al``"""
    return Access(b"\xee", port)


def read_memory(gpa: int) -> Access:
    """``mov eax, [bx]``"""
    return Access(b"\x66\x8b\x07", data_base=gpa)


def program(access: Access) -> bytes:
    """The machine code around an access; ecx holds how many times ``UNROLLED`` it is made."""
    body = access.code * UNROLLED
    loop = body + b"\x66\x49"  # dec ecx
    back = -(len(loop) + 2)
    return b"".join(
        (
            bytes((0xE6, START_PORT)),
            loop,
            b"\x75" + back.to_bytes(1, "little", signed=True),  # jnz to the start of the body
            bytes((0xE6, END_PORT)),
            b"\xf4",
        )
    )


class ExitGuest(NamedTuple):
    """A VM with one vCPU at the start of its program, and no thread yet."""

    vm: Vm
    vcpu: Vcpu


@contextmanager
def open_guest(access: Access, times: int) -> Iterator[ExitGuest]:
    """Make the guest; ``times`` is a multiple of ``UNROLLED``. Raises: HostError."""
    with ExitStack() as stack:
        ram = stack.enter_context(mmap.mmap(-1, RAM_SIZE))
        code = program(access)
        ram[CODE : CODE + len(code)] = code
        vm = stack.enter_context(stack.enter_context(Kvm.open()).create_vm())
        vm.set_tss_addr(layout.KVM_TSS)
        vm.set_identity_map_addr(layout.KVM_IDENTITY_MAP)
        vm.enable_cap(KVM_CAP_SPLIT_IRQCHIP, IOAPIC_PINS)
        vm.set_user_memory_region(0, 0, RAM_SIZE, address_of(ram))
        vcpu = stack.enter_context(vm.create_vcpu(0))
        sregs = vcpu.get_sregs()
        sregs.cs = sregs.cs._replace(base=0, selector=0)
        sregs.ds = sregs.ds._replace(base=access.data_base, selector=access.data_base >> 4)
        vcpu.set_sregs(sregs)
        rounds, left = divmod(times, UNROLLED)
        assert left == 0, "the program makes accesses in whole rounds"
        vcpu.set_regs(Regs(rip=CODE, rcx=rounds, rdx=access.port, rax=access.value))
        yield ExitGuest(vm, vcpu)
