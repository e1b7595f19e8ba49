"""Rung 0: what KVM serves by itself, memory slots and event descriptors."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import pytest

from tests.kvm.bare import ASK, Machines
from vmm.kvm_cffi import ExitKind, Loop, address_of

pytestmark = pytest.mark.kvm

PAGE = 4096
REGISTERS = 0x2000_0000
RESULT = 0x4000
SAY_DONE = f"mov ${ASK}, %dx; out %al, %dx; hlt"


@pytest.fixture
def page() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, PAGE) as mapped:
        yield mapped


@pytest.fixture
def event() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


async def test_read_only_slot_reads_without_exit_and_writes_with_one(
    machines: Machines, page: mmap.mmap
) -> None:
    machine = machines.make(
        f"""
        mov {REGISTERS + 8}, %eax
        mov %eax, {RESULT}
        movl $0x55, {REGISTERS + 8}
        mov {REGISTERS + 8}, %eax
        mov %eax, {RESULT + 4}
        {SAY_DONE}
        """
    )
    page[8:12] = bytes.fromhex("efbeadde")
    machine.vm.set_user_memory_region(1, REGISTERS, PAGE, address_of(page), read_only=True)
    machine.router.map_mmio(REGISTERS, PAGE, Loop())

    written = await machine.start().asked()
    await machine.driver.asked()

    assert (written.kind, written.address, written.value) == (ExitKind.MMIO, REGISTERS + 8, 0x55)
    assert written.is_write
    assert machine.word(RESULT) == machine.word(RESULT + 4) == 0xDEAD_BEEF
    assert machine.threads[0].exit_counts.to_loop == 2


async def test_dirty_log_shows_written_pages_once(machines: Machines, page: mmap.mmap) -> None:
    with mmap.mmap(-1, 70 * PAGE) as many:
        machine = machines.make(
            f"""
            movb $1, {REGISTERS + 3 * PAGE}
            movb $1, {REGISTERS + 65 * PAGE}
            {SAY_DONE}
            """
        )
        machine.vm.set_user_memory_region(1, REGISTERS, len(many), address_of(many), log_dirty=True)
        await machine.start().asked()

        first = machine.vm.get_dirty_log(1, len(many))
        second = machine.vm.get_dirty_log(1, len(many))

        assert int.from_bytes(first, "little") == 1 << 3 | 1 << 65
        assert len(first) == 16
        assert not any(second)
        machine.close()


@pytest.mark.parametrize("pio", [False, True], ids=["mmio", "pio"])
async def test_ioeventfd_write_signals_without_exit(
    machines: Machines, event: int, *, pio: bool
) -> None:
    address = 0x510 if pio else REGISTERS
    write = f"mov ${address}, %dx; outw %ax, %dx" if pio else f"movw %ax, {address}"
    machine = machines.make(f"{write}; {write}; {SAY_DONE}")
    machine.vm.ioeventfd(event, address, 2, pio=pio)

    await machine.start().asked()

    assert os.eventfd_read(event) == 2
    assert machine.threads[0].exit_counts.unclaimed == 0


async def test_ioeventfd_with_datamatch_lets_other_values_through(
    machines: Machines, event: int
) -> None:
    machine = machines.make(
        f"movw $7, {REGISTERS}; movw $8, {REGISTERS}; movw $7, {REGISTERS}; {SAY_DONE}"
    )
    machine.vm.ioeventfd(event, REGISTERS, 2, datamatch=7)
    machine.router.map_mmio(REGISTERS, 2, Loop())

    exit_ = await machine.start().asked()
    await machine.driver.asked()

    assert (exit_.kind, exit_.value) == (ExitKind.MMIO, 8)
    assert os.eventfd_read(event) == 2


async def test_ioeventfd_deassigned_exits_again(machines: Machines, event: int) -> None:
    machine = machines.make(f"movw %ax, {REGISTERS}; {SAY_DONE}")
    machine.vm.ioeventfd(event, REGISTERS, 2)
    machine.vm.ioeventfd(event, REGISTERS, 2, assign=False)

    await machine.start().asked()

    assert machine.threads[0].exit_counts.unclaimed == 1
