"""Bare machines: a few instructions, 2 MiB of memory, no firmware, and a trio task as the VMM.

A guest starts at 0x1000 in flat 32-bit protected mode with paging off, its stack below 0x8000. Its
code is assembled by gcc's assembler when the test runs.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from types import TracebackType

import trio

from tests.kvm.guests.assembler import assemble
from vmm.kvm_cffi import (
    DescriptorTable,
    Exit,
    ExitRouter,
    Kvm,
    Loop,
    Regs,
    Segment,
    ThreadState,
    Vcpu,
    VcpuThread,
    address_of,
)
from vmm.kvm_cffi.constants import KVM_CAP_SPLIT_IRQCHIP

MEMORY_BYTES = 2 << 20
CODE = 0x1000
STACK = 0x8000
GDT = 0x500
IDT = 0x800
DEADLINE_S = 10
"""Emulated guests run about a million instructions a second; nothing here takes a tenth of this."""

ASK = 0x100
"""A port whose accesses go to the loop in every bare machine: the guest says "I am here"."""

FLAT_CODE = Segment(limit=0xFFFF_FFFF, selector=8, type=11, present=1, db=1, s=1, g=1)
FLAT_DATA = Segment(limit=0xFFFF_FFFF, selector=16, type=3, present=1, db=1, s=1, g=1)
DESCRIPTORS = struct.pack("<3Q", 0, 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)


class BareMachine:
    """A VM with split irqchip, its memory, its router, and its vCPUs' threads."""

    def __init__(self, kvm: Kvm, source: str, *, vcpus: int, split_irqchip: bool) -> None:
        self._open = contextlib.ExitStack()
        self.vm = self._open.enter_context(kvm.create_vm())
        if split_irqchip:
            self.vm.enable_cap(KVM_CAP_SPLIT_IRQCHIP, 24)
        self.memory = mmap.mmap(-1, MEMORY_BYTES)
        self.vm.set_user_memory_region(0, 0, MEMORY_BYTES, address_of(self.memory))
        self.write(GDT, DESCRIPTORS)
        self.write(CODE, assemble(source, CODE))
        self.router = ExitRouter()
        self.router.map_pio(ASK, 1, Loop())
        self.vcpus = [self._open.enter_context(self.vm.create_vcpu(i)) for i in range(vcpus)]
        enter_protected_mode(self.vcpus[0])
        self.threads = [
            self._open.enter_context(VcpuThread(vcpu, self.router, name=f"vcpu{vcpu.index}"))
            for vcpu in self.vcpus
        ]
        self.drivers = [Driver(thread) for thread in self.threads]

    def close(self) -> None:
        """End the threads, then the vCPUs, then the VM, then the memory."""
        self._open.close()
        self.memory.close()

    @property
    def driver(self) -> Driver:
        """The first vCPU's driver."""
        return self.drivers[0]

    def write(self, gpa: int, data: bytes) -> None:
        """Write guest memory."""
        self.memory[gpa : gpa + len(data)] = data

    def word(self, gpa: int) -> int:
        """Read four bytes of guest memory as a number."""
        return int.from_bytes(self.memory[gpa : gpa + 4], "little")

    def set_gate(self, vector: int, handler: int) -> None:
        """Point an interrupt vector at a handler."""
        low, high = handler & 0xFFFF, handler >> 16
        self.write(IDT + 8 * vector, struct.pack("<HHHH", low, FLAT_CODE.selector, 0x8E00, high))

    def start(self) -> Driver:
        """Start every thread; return the first vCPU's driver."""
        for thread in self.threads:
            thread.start()
        return self.driver


def enter_protected_mode(vcpu: Vcpu) -> None:
    """Put a vCPU at CODE in flat 32-bit protected mode."""
    sregs = vcpu.get_sregs()
    sregs.cs = FLAT_CODE
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = FLAT_DATA
    sregs.gdt = DescriptorTable(GDT, len(DESCRIPTORS) - 1)
    sregs.idt = DescriptorTable(IDT, 256 * 8 - 1)
    sregs.cr0 |= 1
    vcpu.set_sregs(sregs)
    vcpu.set_regs(Regs(rip=CODE, rsp=STACK))


class Driver:
    """Serves one thread's descriptor as an exit task does; a test asks it for what comes next."""

    def __init__(self, thread: VcpuThread) -> None:
        self.thread = thread

    async def next_exit(self) -> Exit:
        """Wait for the next exit."""
        with trio.fail_after(DEADLINE_S):
            while (exit_ := self.thread.take_exit()) is None:
                await self._wake()
        return exit_

    async def asked(self, answer: int = 0) -> Exit:
        """Wait for the next exit and answer it."""
        exit_ = await self.next_exit()
        self.thread.answer(answer)
        return exit_

    async def reach(self, state: ThreadState) -> None:
        """Wait until the thread is in a state."""
        with trio.fail_after(DEADLINE_S):
            while self.thread.state is not state:
                await self._wake()

    async def _wake(self) -> None:
        await trio.lowlevel.wait_readable(self.thread.event_fd)
        os.eventfd_read(self.thread.event_fd)


class Machines:
    """Makes bare machines; leaving it takes them down."""

    def __init__(self, kvm: Kvm) -> None:
        self._kvm = kvm
        self._made = contextlib.ExitStack()

    def __enter__(self) -> Machines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._made.close()

    def make(self, source: str, *, vcpus: int = 1, split_irqchip: bool = True) -> BareMachine:
        """Make a machine around a guest."""
        machine = BareMachine(self._kvm, source, vcpus=vcpus, split_irqchip=split_irqchip)
        self._made.callback(machine.close)
        return machine
