"""The router and the control word changed hundreds of times under guests that never rest."""

from __future__ import annotations

import pytest
import trio

from tests.kvm.bare import ASK, BareMachine, Driver, Machines
from vmm.kvm_cffi import AllOnes, Constant, ExitKind, Loop, ThreadState

pytestmark = pytest.mark.kvm

HOLE = 0x1000_0000
PORT = 0x300
BAD = 0x4000
ROUNDS = 200

READ_FOR_EVER = f"""
    1: mov {HOLE}, %eax
    cmp $-1, %eax
    je 2f
    cmp $0x11111111, %eax
    je 2f
    cmp $0x22222222, %eax
    je 2f
    incl {BAD}
    2: mov ${PORT}, %dx
    in %dx, %eax
    cmp $-1, %eax
    je 1b
    cmp $0x33333333, %eax
    je 1b
    incl {BAD}
    jmp 1b
"""
ASK_FOR_EVER = f"mov ${ASK}, %dx; 1: in %dx, %al; cmp $0x5a, %al; je 1b; incl {BAD}; jmp 1b"


async def answer_for_ever(driver: Driver) -> None:
    while True:
        assert (await driver.asked(answer=0x5A)).kind is ExitKind.PIO


async def seen(machine: BareMachine, exits: int) -> None:
    """Wait until the first vCPU has made that many more exits."""
    target = sum(machine.threads[0].exit_counts[:3]) + exits
    with trio.fail_after(10):
        while sum(machine.threads[0].exit_counts[:3]) < target:
            await trio.lowlevel.checkpoint()


async def test_ranges_changed_under_a_running_guest_give_old_or_new_answers_only(
    machines: Machines,
) -> None:
    machine = machines.make(READ_FOR_EVER)
    router = machine.router
    machine.start()
    await seen(machine, 4)

    for _ in range(ROUNDS):
        for mechanism in (Constant(0x1111_1111), Constant(0x2222_2222), AllOnes()):
            router.map_mmio(HOLE, 8, mechanism)
            router.map_mmio(HOLE + 0x1000, 8, AllOnes())
            router.map_pio(PORT, 4, Constant(0x3333_3333))
            await trio.lowlevel.checkpoint()
            router.unmap_pio(PORT, 4)
            router.unmap_mmio(HOLE, 8)
            router.unmap_mmio(HOLE + 0x1000, 8)
    await seen(machine, 4)

    assert machine.word(BAD) == 0


async def test_pause_and_resume_among_exits_lose_nothing(machines: Machines) -> None:
    machine = machines.make(ASK_FOR_EVER)
    thread = machine.threads[0]
    machine.start()

    for _ in range(ROUNDS):
        await machine.driver.asked(answer=0x5A)
        exit_ = await machine.driver.next_exit()
        thread.request_pause()
        assert not exit_.is_write
        thread.answer(0x5A)
        await machine.driver.reach(ThreadState.PAUSED)
        thread.resume()

    assert machine.word(BAD) == 0


async def test_kicks_among_exits_lose_nothing(machines: Machines) -> None:
    machine = machines.make(ASK_FOR_EVER)
    thread = machine.threads[0]
    machine.start()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_for_ever, machine.driver)
        for _ in range(ROUNDS):
            thread.request_pause()
            thread.resume()
            await trio.lowlevel.checkpoint()
        await seen(machine, 50)
        nursery.cancel_scope.cancel()

    assert machine.word(BAD) == 0


async def test_exit_requested_at_any_moment_ends_the_thread(machines: Machines) -> None:
    for rounds in range(20):
        machine = machines.make(ASK_FOR_EVER)
        machine.router.map_mmio(HOLE, 8, Loop())
        machine.start()
        for _ in range(rounds):
            await machine.driver.asked(answer=0x5A)

        machine.threads[0].request_exit()

        await machine.driver.reach(ThreadState.EXITED)
        machine.close()
