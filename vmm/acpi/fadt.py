"""FACP, the fixed table: a hardware-reduced machine with a reset, a sleep and a timer register.

Spec: ACPI 6.5, section 5.2.9 (table revision 6.3).
"""

from __future__ import annotations

import struct

from vmm.acpi.machine import Machine
from vmm.acpi.sdt import HEADER_SIZE, sdt

RESET_PORT = 0x600
RESET_VALUE = 1
SLEEP_PORT = 0x600
PM_TIMER_PORT = 0x608
PM1A_EVENT_PORT = 0x60C
PM1A_CONTROL_PORT = 0x610

_LENGTH = 276
_REVISION, _MINOR_REVISION = 6, 3
_TIMER_IS_32_BITS = 1 << 8
_HAS_RESET_REGISTER = 1 << 10
_HARDWARE_REDUCED = 1 << 20
_PM1_EVENT_SIZE, _PM1_CONTROL_SIZE = 4, 2
_SYSTEM_IO = 1


def fadt(machine: Machine, dsdt_address: int) -> bytes:
    """Build FACP; it alone leads the operating system to the DSDT."""
    table = bytearray(_LENGTH)
    flags = _TIMER_IS_32_BITS | _HAS_RESET_REGISTER | _HARDWARE_REDUCED
    struct.pack_into("<I", table, 112, flags)
    table[116:128] = _port(RESET_PORT, 1)
    table[128] = RESET_VALUE
    table[131] = _MINOR_REVISION
    struct.pack_into("<Q", table, 140, dsdt_address)
    if machine.has_pm1_blocks:
        struct.pack_into("<I4xI", table, 56, PM1A_EVENT_PORT, PM1A_CONTROL_PORT)
        struct.pack_into("<BB", table, 88, _PM1_EVENT_SIZE, _PM1_CONTROL_SIZE)
        table[148:160] = _port(PM1A_EVENT_PORT, _PM1_EVENT_SIZE)
        table[172:184] = _port(PM1A_CONTROL_PORT, _PM1_CONTROL_SIZE)
    table[208:220] = _port(PM_TIMER_PORT, 4)
    table[244:256] = _port(SLEEP_PORT, 1)
    table[256:268] = _port(SLEEP_PORT, 1)
    table[268:276] = b"CLOUDHYP"
    return sdt(b"FACP", _REVISION, bytes(table[HEADER_SIZE:]), b"CHFACP")


def _port(port: int, size: int) -> bytes:
    """Encode a generic address structure for a register of ``size`` bytes (section 5.2.3.2)."""
    access_size = size.bit_length()  # 1, 2, 3: one, two, four bytes
    return struct.pack("<BBBBQ", _SYSTEM_IO, size * 8, 0, access_size, port)
