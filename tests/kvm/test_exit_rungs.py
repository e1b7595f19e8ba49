"""Each rung of the exit ladder, seen from the guest and from the loop."""

from __future__ import annotations

import os

import pytest

from tests.kvm.bare import ASK, Machines
from vmm.kvm_cffi import (
    AllOnes,
    ByteRing,
    ConfigAddress,
    Constant,
    ExitKind,
    Loop,
    PmTimer,
    Shadow,
    Uart,
    address_of,
)

pytestmark = pytest.mark.kvm

RESULT = 0x4000
HOLE = 0x1000_0000
"""Guest-physical, and not memory."""

SAY_DONE = f"mov ${ASK}, %dx; out %al, %dx; hlt"


async def test_port_unclaimed_reads_all_ones_and_drops_writes(machines: Machines) -> None:
    machine = machines.make(
        f"""
        mov $0x2345, %dx
        out %eax, %dx
        in %dx, %al
        mov %al, {RESULT}
        xor %eax, %eax
        in %dx, %eax
        mov %eax, {RESULT + 4}
        {SAY_DONE}
        """
    )

    await machine.start().asked()

    assert machine.word(RESULT) == 0xFF
    assert machine.word(RESULT + 4) == 0xFFFF_FFFF
    assert machine.threads[0].exit_counts.unclaimed == 3


async def test_mmio_unclaimed_reads_all_ones_and_drops_writes(machines: Machines) -> None:
    machine = machines.make(
        f"mov %eax, {HOLE}; xor %eax, %eax; mov {HOLE}, %eax; mov %eax, {RESULT}; {SAY_DONE}"
    )

    await machine.start().asked()

    assert machine.word(RESULT) == 0xFFFF_FFFF


async def test_constant_port_and_mmio_read_their_value(machines: Machines) -> None:
    machine = machines.make(
        f"""
        mov $0x61, %dx
        xor %eax, %eax
        in %dx, %ax
        mov %eax, {RESULT}
        mov {HOLE + 4}, %eax
        mov %eax, {RESULT + 4}
        {SAY_DONE}
        """
    )
    machine.router.map_pio(0x61, 1, Constant(0x1234_5678))
    machine.router.map_mmio(HOLE, 8, Constant(0xCAFE_F00D))

    await machine.start().asked()

    assert machine.word(RESULT) == 0x5678
    assert machine.word(RESULT + 4) == 0xCAFE_F00D


async def test_byte_ring_string_output_arrives_whole_with_one_signal(machines: Machines) -> None:
    machine = machines.make(
        f"""
        mov $text, %esi
        mov $11, %ecx
        mov $0xe9, %dx
        cld
        rep outsb
        in %dx, %al
        mov %al, {RESULT}
        {SAY_DONE}
        text: .ascii "hello world"
        """
    )

    with ByteRing(0xE9) as ring:
        machine.router.map_pio(0xE9, 1, ring)
        await machine.start().asked()

        assert os.eventfd_read(ring.fd) == 1
        assert ring.drain() == b"hello world"
        assert machine.word(RESULT) == 0xE9


async def test_uart_guest_text_arrives_without_the_loop(machines: Machines) -> None:
    machine = machines.make(
        f"""
        mov $text, %esi
        1:
        mov $0x3fd, %dx
        in %dx, %al
        test $0x20, %al
        jz 1b
        lodsb
        test %al, %al
        jz 2f
        mov $0x3f8, %dx
        out %al, %dx
        jmp 1b
        2:
        {SAY_DONE}
        text: .asciz "serial text"
        """
    )
    irq = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    with Uart(irq) as uart:
        machine.router.map_pio(0x3F8, 8, uart)
        await machine.start().asked()

        assert uart.drain() == b"serial text"
        assert machine.threads[0].exit_counts.to_loop == 1
    os.close(irq)


async def test_shadow_answers_reads_and_its_writes_are_the_loop_s(machines: Machines) -> None:
    machine = machines.make(
        f"""
        mov {HOLE}, %eax
        mov %eax, {RESULT}
        movzwl {HOLE + 6}, %eax
        mov %eax, {RESULT + 4}
        movl $5, {HOLE}
        mov {HOLE}, %eax
        mov %eax, {RESULT + 8}
        {SAY_DONE}
        """
    )
    shadow = Shadow([(0, 8)])
    [view] = shadow.views
    view[:] = bytes.fromhex("11223344 55667788")
    machine.router.map_mmio(HOLE, 0x1000, shadow)

    written = await machine.start().next_exit()
    assert (written.address, written.value, written.is_write) == (HOLE, 5, True)
    view[0] = 0xFF
    machine.threads[0].answer(0)
    await machine.driver.asked()

    assert machine.word(RESULT) == 0x4433_2211
    assert machine.word(RESULT + 4) == 0x8877
    assert machine.word(RESULT + 8) == 0x4433_22FF
    assert machine.threads[0].exit_counts.to_loop == 2


async def test_pci_configuration_read_comes_from_the_shadow(machines: Machines) -> None:
    machine = machines.make(
        f"""
        mov $0xcf8, %dx
        mov $0x80001008, %eax
        out %eax, %dx
        mov $0xcfc, %dx
        in %dx, %eax
        mov %eax, {RESULT}
        xor %eax, %eax
        mov $0xcfe, %dx
        in %dx, %ax
        mov %eax, {RESULT + 4}
        mov $0xcf8, %dx
        in %dx, %eax
        mov %eax, {RESULT + 8}
        {SAY_DONE}
        """
    )
    shadow = bytearray(b"\xff" * (1 << 20))
    shadow[0x10008:0x1000C] = bytes.fromhex("0df01234")

    machine.router.map_pio(0xCF8, 8, ConfigAddress(address_of(shadow), len(shadow)))
    await machine.start().asked()

    assert machine.word(RESULT) == 0x3412_F00D
    assert machine.word(RESULT + 4) == 0x3412
    assert machine.word(RESULT + 8) == 0x8000_1008
    assert machine.threads[0].exit_counts.to_loop == 1


async def test_pci_configuration_write_reaches_the_loop_with_its_address(
    machines: Machines,
) -> None:
    machine = machines.make(
        f"""
        mov $0xcf8, %dx
        mov $0x80001004, %eax
        out %eax, %dx
        mov $0xcfe, %dx
        mov $0x0107, %ax
        out %ax, %dx
        {SAY_DONE}
        """
    )
    shadow = bytearray(1 << 20)
    config = ConfigAddress(address_of(shadow), len(shadow))
    machine.router.map_pio(0xCF8, 8, config)

    exit_ = await machine.start().asked()

    assert (exit_.kind, exit_.address, exit_.size) == (ExitKind.PIO, 0xCFE, 2)
    assert (exit_.is_write, exit_.value, config.address) == (True, 0x0107, 0x8000_1004)


async def test_pm_timer_read_twice_moves_on(machines: Machines) -> None:
    machine = machines.make(
        f"""
        mov $0x608, %dx
        in %dx, %eax
        mov %eax, {RESULT}
        in %dx, %eax
        mov %eax, {RESULT + 4}
        {SAY_DONE}
        """
    )
    machine.router.map_pio(0x608, 4, PmTimer())

    await machine.start().asked()

    ticks = (machine.word(RESULT + 4) - machine.word(RESULT)) % (1 << 32)
    assert 0 < ticks < 10 * 3_579_545
    assert machine.threads[0].exit_counts.to_loop == 1


async def test_loop_port_read_gets_the_answer(machines: Machines) -> None:
    machine = machines.make(
        f"mov ${ASK}, %dx; xor %eax, %eax; in %dx, %al; mov %eax, {RESULT}; {SAY_DONE}"
    )

    exit_ = await machine.start().asked(answer=0xABCD_EF42)
    await machine.driver.asked()

    assert (exit_.kind, exit_.address, exit_.size) == (ExitKind.PIO, ASK, 1)
    assert not exit_.is_write
    assert machine.word(RESULT) == 0x42


async def test_loop_string_output_comes_one_element_at_a_time(machines: Machines) -> None:
    machine = machines.make(
        f"""
        mov $text, %esi
        mov $3, %ecx
        mov ${ASK}, %dx
        cld
        rep outsb
        hlt
        text: .ascii "abc"
        """
    )

    exits = [await machine.start().asked()] + [await machine.driver.asked() for _ in range(2)]

    assert [(e.size, e.value) for e in exits] == [(1, 0x61), (1, 0x62), (1, 0x63)]


async def test_loop_string_input_fills_guest_memory(machines: Machines) -> None:
    machine = machines.make(
        f"mov ${RESULT}, %edi; mov $4, %ecx; mov ${ASK}, %dx; cld; rep insb; {SAY_DONE}"
    )
    machine.start()

    for byte in b"wxyz":
        exit_ = await machine.driver.asked(byte)
        assert (exit_.size, exit_.is_write) == (1, False)
    await machine.driver.asked()

    assert machine.memory[RESULT : RESULT + 4] == b"wxyz"


@pytest.mark.parametrize(
    ("store", "load", "size"),
    [("movb $0x7e", "movb", 1), ("movw $0x7e", "movw", 2), ("movl $0x7e", "movl", 4)],
)
async def test_loop_mmio_is_asked_with_the_size_of_the_access(
    machines: Machines, store: str, load: str, size: int
) -> None:
    register = {1: "%al", 2: "%ax", 4: "%eax"}[size]
    machine = machines.make(
        f"{store}, {HOLE + 8}; xor %eax, %eax; {load} {HOLE + 8}, {register};"
        f"mov %eax, {RESULT}; {SAY_DONE}"
    )
    machine.router.map_mmio(HOLE, 0x1000, Loop())

    written = await machine.start().asked()
    read = await machine.driver.asked(answer=0x8765_4321)
    await machine.driver.asked()

    assert (written.kind, written.address, written.size) == (ExitKind.MMIO, HOLE + 8, size)
    assert (written.is_write, written.value) == (True, 0x7E)
    assert (read.kind, read.address, read.is_write) == (ExitKind.MMIO, HOLE + 8, False)
    assert machine.word(RESULT) == 0x8765_4321 & (1 << 8 * size) - 1


async def test_mmio_access_across_a_page_is_split_into_powers_of_two(machines: Machines) -> None:
    machine = machines.make(f"movl $0x44332211, {HOLE + 0xFFF}; hlt")
    machine.router.map_mmio(HOLE, 0x2000, Loop())
    machine.start()

    seen = bytearray(4)
    while not all(seen):
        exit_ = await machine.driver.asked()
        assert exit_.size in (1, 2)
        at = exit_.address - (HOLE + 0xFFF)
        seen[at : at + exit_.size] = exit_.value.to_bytes(exit_.size, "little")

    assert seen == bytes.fromhex("11223344")


async def test_all_ones_mapped_over_mmio_answers_in_c(machines: Machines) -> None:
    machine = machines.make(f"mov {HOLE}, %eax; mov %eax, {RESULT}; {SAY_DONE}")
    machine.router.map_mmio(HOLE, 4, AllOnes())

    await machine.start().asked()

    assert machine.word(RESULT) == 0xFFFF_FFFF
    assert machine.threads[0].exit_counts.in_c == 1


async def test_unmapped_range_stops_being_asked(machines: Machines) -> None:
    machine = machines.make(
        f"1: mov {HOLE}, %eax; mov %eax, {RESULT}; mov ${ASK}, %dx; out %al, %dx; jmp 1b"
    )
    machine.router.map_mmio(HOLE, 4, Constant(1))
    await machine.start().next_exit()

    machine.router.unmap_mmio(HOLE, 4)
    machine.threads[0].answer(0)
    await machine.driver.next_exit()

    assert machine.word(RESULT) == 0xFFFF_FFFF
