"""The guests that are measured: a few instructions each, as the images that VMMs load.

The kernels run in 32-bit protected mode, as PVH enters them; the firmware in real mode, from the
reset vector. Both say on the debug port that they run, which is all that most benchmarks wait for.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

SIGN_OF_LIFE = b"G"
"""The byte that a guest's first two instructions write to the debug port 0xE9."""

POWER_OFF_PORT = 0x600
POWER_OFF_CODE = 0x34
"""What powers a guest off at that port, which is the ACPI sleep control register (S5)."""

_SAY_ALIVE = bytes.fromhex("b047 e6e9")  # mov al, 'G'; out 0xe9, al
_SLEEP = bytes.fromhex("fa f4 ebfd")  # cli; hlt; jmp to the hlt
_POWER_OFF_32 = bytes.fromhex("66ba0006 b034 ee")  # mov dx, 0x600; mov al, 0x34; out dx, al
_POWER_OFF_16 = bytes.fromhex("ba0006 b034 ee")

_ENTRY = 0x100000
_CODE_OFFSET = 0x1000
_FIRMWARE_SIZE = 64 << 10
_RESET_VECTOR_ROOM = 16


class Guests(NamedTuple):
    """Where the images are."""

    power_off: Path
    """A PVH kernel that shows life and powers off."""
    idle: Path
    """A PVH kernel that shows life and halts for ever."""
    firmware: Path
    """Firmware whose first instructions show life and power off."""


def write_guests(folder: Path) -> Guests:
    """Write the images into a folder."""
    guests = Guests(folder / "power_off.elf", folder / "idle.elf", folder / "firmware.bin")
    guests.power_off.write_bytes(pvh_kernel(_SAY_ALIVE + _POWER_OFF_32 + _SLEEP))
    guests.idle.write_bytes(pvh_kernel(_SAY_ALIVE + _SLEEP))
    guests.firmware.write_bytes(firmware(_SAY_ALIVE + _POWER_OFF_16 + _SLEEP))
    return guests


def pvh_kernel(code: bytes) -> bytes:
    """Make an ELF image that a PVH loader enters at the first byte of ``code``, at 1 MiB.

    Spec: System V ABI, chapters 4 and 5; Xen's PVH boot protocol (note 18).
    """
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen", _ENTRY)
    note_offset = 64 + 2 * 56
    header = struct.pack(
        "<4s5B7xHHIQQQIHHHHHH",
        b"\x7fELF", 2, 1, 1, 0, 0, 2, 62, 1, _ENTRY, 64, 0, 0, 64, 56, 2, 0, 0, 0,
    )  # fmt: skip
    load = struct.pack(
        "<IIQQQQQQ", 1, 5, _CODE_OFFSET, _ENTRY, _ENTRY, len(code), len(code), 0x1000
    )
    notes = struct.pack("<IIQQQQQQ", 4, 4, note_offset, 0, 0, len(note), len(note), 4)
    return (header + load + notes + note).ljust(_CODE_OFFSET, b"\0") + code


def firmware(code: bytes) -> bytes:
    """Make a firmware image of 64 KiB with ``code`` at the reset vector, where 16 bytes fit.

    Raises: ValueError when it is longer.
    """
    if len(code) > _RESET_VECTOR_ROOM:
        raise ValueError(f"{len(code)} bytes at the reset vector, where {_RESET_VECTOR_ROOM} fit")
    return b"\xf4" * (_FIRMWARE_SIZE - _RESET_VECTOR_ROOM) + code.ljust(_RESET_VECTOR_ROOM, b"\xf4")
