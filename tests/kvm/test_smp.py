"""A second vCPU, started by the first with INIT and SIPI."""

from __future__ import annotations

import os

import pytest
import trio

from tests.kvm.bare import ASK, Machines
from vmm.kvm_cffi import ByteRing, ExitKind, ThreadState
from vmm.kvm_cffi.constants import KVM_MP_STATE_UNINITIALIZED

pytestmark = pytest.mark.kvm

AP_PAGE = 0x3000
REAL_MODE_SAY_AND_SPIN = bytes.fromhex("ba0001 b007 ee ebfe".replace(" ", ""))
"""mov $0x100, %dx; mov $7, %al; out %al, %dx; jmp ."""

START_SECOND = f"""
    movl $0x1ff, 0xfee000f0
    movl $0x01000000, 0xfee00310
    movl $0x00004500, 0xfee00300
    movl $0x01000000, 0xfee00310
    movl ${0x4600 | AP_PAGE >> 12}, 0xfee00300
    mov ${ASK}, %dx
    mov $1, %al
    out %al, %dx
    1: jmp 1b
"""


async def test_sipi_starts_the_second_vcpu(machines: Machines) -> None:
    machine = machines.make(START_SECOND, vcpus=2)
    machine.write(AP_PAGE, REAL_MODE_SAY_AND_SPIN)

    machine.start()
    first = await machine.drivers[0].asked()
    second = await machine.drivers[1].asked()

    assert (first.value, second.value) == (1, 7)
    assert second.kind is ExitKind.PIO


async def test_waiting_second_vcpu_can_be_paused_and_ended(machines: Machines) -> None:
    machine = machines.make("1: jmp 1b", vcpus=2)
    waiting = machine.drivers[1]
    machine.start()
    await waiting.reach(ThreadState.RUNNING)

    waiting.thread.request_pause()
    await waiting.reach(ThreadState.PAUSED)
    state = machine.vcpus[1].get_mp_state()
    waiting.thread.request_exit()
    await waiting.reach(ThreadState.EXITED)

    assert state == KVM_MP_STATE_UNINITIALIZED


async def test_two_vcpus_share_a_byte_ring_without_losing_a_byte(machines: Machines) -> None:
    count = 2000
    machine = machines.make(
        START_SECOND.replace(
            f"mov ${ASK}, %dx",
            f"mov $0xe9, %dx; mov ${count}, %ecx; 2: out %al, %dx; loop 2b; mov ${ASK}, %dx",
        ),
        vcpus=2,
    )
    # mov $0xe9, %dx; mov $count, %cx; 1: out %al, %dx; loop 1b; mov $0x100, %dx; out; jmp .
    second = "bae900 b9" + count.to_bytes(2, "little").hex() + "ee e2fd ba0001 ee ebfe"
    machine.write(AP_PAGE, bytes.fromhex(second.replace(" ", "")))

    with ByteRing(0) as ring:
        machine.router.map_pio(0xE9, 1, ring)
        machine.start()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(machine.drivers[0].asked)
            nursery.start_soon(machine.drivers[1].asked)

        assert os.eventfd_read(ring.fd) >= 1
        assert len(ring.drain()) == 2 * count
        machine.close()
