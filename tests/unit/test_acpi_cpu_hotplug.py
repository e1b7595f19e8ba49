"""The registers of CPU hot plug: a processor is selected, its status read, noticed, and changed."""

from __future__ import annotations

import pytest

from vmm.acpi.cpu_hotplug import CpuHotplug
from vmm.acpi.ged import AcpiNotification

SELECT, STATUS = 0, 4
PRESENT, INSERTING, REMOVING, EJECT = 1, 2, 4, 8


class Heard:
    """Both sides of the registers: what the guest is notified of, and what it ejects."""

    def __init__(self) -> None:
        self.notifications: list[AcpiNotification] = []
        self.ejected: list[int] = []

    def notify(self, notification: AcpiNotification) -> None:
        self.notifications.append(notification)

    def eject_cpu(self, index: int) -> str:
        self.ejected.append(index)
        return "wait for it"


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def registers(heard: Heard) -> CpuHotplug[str]:
    made = CpuHotplug[str](heard, possible=4, present=2)
    made.serve(heard)
    return made


def status(registers: CpuHotplug[str], index: int) -> int:
    registers.write(SELECT, 4, index)
    assert registers.read(SELECT, 4) == index
    return registers.read(STATUS, 1)


def test_processors_of_the_boot_are_present_and_others_are_not(registers: CpuHotplug[str]) -> None:
    assert [status(registers, index) for index in range(5)] == [PRESENT, PRESENT, 0, 0, 0]


def test_announced_processors_are_inserting_until_the_guest_has_noticed(
    registers: CpuHotplug[str], heard: Heard
) -> None:
    registers.announce([2, 3])

    assert heard.notifications == [AcpiNotification.CPU]
    assert status(registers, 2) == PRESENT | INSERTING
    registers.write(STATUS, 1, INSERTING)
    assert [status(registers, index) for index in (2, 3)] == [PRESENT, PRESENT | INSERTING]


def test_processor_asked_back_stays_until_it_is_ejected(
    registers: CpuHotplug[str], heard: Heard
) -> None:
    registers.ask_back([1])
    assert status(registers, 1) == PRESENT | REMOVING
    registers.write(STATUS, 1, REMOVING)
    assert status(registers, 1) == PRESENT
    assert registers.wanted_back == {1}

    assert registers.write(STATUS, 1, EJECT) == "wait for it"

    assert (heard.ejected, registers.wanted_back) == ([1], frozenset())
    assert status(registers, 1) == 0
    assert registers.write(STATUS, 1, EJECT) is None


@pytest.mark.parametrize("index", [0, 1, 3, 4, 0xFFFF_FFFF])
def test_ejection_that_nobody_asked_for_takes_nothing(
    registers: CpuHotplug[str], heard: Heard, index: int
) -> None:
    before = status(registers, index)

    assert registers.write(STATUS, 1, EJECT | INSERTING | REMOVING) is None

    assert heard.ejected == []
    assert status(registers, index) == before


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (4, 4), (5, 1), (8, 4), (0, 8)])
def test_access_that_is_no_whole_register_changes_nothing(
    registers: CpuHotplug[str], heard: Heard, offset: int, size: int
) -> None:
    registers.ask_back([1])
    registers.write(SELECT, 4, 1)

    assert registers.read(offset, size) == 0
    assert registers.write(offset, size, EJECT) is None

    assert heard.ejected == []
    assert registers.read(SELECT, 4) == 1
