"""The registers of PCI hot plug: bitmaps a segment, read once, and what a guest ejects."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from vmm.acpi.ged import AcpiNotification
from vmm.acpi.pci_hotplug import PciHotplug, Register


class Heard:
    """Both sides of the registers: what the guest is notified of, and what it ejects."""

    def __init__(self) -> None:
        self.notifications: list[AcpiNotification] = []
        self.ejected: list[tuple[int, list[int]]] = []

    def notify(self, notification: AcpiNotification) -> None:
        self.notifications.append(notification)

    def eject(self, segment: int, slots: Sequence[int]) -> str:
        self.ejected.append((segment, list(slots)))
        return "wait for it"


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def registers(heard: Heard) -> PciHotplug[str]:
    made = PciHotplug[str](heard, 2)
    made.serve(heard)
    return made


def test_announced_slots_are_read_once_and_notified_each(
    registers: PciHotplug[str], heard: Heard
) -> None:
    registers.announce(0, 3)
    registers.announce(0, 31)

    assert heard.notifications == [AcpiNotification.PCI] * 2
    assert registers.read(Register.PCIU, 4) == 1 << 3 | 1 << 31
    assert registers.read(Register.PCIU, 4) == 0
    assert registers.read(Register.PCID, 4) == 0


def test_slots_asked_back_are_in_the_other_bitmap(registers: PciHotplug[str], heard: Heard) -> None:
    registers.ask_back(0, 5)

    assert heard.notifications == [AcpiNotification.PCI]
    assert registers.read(Register.PCIU, 4) == 0
    assert registers.read(Register.PCID, 4) == 1 << 5
    assert registers.read(Register.PCID, 4) == 0


def test_bitmaps_are_those_of_the_selected_segment(registers: PciHotplug[str]) -> None:
    registers.announce(1, 4)
    assert registers.read(Register.PCIU, 4) == 0

    registers.write(Register.PSEG, 4, 1)

    assert registers.read(Register.PSEG, 4) == 1
    assert registers.read(Register.PCIU, 4) == 1 << 4


def test_ejection_names_the_segment_and_each_slot_and_gives_what_to_wait_for(
    registers: PciHotplug[str], heard: Heard
) -> None:
    registers.write(Register.PSEG, 4, 1)

    assert registers.write(Register.B0EJ, 4, 1 << 31 | 1) == "wait for it"

    assert heard.ejected == [(1, [0, 31])]
    assert registers.read(Register.B0EJ, 4) == 0


def test_forgotten_slot_is_in_no_bitmap(registers: PciHotplug[str]) -> None:
    registers.announce(0, 3)
    registers.announce(0, 4)
    registers.ask_back(0, 3)

    registers.forget(0, 3)

    assert registers.read(Register.PCIU, 4) == 1 << 4
    assert registers.read(Register.PCID, 4) == 0


def test_segment_that_does_not_exist_has_no_slots(registers: PciHotplug[str], heard: Heard) -> None:
    registers.announce(0, 3)
    registers.write(Register.PSEG, 4, 0xFFFF_FFFF)

    assert registers.read(Register.PCIU, 4) == 0
    assert registers.write(Register.B0EJ, 4, 1 << 3) is None

    assert heard.ejected == []
    registers.write(Register.PSEG, 4, 0)
    assert registers.read(Register.PCIU, 4) == 1 << 3


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (0, 8), (2, 4), (8, 2), (0x0F, 4), (12, 1)])
def test_access_that_is_no_whole_register_changes_nothing(
    registers: PciHotplug[str], heard: Heard, offset: int, size: int
) -> None:
    registers.announce(0, 3)

    assert registers.read(offset, size) == 0
    assert registers.write(offset, size, 0xFF) is None

    assert heard.ejected == []
    assert registers.read(Register.PSEG, 4) == 0
    assert registers.read(Register.PCIU, 4) == 1 << 3


def test_ejection_before_anybody_serves_is_ignored() -> None:
    registers = PciHotplug[str](Heard(), 1)

    assert registers.write(Register.B0EJ, 4, 1) is None
