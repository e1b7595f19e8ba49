"""Memory hot plug: its registers, as the AML uses them, and the AML."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.unit.test_acpi_tables import MACHINE, compile_again, table
from vmm.acpi.ged import AcpiNotification
from vmm.acpi.memory_hotplug import SLOTS, MemoryHotplug
from vmm.pci.allocator import Span

BLOCK = 128 << 20
STATUS = 0x14


class Notifications:
    def __init__(self) -> None:
        self.sent: list[AcpiNotification] = []

    def notify(self, notification: AcpiNotification) -> None:
        self.sent.append(notification)


@pytest.fixture
def notifications() -> Notifications:
    return Notifications()


@pytest.fixture
def registers(notifications: Notifications) -> MemoryHotplug:
    return MemoryHotplug(notifications)


def test_slot_without_memory_reads_as_zero(registers: MemoryHotplug) -> None:
    registers.write(0, 4, 3)

    assert [registers.read(offset, 4) for offset in range(0, 0x18, 4)] == [0] * 6


def test_memory_that_came_is_described_and_announced(
    registers: MemoryHotplug, notifications: Notifications
) -> None:
    registers.announce(Span(5 << 32, BLOCK))
    registers.announce(Span((5 << 32) + BLOCK, 3 * BLOCK))
    registers.write(0, 4, 1)

    halves = [registers.read(offset, 4) for offset in (0, 4, 8, 12)]
    assert halves == [BLOCK, 5, 3 * BLOCK, 0]
    assert registers.read(STATUS, 1) == 0b11
    assert notifications.sent == [AcpiNotification.MEMORY] * 2
    assert registers.free == SLOTS - 2


def test_guest_that_knows_takes_the_mark_off_that_slot_alone(registers: MemoryHotplug) -> None:
    registers.announce(Span(4 << 30, BLOCK))
    registers.announce(Span(5 << 30, BLOCK))
    registers.write(0, 4, 1)

    registers.write(STATUS, 1, 0b10)

    assert registers.read(STATUS, 1) == 0b01
    registers.write(0, 4, 0)
    assert registers.read(STATUS, 1) == 0b11


@pytest.mark.parametrize("value", [8, 0xFF, 0xFFFF_FFFF])
def test_slot_that_does_not_exist_has_no_memory(registers: MemoryHotplug, value: int) -> None:
    registers.announce(Span(4 << 30, BLOCK))
    registers.write(0, 4, value)
    registers.write(STATUS, 1, 0xFF)

    assert registers.read(STATUS, 1) == registers.read(0, 8) == 0


@pytest.mark.parametrize(("offset", "size"), [(0x15, 1), (0x17, 4), (0x100, 8), (4, 8)])
def test_access_of_any_place_is_answered(registers: MemoryHotplug, offset: int, size: int) -> None:
    registers.announce(Span(4 << 30, BLOCK))
    registers.write(offset, size, (1 << 8 * size) - 1)

    assert 0 <= registers.read(offset, size) < 1 << 8 * size


@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl is missing; install acpica-tools")
def test_dsdt_with_memory_hotplug_compiles_again_to_the_same(tmp_path: Path) -> None:
    content = table(MACHINE._replace(memory_hotplug_address=0x3FFF_FFFE_C000), "DSDT")

    assert b"M007" in content
    assert compile_again(tmp_path, "dsdt", content)[36:].hex() == content[36:].hex()


def test_dsdt_without_memory_hotplug_has_no_slots() -> None:
    content = table(MACHINE, "DSDT")

    assert b"MHPC" in content
    assert b"M000" not in content
