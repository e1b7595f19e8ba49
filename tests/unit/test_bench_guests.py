"""The images of the guests that are measured."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tools.bench.exit_guest import (
    END_PORT,
    START_PORT,
    UNROLLED,
    Access,
    program,
    read_memory,
    read_port,
)
from tools.bench.guests import firmware, pvh_kernel, write_guests
from vmm.boot import elf

CODE = b"\xb0\x47\xe6\xe9\xf4"


def test_kernel_carries_the_note_that_a_pvh_loader_looks_for() -> None:
    image = pvh_kernel(CODE)
    offset, size = program_header(image, elf.PT_NOTE)

    assert elf.find_pvh_note(image[offset : offset + size], 4) == 0x100000


def test_kernel_is_entered_at_its_first_byte() -> None:
    image = pvh_kernel(CODE)
    offset, size = program_header(image, elf.PT_LOAD)

    assert image[offset : offset + size] == CODE


def program_header(image: bytes, kind: int) -> tuple[int, int]:
    """Where in the file the segment of a kind is, and its size."""
    headers = elf.PROGRAM_HEADER.iter_unpack(image[64 : 64 + 2 * elf.PROGRAM_HEADER.size])
    return next((fields[2], fields[5]) for fields in headers if fields[0] == kind)


def test_firmware_begins_at_the_reset_vector() -> None:
    image = firmware(CODE)

    assert len(image) == 64 << 10
    assert image[-16:].startswith(CODE)


def test_firmware_too_long_for_the_reset_vector_is_refused() -> None:
    with pytest.raises(ValueError, match="17 bytes at the reset vector, where 16 fit"):
        firmware(bytes(17))


def test_guests_are_written_where_they_are_said_to_be(tmp_path: Path) -> None:
    guests = write_guests(tmp_path)

    assert sorted(guests) == sorted(tmp_path.iterdir())


@pytest.mark.parametrize("access", [read_port(0x3FD), read_memory(0x20000)], ids=["port", "memory"])
def test_program_jumps_back_to_its_first_access(access: Access) -> None:
    code = program(access)
    start = code.index(bytes((0xE6, START_PORT))) + 2
    jump = code.index(bytes((0xE6, END_PORT))) - 2
    (distance,) = struct.unpack_from("<xb", code, jump)

    assert code[jump] == 0x75
    assert jump + 2 + distance == start
    assert code[start:].startswith(access.code * UNROLLED)
