"""No access of a guest, of any offset, size and value, may raise or give a value too wide.

Every IoHandler of the legacy devices, and the ports that C answers, by sequences of accesses: state
that one access leaves behind is what the next one meets.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.kvm_cffi import ByteRing, PmTimer, Uart
from vmm.legacy.acpi_shutdown import AcpiShutdown
from vmm.legacy.cmos import Cmos
from vmm.legacy.i8042 import I8042
from vmm.legacy.ioapic import PINS, Ioapic
from vmm.machine.bus import IoHandler


class Outside:
    """Everything a legacy device may touch; checks what arrives."""

    def request_reset(self) -> None:
        """Ask for a reset."""

    def request_shutdown(self) -> None:
        """Ask for a shutdown."""

    def set_route(self, pin: int, address: int, data: int) -> None:
        """Only a message to a LAPIC may come out of the IOAPIC."""
        assert 0 <= pin < PINS
        assert address >> 20 == 0xFEE
        assert 0 <= data < 1 << 16

    def mask(self, pin: int) -> None:
        """Hold a pin back."""
        assert 0 <= pin < PINS

    def unmask(self, pin: int) -> None:
        """Let a pin through."""
        assert 0 <= pin < PINS


DEVICES: dict[str, Callable[[Outside], IoHandler]] = {
    "i8042": I8042,
    "cmos": lambda outside: Cmos(3 << 30, 1 << 40, outside),
    "acpi_shutdown": AcpiShutdown,
    "ioapic": Ioapic,
}

SIZES = st.sampled_from([1, 2, 4, 8])
# Small offsets reach registers, large ones what lies behind the range.
OFFSETS = st.one_of(st.integers(0, 0x20), st.integers(0, (1 << 64) - 1))
VALUES = st.one_of(st.integers(0, 0xFF), st.integers(0, (1 << 64) - 1))
ACCESSES = st.lists(st.tuples(st.booleans(), OFFSETS, SIZES, VALUES), max_size=40)


@pytest.mark.parametrize("name", DEVICES)
@given(accesses=ACCESSES)
def test_device_any_accesses_never_raise_and_fit_their_size(
    name: str, accesses: list[tuple[bool, int, int, int]]
) -> None:
    device = DEVICES[name](Outside())

    for is_write, offset, size, value in accesses:
        if is_write:
            device.write(offset, size, value & (1 << 8 * size) - 1)
        else:
            assert 0 <= device.read(offset, size) < 1 << 8 * size


@given(accesses=ACCESSES, typed=st.binary(max_size=400))
def test_uart_any_accesses_leave_it_working(
    accesses: list[tuple[bool, int, int, int]], typed: bytes
) -> None:
    irq = os.eventfd(0, os.EFD_NONBLOCK)
    with closing(os.fdopen(irq, "rb", buffering=0)), Uart(irq, transmit_capacity=64) as uart:
        assert 0 <= uart.receive(typed) <= len(typed)

        for is_write, offset, size, value in accesses:
            if is_write:
                assert uart.write(offset, value, size)
            else:
                assert uart.read(offset, size) is not None

        assert len(uart.drain()) <= 64
        assert uart.save().transmit == b""


@given(accesses=ACCESSES)
def test_byte_ring_and_timer_any_accesses_are_answered(
    accesses: list[tuple[bool, int, int, int]],
) -> None:
    timer = PmTimer()
    with ByteRing(0xE9, capacity=8) as ring:
        for is_write, offset, size, value in accesses:
            for port in (ring, timer):
                if is_write:
                    assert port.write(offset, value, size)
                else:
                    assert port.read(offset, size) is not None

        assert len(ring.drain()) <= 8


@given(writes=st.lists(st.tuples(st.integers(0, 0x3F), st.integers(0, (1 << 32) - 1))))
def test_ioapic_any_registers_survive_save_and_load(writes: list[tuple[int, int]]) -> None:
    ioapic = Ioapic(Outside())
    for register, value in writes:
        ioapic.write(0x00, 4, register)
        ioapic.write(0x10, 4, value)

    restored = Ioapic(Outside())
    restored.load(ioapic.save())

    assert restored.save() == ioapic.save()
