"""The register of the generic event device."""

from __future__ import annotations

import pytest

from vmm.acpi.ged import AcpiNotification, GeneralEventDevice


class CountedInterrupt:
    def __init__(self) -> None:
        self.edges = 0

    def raise_edge(self) -> None:
        self.edges += 1


def test_notify_sets_the_bit_and_raises_one_edge() -> None:
    interrupt = CountedInterrupt()
    ged = GeneralEventDevice(interrupt)

    ged.notify(AcpiNotification.POWER_BUTTON)

    assert interrupt.edges == 1
    assert ged.read(0, 1) == 8


def test_read_clears_what_it_gives() -> None:
    ged = GeneralEventDevice(CountedInterrupt())
    ged.notify(AcpiNotification.CPU)

    assert ged.read(0, 1) == 1
    assert ged.read(0, 1) == 0


def test_notifications_before_a_read_are_given_together() -> None:
    interrupt = CountedInterrupt()
    ged = GeneralEventDevice(interrupt)

    ged.notify(AcpiNotification.CPU)
    ged.notify(AcpiNotification.MEMORY)
    ged.notify(AcpiNotification.PCI)

    assert ged.read(0, 1) == 7
    assert interrupt.edges == 3


def test_write_and_a_read_beside_the_register_leave_it_alone() -> None:
    ged = GeneralEventDevice(CountedInterrupt())
    ged.notify(AcpiNotification.PCI)

    ged.write(0, 1, 0xFF)

    assert ged.read(3, 2) == 0xFFFF
    assert ged.read(0, 8) == 4


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_read_of_any_size_gives_the_byte(size: int) -> None:
    ged = GeneralEventDevice(CountedInterrupt())
    ged.notify(AcpiNotification.MEMORY)

    assert ged.read(0, size) == 2
