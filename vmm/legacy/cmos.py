"""The CMOS memory and real-time clock: ports 0x70 (index) and 0x71 (data).

The clock is the host's, in UTC, and cannot be set by the guest; it has no alarm and no interrupt.
Memory sizes stand where firmware looks for them. Every other byte is plain memory, lost at reset.
Spec: Motorola MC146818A, "address map" and "registers".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from vmm.errors import ConfigError
from vmm.legacy.byte_registers import NOBODY, read_bytes, write_bytes

if TYPE_CHECKING:
    from vmm.legacy.saved import SavedCmos
    from vmm.machine.bus import Lifecycle

PORT = 0x70
PORTS = 2

INDEX = 0
DATA = 1
INDEX_MASK = 0x7F
BYTES = 128

# Shutdown status with non-maskable interrupts off, as firmware selects it before a reset.
RESET_INDEX = 0x8F

REGISTER_A = 0x0A
REGISTER_B = 0x0B
REGISTER_C = 0x0C
REGISTER_D = 0x0D
DIVIDER_32768_HZ = 0x20
UPDATE_IN_PROGRESS = 0x80
SET = 0x80
IS_24_HOURS = 0x02
VALID_RAM_AND_TIME = 0x80

UPDATE_NS = 244_000
SECOND_NS = 1_000_000_000

MIB = 1 << 20
MEMORY_UNIT_BYTES = 64 << 10
MEMORY_ABOVE_16_MIB = (0x34, 0x35)
MEMORY_ABOVE_4_GIB = (0x5B, 0x5C, 0x5D)

# Register C says which interrupt is pending: none ever is.
CONSTANT_REGISTERS = {REGISTER_C: 0, REGISTER_D: VALID_RAM_AND_TIME}
TIME_REGISTERS: dict[int, Callable[[time.struct_time], int]] = {
    0x00: lambda now: min(now.tm_sec, 59),
    0x02: lambda now: now.tm_min,
    0x04: lambda now: now.tm_hour,
    0x06: lambda now: (now.tm_wday + 1) % 7 + 1,
    0x07: lambda now: now.tm_mday,
    0x08: lambda now: now.tm_mon,
    0x09: lambda now: now.tm_year % 100,
    0x32: lambda now: now.tm_year // 100 % 100,
}


class Cmos:
    """An IoHandler for ports 0x70 and 0x71.

    ``ram_below_4g`` and ``ram_above_4g`` are in bytes; ``clock`` gives nanoseconds since 1970.
    """

    def __init__(
        self,
        ram_below_4g: int,
        ram_above_4g: int,
        lifecycle: Lifecycle,
        *,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._lifecycle = lifecycle
        self._clock = clock
        self._index = 0
        self._memory = bytearray(BYTES)
        self._store(MEMORY_ABOVE_16_MIB, max(0, ram_below_4g - 16 * MIB))
        self._store(MEMORY_ABOVE_4_GIB, ram_above_4g)

    def read(self, offset: int, size: int) -> int:
        """Read the index, the data, or both."""
        return read_bytes(self._read_byte, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the index, the data, or one and then the other."""
        write_bytes(self._write_byte, offset, size, value)

    def save(self) -> SavedCmos:
        """Give what a snapshot keeps."""
        from vmm.legacy.saved import SavedCmos  # Only now: most VMs never are.

        return SavedCmos(index=self._index, memory=bytes(self._memory))

    def load(self, state: SavedCmos) -> None:
        """Take over what a snapshot kept. Raises: ConfigError for another size (caller)."""
        if len(state.memory) != BYTES:
            raise ConfigError(f"The saved CMOS has {len(state.memory)} bytes; {BYTES} are needed")
        self._index, self._memory = state.index, bytearray(state.memory)

    def _store(self, registers: tuple[int, ...], size_bytes: int) -> None:
        """Store a size, or the largest one that the registers can tell."""
        largest = (1 << 8 * len(registers)) - 1
        units = min(size_bytes // MEMORY_UNIT_BYTES, largest)
        for at, register in enumerate(registers):
            self._memory[register] = units >> 8 * at & 0xFF

    def _read_byte(self, offset: int) -> int:
        if offset == INDEX:
            return self._index
        if offset != DATA:
            return NOBODY
        register = self._index & INDEX_MASK
        if register in TIME_REGISTERS:
            now = time.gmtime(self._clock() // SECOND_NS)
            return _to_bcd(TIME_REGISTERS[register](now))
        if register == REGISTER_A:
            return DIVIDER_32768_HZ | (UPDATE_IN_PROGRESS if self._is_updating() else 0)
        if register == REGISTER_B:
            # Always decimal and 24 hours; a guest that stops the clock to set it reads so.
            return self._memory[REGISTER_B] & SET | IS_24_HOURS
        return CONSTANT_REGISTERS.get(register, self._memory[register])

    def _write_byte(self, offset: int, value: int) -> None:
        if offset == INDEX:
            self._index = value
        elif offset == DATA:
            if self._index == RESET_INDEX and value == 0:
                self._lifecycle.request_reset()
            self._memory[self._index & INDEX_MASK] = value

    def _is_updating(self) -> bool:
        """Whether the second is about to change, so that reads now might not fit together."""
        is_stopped = self._memory[REGISTER_B] & SET
        return not is_stopped and self._clock() % SECOND_NS >= SECOND_NS - UPDATE_NS


def _to_bcd(value: int) -> int:
    return value // 10 << 4 | value % 10
