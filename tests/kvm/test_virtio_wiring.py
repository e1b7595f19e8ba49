"""Doorbells and MSI-X sources on a real KVM: no exit to ring, no event lost by a mask."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.kvm.bare import ASK, CODE, BareMachine, Machines
from vmm.kvm_cffi import Loop
from vmm.machine.doorbells import Doorbells
from vmm.machine.interrupts import IOAPIC_PINS, Interrupts
from vmm.machine.msi import MsixSources
from vmm.pci.msix import Message, VectorChanged

pytestmark = pytest.mark.kvm

BAR = 0xC000_0000
ELSEWHERE = 0xD000_0000
NOTIFY = 0x6000
SAY = f"mov ${ASK}, %dx; out %al, %dx"
VECTOR = 0x41
HANDLER = 0x800
MESSAGE = Message(0xFEE0_0000, VECTOR)

RINGING = f"""
again:
    movw $1, {BAR + NOTIFY + 4:#x}
    movl $1, {BAR + NOTIFY:#x}
    mov $1, %al
    {SAY}
    jmp again
"""

LISTENING = f"""
    movl $0x1ff, 0xfee000f0
    sti
    mov $1, %al
    {SAY}
idle:
    hlt
    jmp idle
    .org {HANDLER}
    mov $2, %al
    {SAY}
    movl $0, 0xfee000b0
    add $12, %esp
    sti
    jmp idle
"""
"""The handler drops its frame: where KVM emulates protected mode it has no IRET."""


def rung(fd: int) -> int:
    """How often a doorbell was rung since this was asked last."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


async def test_doorbell_of_any_width_rings_without_an_exit_and_follows_its_bar(
    machines: Machines,
) -> None:
    machine = machines.make(RINGING)
    loop = Loop()
    machine.router.map_mmio(BAR, 0x8000, loop)
    with Doorbells(machine.vm, 2, offset=NOTIFY, stride=4) as bells:
        bells.move(BAR)
        assert (await machine.start().next_exit()).address == ASK
        assert [rung(fd) for fd in bells.fds] == [1, 1]

        bells.move(ELSEWHERE)
        machine.threads[0].answer(0)
        exits = [await machine.driver.asked() for _ in range(3)]

        assert [each.address for each in exits] == [BAR + NOTIFY + 4, BAR + NOTIFY, ASK]
        assert [rung(fd) for fd in bells.fds] == [0, 0]


@pytest.fixture
def listening(machines: Machines) -> BareMachine:
    machine = machines.make(LISTENING)
    machine.set_gate(VECTOR, CODE + HANDLER)
    return machine


@pytest.fixture
def interrupts(listening: BareMachine) -> Iterator[Interrupts]:
    with Interrupts(listening.vm) as made:
        yield made


async def test_source_interrupts_the_guest_through_its_vector(
    listening: BareMachine, interrupts: Interrupts
) -> None:
    with MsixSources(interrupts, 2) as sources:
        sources.lead(0, 3)
        sources.lead(1, 3)
        sources.apply([VectorChanged(3, MESSAGE)])
        await listening.start().asked()

        for source in (0, 1, 0):
            sources.signal(source)
            assert (await listening.driver.asked()).value == 2


async def test_event_of_a_masked_vector_interrupts_once_when_it_is_unmasked(
    listening: BareMachine, interrupts: Interrupts
) -> None:
    with MsixSources(interrupts, 1) as sources:
        sources.lead(0, 0)
        sources.apply([VectorChanged(0, MESSAGE)])
        sources.apply([VectorChanged(0, None)])
        await listening.start().asked()
        sources.signal(0)
        assert sources.is_pending(0)

        sources.apply([VectorChanged(0, MESSAGE)])
        assert (await listening.driver.asked()).value == 2

        sources.apply([VectorChanged(0, None)])
        assert not sources.is_pending(0)
        sources.apply([VectorChanged(0, MESSAGE)])
        sources.signal(0)
        assert (await listening.driver.asked()).value == 2


async def test_vector_that_gets_another_message_uses_it_at_once(
    listening: BareMachine, interrupts: Interrupts
) -> None:
    with MsixSources(interrupts, 1) as sources:
        sources.lead(0, 0)
        sources.apply([VectorChanged(0, Message(0xFEE0_0000, 0x99))])
        sources.apply([VectorChanged(0, MESSAGE)])
        await listening.start().asked()

        sources.signal(0)

        assert (await listening.driver.asked()).value == 2


async def test_message_to_an_extended_destination_with_reserved_bits_is_taken(
    listening: BareMachine, interrupts: Interrupts
) -> None:
    """No message that a guest can write may make KVM refuse the routing table."""
    with MsixSources(interrupts, 4) as sources:
        changes = [
            VectorChanged(0, Message(0xFEEF_FFFC, 0xFFFF_FFFF)),
            VectorChanged(1, Message(0xFFFF_FFFF_FEE0_0000, 0x41)),
            VectorChanged(2, Message(0, 0)),
            VectorChanged(3, Message(0xFEE0_0FE0, 0)),
        ]
        for source, change in enumerate(changes):
            sources.lead(source, change.vector)
            sources.apply([change])
        assert interrupts.allocate_gsi() == IOAPIC_PINS + 2
