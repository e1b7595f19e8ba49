"""The keyboard controller, of which only the reset line is left, and system control port B.

Ports 0x61 to 0x64. A guest that pulses the reset line (command 0xFE) is reset; the status says that
there is neither a key to read nor a command in work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.legacy.byte_registers import NOBODY, read_bytes, write_bytes

if TYPE_CHECKING:
    from vmm.machine.bus import Lifecycle

PORT = 0x61
PORTS = 4

CONTROL_B = 0x61 - PORT
COMMAND = STATUS = 0x64 - PORT
PULSE_RESET = 0xFE

# Bit 5 of port 0x61 is the output of timer 2; a guest that calibrates against it must see it set.
CONTROL_B_VALUE = 0x20
STATUS_VALUE = 0x00


class I8042:
    """An IoHandler for ports 0x61 to 0x64."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    def read(self, offset: int, size: int) -> int:
        """Read one or several of the ports."""
        return read_bytes(self._read_byte, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write one or several of the ports."""
        write_bytes(self._write_byte, offset, size, value)

    def _read_byte(self, offset: int) -> int:
        if offset == CONTROL_B:
            return CONTROL_B_VALUE
        return STATUS_VALUE if offset == STATUS else NOBODY

    def _write_byte(self, offset: int, value: int) -> None:
        if offset == COMMAND and value == PULSE_RESET:
            self._lifecycle.request_reset()
