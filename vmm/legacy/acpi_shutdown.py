"""The ACPI sleep control and reset register: how a hardware-reduced guest powers off and resets.

Port 0x600 of eight reserved ports. Spec: ACPI 6.5, 4.8.3.7 (sleep control) and 4.8.3.6 (reset).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.legacy.byte_registers import write_bytes

if TYPE_CHECKING:
    from vmm.machine.bus import Lifecycle

PORT = 0x600
PORTS = 8

RESET = 1
SLEEP_ENABLE = 1 << 5
SLEEP_TYPE_S5 = 5 << 2
POWER_OFF = SLEEP_ENABLE | SLEEP_TYPE_S5


class AcpiShutdown:
    """An IoHandler for the eight ports; only the first does anything."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    def read(self, offset: int, size: int) -> int:
        """Read zero: there is no wake status, as there is nothing to wake from."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Reset or power off."""
        write_bytes(self._write_byte, offset, size, value)

    def _write_byte(self, offset: int, value: int) -> None:
        if offset != 0:
            return
        if value == RESET:
            self._lifecycle.request_reset()
        elif value == POWER_OFF:
            self._lifecycle.request_shutdown()
