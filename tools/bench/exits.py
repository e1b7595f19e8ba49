"""What a guest's access costs on each rung, beside a loop of KVM_RUN that looks at nothing.

Each access is timed twice over the same guest program: by the raw loop, and by the program's own
vCPU task in a running loop, with the mechanism under test on the access's address. Every access
that reaches Python is counted, so a rung that claims to spare Python is seen to.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import trio

from tools.bench.errors import BenchError
from tools.bench.exit_guest import (
    END_PORT,
    START_PORT,
    Access,
    ExitGuest,
    open_guest,
    read_memory,
    read_port,
    read_port_32,
    write_port,
)
from tools.bench.series import Claim, Contender, Relation, Result, Sample, race
from vmm.kvm_cffi import (
    ByteRing,
    ConfigAddress,
    Exit,
    ExitRouter,
    Loop,
    Shadow,
    Uart,
    VcpuThread,
    address_of,
)
from vmm.kvm_cffi.bench import raw_exit_loop
from vmm.machine.bus import Bus
from vmm.machine.vcpu import VcpuTask

TIMES = 8192
"""Accesses a round and kind."""
GUEST_PATIENCE_S = 30.0

RUNG_1_TARGET = 1.3
"""Times a raw exit."""
RUNG_2_TARGET_US = 60.0
"""More than a raw exit."""

FREE_PORT = 0x2000
SERIAL_PORT = 0x3F8
LINE_STATUS = 5
DEBUG_PORT = 0xE9
CONFIG_ADDRESS = 0xCF8
CONFIG_DATA = 0xCFC
SHADOW_SIZE = 1 << 20
SLOT = 0x20000
"""Where the read-only slot is: above the guest's RAM, within reach of real mode."""

Stage = Callable[[ExitStack, ExitGuest, ExitRouter, Loop], None]
"""Puts the mechanism under test in its place."""


class Kind(NamedTuple):
    """An access, what answers it, and how many of them Python may see."""

    name: str
    raw: str
    access: Access
    stage: Stage
    reaches_python: bool = False


def _nothing(stack: ExitStack, guest: ExitGuest, router: ExitRouter, loop: Loop) -> None:
    """The router answers what is not mapped by itself."""


def _doorbell(stack: ExitStack, guest: ExitGuest, router: ExitRouter, loop: Loop) -> None:
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    stack.callback(os.close, fd)
    guest.vm.ioeventfd(fd, FREE_PORT, 1, pio=True)


def _read_only_slot(stack: ExitStack, guest: ExitGuest, router: ExitRouter, loop: Loop) -> None:
    page = stack.enter_context(mmap.mmap(-1, mmap.PAGESIZE))
    guest.vm.set_user_memory_region(1, SLOT, mmap.PAGESIZE, address_of(page), read_only=True)


def _configuration(stack: ExitStack, guest: ExitGuest, router: ExitRouter, loop: Loop) -> None:
    shadow = stack.enter_context(mmap.mmap(-1, SHADOW_SIZE))
    ports = ConfigAddress(address_of(shadow), SHADOW_SIZE)
    ports.address = 1 << 31  # Register 0 of device 0, which is there on any machine.
    router.map_pio(CONFIG_ADDRESS, 8, ports)


def _registers(stack: ExitStack, guest: ExitGuest, router: ExitRouter, loop: Loop) -> None:
    router.map_mmio(SLOT, mmap.PAGESIZE, Shadow([(0, mmap.PAGESIZE)]))


def _serial(stack: ExitStack, guest: ExitGuest, router: ExitRouter, loop: Loop) -> None:
    interrupt = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    stack.callback(os.close, interrupt)
    router.map_pio(SERIAL_PORT, 8, stack.enter_context(Uart(interrupt)))


def _debug_console(stack: ExitStack, guest: ExitGuest, router: ExitRouter, loop: Loop) -> None:
    router.map_pio(DEBUG_PORT, 1, stack.enter_context(ByteRing(0xFF)))


def _handler(stack: ExitStack, guest: ExitGuest, router: ExitRouter, loop: Loop) -> None:
    router.map_pio(FREE_PORT, 1, loop)


RAW_READ = "raw exit, port read"
RAW_WRITE = "raw exit, port write"
RAW_READ_32 = "raw exit, port read of 4 bytes"
RAW_MEMORY = "raw exit, memory read"

KINDS = (
    Kind("rung 0, ioeventfd", RAW_WRITE, write_port(FREE_PORT), _doorbell),
    Kind("rung 0, read-only slot", RAW_MEMORY, read_memory(SLOT), _read_only_slot),
    Kind("rung 1, unclaimed port", RAW_READ, read_port(FREE_PORT), _nothing),
    Kind("rung 1, serial line status", RAW_READ, read_port(SERIAL_PORT + LINE_STATUS), _serial),
    Kind("rung 1, PCI configuration read", RAW_READ_32, read_port_32(CONFIG_DATA), _configuration),
    Kind("rung 1, virtio common configuration", RAW_MEMORY, read_memory(SLOT), _registers),
    Kind("rung 1, debug console", RAW_WRITE, write_port(DEBUG_PORT), _debug_console),
    Kind("rung 2, port handler", RAW_READ, read_port(FREE_PORT), _handler, reaches_python=True),
)

RAW_ACCESSES = {
    RAW_READ: read_port(FREE_PORT),
    RAW_WRITE: write_port(FREE_PORT),
    RAW_READ_32: read_port_32(FREE_PORT),
    RAW_MEMORY: read_memory(SLOT),
}


def measure(rounds: int) -> Result:
    """Time every kind of access in turns with raw exits."""
    contenders = [
        *(Contender(name, partial(_raw, name, access)) for name, access in RAW_ACCESSES.items()),
        *(Contender(kind.name, partial(_through_task, kind)) for kind in KINDS),
    ]
    claims = [_claim(kind) for kind in KINDS]
    return race("exits", "A guest's access, by rung", contenders, claims, rounds)


def _claim(kind: Kind) -> Claim:
    if kind.reaches_python:
        return Claim(kind.name, kind.raw, Relation.DIFFERENCE, RUNG_2_TARGET_US)
    is_rung_1 = kind.name.startswith("rung 1")
    return Claim(kind.name, kind.raw, target=RUNG_1_TARGET if is_rung_1 else None)


def _raw(name: str, access: Access) -> Iterator[Sample]:
    with open_guest(access, TIMES) as guest:
        raw_exit_loop(guest.vcpu, 1)  # The program's start.
        yield Sample(name, "µs", raw_exit_loop(guest.vcpu, TIMES) / TIMES / 1000)


def _through_task(kind: Kind) -> Iterator[Sample]:
    with open_guest(kind.access, TIMES) as guest, ExitStack() as stack:
        router, loop = ExitRouter(), Loop()
        router.map_pio(START_PORT, 1, loop)
        router.map_pio(END_PORT, 1, loop)
        kind.stage(stack, guest, router, loop)
        stopwatch = Stopwatch()
        trio.run(_run_to_end, guest, router, stopwatch)
        due = TIMES if kind.reaches_python else 0
        if stopwatch.others != due:
            raise BenchError(f"{kind.name}: {stopwatch.others} accesses reached Python, not {due}")
        yield Sample(kind.name, "µs", stopwatch.taken_ns / TIMES / 1000)


class Stopwatch:
    """The handler of all ports: takes the time between two of them, and counts the others."""

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.taken_ns = 0
        self.others = 0

    def read(self, offset: int, size: int) -> int:
        """Count."""
        self.others += 1
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Start, stop or count."""
        if offset == START_PORT:
            self.taken_ns = -time.perf_counter_ns()
        elif offset == END_PORT:
            self.taken_ns += time.perf_counter_ns()
            self.ended.set()
        else:
            self.others += 1


class _NoLifecycle:
    """Who hears of an exit that the guest's program does not make."""

    def end_of_interrupt(self, vector: int) -> None:
        raise BenchError(f"Vector {vector} ended, and no interrupt was sent")

    def lifecycle_exit(self, vcpu: int, exit_: Exit) -> None:
        raise BenchError(f"The guest ended with {exit_}")


async def _run_to_end(guest: ExitGuest, router: ExitRouter, stopwatch: Stopwatch) -> None:
    ports = Bus("port")
    ports.claim(0, 1 << 16, stopwatch)
    task = VcpuTask(
        VcpuThread(guest.vcpu, router, name="bench"),
        0,
        ports=ports,
        mmio=Bus("memory-mapped"),
        sink=_NoLifecycle(),
    )
    with trio.fail_after(GUEST_PATIENCE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(task.run)
            await stopwatch.ended.wait()
            nursery.cancel_scope.cancel()
