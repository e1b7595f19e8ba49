"""The whole boot state as it lies in RAM."""

from __future__ import annotations

import struct

import pytest

from tests.unit.boot_images import FakeRam, as_file, make_bzimage, make_elf
from vmm.boot.assemble import BootFacts, Payload, prepare
from vmm.boot.layout import MIB
from vmm.boot.smbios import SystemIdentity
from vmm.errors import ConfigError

FACTS = BootFacts((0, 1))


def test_prepare_of_a_pvh_kernel_writes_everything_it_looks_for() -> None:
    memory = FakeRam()
    payload = Payload(as_file(make_elf()), as_file(b"c" * 5000, "initramfs"), "quiet")

    entry = prepare(memory, payload, FACTS)

    assert entry.kind == "pvh"
    assert memory.read(0x500, 40) == struct.pack(
        "<5Q", 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00008B0000000067, 0
    )
    assert memory.read(0x40E, 2) == b"\x00\xa0"
    assert memory.read(0x6000, 4) == b"\x78\xc5\x6e\x33"
    assert struct.unpack("<QQ", memory.read(0x6040, 16)) == (64 * MIB - 8192, 5000)
    assert struct.unpack("<QQI", memory.read(0x7000, 20)) == (0, 0xA0000, 1)
    assert memory.read(0x20000, 6) == b"quiet\0"
    assert memory.read(0xF0000, 5) == b"_SM3_"
    assert memory.read(64 * MIB - 8192, 5000) == b"c" * 5000


def test_prepare_of_a_bzimage_writes_its_zero_page_and_no_start_info() -> None:
    memory = FakeRam()
    payload = Payload(as_file(make_bzimage()), as_file(b"c" * 5000, "initramfs"))

    entry = prepare(memory, payload, FACTS)

    assert entry.kind == "bzimage"
    assert memory.read(0x7000 + 0x202, 4) == b"HdrS"
    assert struct.unpack("<II", memory.read(0x7218, 8)) == (64 * MIB - 8192, 5000)
    assert memory.read(0x6000, 4) == bytes(4)


def test_prepare_of_firmware_gives_it_an_empty_command_line() -> None:
    memory = FakeRam()
    memory.write(0x20000, b"\xff")
    payload = Payload(as_file(make_elf(), "firmware"), cmdline="quiet")

    prepare(memory, payload, FACTS)

    assert memory.read(0x20000, 6) == bytes(6)


@pytest.mark.parametrize("tag", [None, *("x" * length for length in range(1, 17))])
def test_prepare_puts_the_mp_table_behind_smbios_where_kernels_look(tag: str | None) -> None:
    memory = FakeRam()
    facts = BootFacts((0,), SystemIdentity(chassis_asset_tag=tag))

    prepare(memory, Payload(as_file(make_elf())), facts)

    segment = memory.read(0xF0000, 0x10000)
    (size,) = struct.unpack_from("<I", segment, 12)
    at = segment.index(b"_MP_")
    assert at % 16 == 0
    assert 0 <= at - (24 + size) < 16
    assert struct.unpack_from("<I", segment, at + 4) == (0xF0000 + at + 16,)


def test_prepare_with_ids_too_wide_leaves_the_mp_table_out() -> None:
    memory = FakeRam()

    prepare(memory, Payload(as_file(make_elf())), BootFacts((0, 256)))

    assert b"_MP_" not in memory.read(0xF0000, 0x10000)


def test_prepare_with_less_ram_than_the_tables_take_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Memory of 1048576 bytes .* more than 1 MiB"):
        prepare(FakeRam((0, MIB)), Payload(as_file(make_elf())), FACTS)
