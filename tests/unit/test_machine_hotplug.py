"""What a guest may do with the register by which it gives devices back."""

from __future__ import annotations

from typing import Any

import pytest

from vmm.acpi.ged import AcpiNotification
from vmm.acpi.pci_hotplug import PciHotplug, Register
from vmm.machine.hotplug import Hotplug

SEGMENTS = 2
ALL_SLOTS = 0xFFFF_FFFF


class NoDevices:
    """The devices of a machine that has none, and hears no notification."""

    def notify(self, notification: AcpiNotification) -> None:
        raise AssertionError("nobody announces anything")


def test_guest_that_ejects_for_ever_what_nobody_asked_for_does_not_fill_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    devices: Any = NoDevices()
    registers = PciHotplug[Any](devices, SEGMENTS)
    Hotplug(devices, registers, devices)

    for turn in range(1000):
        registers.write(Register.PSEG, 4, turn % SEGMENTS)
        assert registers.write(Register.B0EJ, 4, ALL_SLOTS) is None

    assert "ejects slot 31 of segment 1 unasked" in caplog.text
    assert len(caplog.records) == SEGMENTS * 32
