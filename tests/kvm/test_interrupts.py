"""Interrupts and NMIs into a guest, and the UART's own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.kvm.bare import ASK, CODE, BareMachine, Machines
from vmm.kvm_cffi import MsiRoute, Uart

pytestmark = pytest.mark.kvm

VECTOR = 0x41
NMI = 2
MSI_ADDRESS = 0xFEE0_0000
HANDLER_OFFSET = 0x800
SAY = f"mov ${ASK}, %dx; out %al, %dx"

LISTENING = f"""
    movl $0x1ff, 0xfee000f0
    sti
    mov $1, %al
    {SAY}
    idle: hlt
    jmp idle
"""
END_OF_HANDLER = """
    movl $0, 0xfee000b0
    add $12, %esp
    sti
    jmp idle
"""
"""It drops its frame: where KVM emulates protected mode it has no IRET."""

HANDLER = f"""
    .org {HANDLER_OFFSET}
    mov $2, %al
    {SAY}
    {END_OF_HANDLER}
"""
SPINNING = f"mov $1, %al; {SAY}; idle: jmp idle; {HANDLER}"


def make(machines: Machines, source: str, vector: int) -> BareMachine:
    machine = machines.make(source)
    machine.set_gate(vector, CODE + HANDLER_OFFSET)
    return machine


@pytest.fixture
def event() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


async def test_irqfd_with_an_msi_route_wakes_a_halted_guest(machines: Machines, event: int) -> None:
    machine = make(machines, LISTENING + HANDLER, VECTOR)
    machine.vm.set_gsi_routing([MsiRoute(4, MSI_ADDRESS, VECTOR)])
    machine.vm.irqfd(event, 4)
    await machine.start().asked()

    for _ in range(3):
        os.eventfd_write(event, 1)
        assert (await machine.driver.asked()).value == 2


async def test_irqfd_written_while_deassigned_is_delivered_when_assigned(
    machines: Machines, event: int
) -> None:
    machine = make(machines, LISTENING + HANDLER, VECTOR)
    machine.vm.set_gsi_routing([MsiRoute(4, MSI_ADDRESS, VECTOR)])
    machine.vm.irqfd(event, 4)
    machine.vm.irqfd(event, 4, assign=False)
    await machine.start().asked()

    os.eventfd_write(event, 1)
    machine.vm.irqfd(event, 4)

    assert (await machine.driver.asked()).value == 2


async def test_signal_msi_reaches_the_guest(machines: Machines) -> None:
    machine = make(machines, LISTENING + HANDLER, VECTOR)
    await machine.start().asked()

    assert machine.vm.signal_msi(MSI_ADDRESS, VECTOR)

    assert (await machine.driver.asked()).value == 2


@pytest.mark.parametrize("source", [SPINNING, LISTENING + HANDLER], ids=["spinning", "halted"])
async def test_nmi_reaches_a_running_guest(machines: Machines, source: str) -> None:
    machine = make(machines, source, NMI)
    await machine.start().asked()

    machine.threads[0].inject_nmi()

    assert (await machine.driver.asked()).value == 2


async def test_nmi_while_paused_arrives_on_resume(machines: Machines) -> None:
    machine = make(machines, SPINNING, NMI)
    machine.threads[0].request_pause()
    machine.start()

    machine.threads[0].inject_nmi()
    machine.threads[0].resume()

    assert (await machine.driver.asked()).value == 2


async def test_uart_input_interrupts_and_is_read_by_the_guest(
    machines: Machines, event: int
) -> None:
    handler = f"""
        .org {HANDLER_OFFSET}
        mov $0x3f8, %dx
        in %dx, %al
        {SAY}
        {END_OF_HANDLER}
    """
    enable_input = "mov $0x3f9, %dx; mov $1, %al; out %al, %dx;"
    machine = make(machines, enable_input + LISTENING + handler, VECTOR)
    machine.vm.set_gsi_routing([MsiRoute(4, MSI_ADDRESS, VECTOR)])
    machine.vm.irqfd(event, 4)
    with Uart(event) as uart:
        machine.router.map_pio(0x3F8, 8, uart)
        await machine.start().asked()

        assert uart.receive(b"k") == 1

        assert (await machine.driver.asked()).value == ord("k")
        machine.close()
