"""ELF kernels: found by their PVH note, loaded where their program headers say."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from tests.unit.boot_images import LOAD_AT, FakeRam, as_file, make_elf, note, pvh_note
from vmm.boot.layout import GIB, MIB
from vmm.boot.loader import load_kernel
from vmm.boot.payload import open_payload
from vmm.errors import ConfigError

SOURCE = """
    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad _start
    .text
    .globl _start
_start: hlt
    .data
    .quad 0x1122334455667788
    .bss
    .skip 0x3000
"""
OFFSET_OF_SECTION_HEADERS = 0x28


@pytest.fixture(scope="module")
def built_kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kernel")
    source = folder / "kernel.S"
    source.write_text(SOURCE)
    kernel = folder / "kernel"
    layout = "-Wl,-Ttext-segment=0x200000,--build-id=none"
    flags = ["-nostdlib", "-static", "-no-pie", layout]
    subprocess.run(["gcc", *flags, "-o", kernel, source], check=True)
    return kernel


def test_elf_from_a_compiler_is_loaded_and_entered_at_its_note(built_kernel: Path) -> None:
    memory = FakeRam()

    with open_payload(str(built_kernel)) as file:
        entry = load_kernel(memory, file)

    assert entry.kind == "pvh"
    assert memory.read(entry.address, 1) == b"\xf4"
    loaded = memory.read(2 * MIB, entry.end - 2 * MIB)
    assert struct.pack("<Q", 0x1122334455667788) in loaded
    assert loaded.endswith(bytes(0x2000))


def test_elf_without_section_headers_is_entered_all_the_same(built_kernel: Path) -> None:
    image = bytearray(built_kernel.read_bytes())
    struct.pack_into("<Q", image, OFFSET_OF_SECTION_HEADERS, 0)

    entry = load_kernel(FakeRam(), as_file(bytes(image)))

    with open_payload(str(built_kernel)) as file:
        assert entry == load_kernel(FakeRam(), file)


def test_elf_bss_in_ram_that_is_not_empty_is_cleared() -> None:
    memory = FakeRam()
    memory.write(LOAD_AT, b"\xaa" * 0x4000)

    entry = load_kernel(memory, as_file(make_elf(b"\xf4\xf4", memsz=0x3000)))

    assert memory.read(LOAD_AT, 0x3000) == b"\xf4\xf4" + bytes(0x2FFE)
    assert memory.read(LOAD_AT + 0x3000, 1) == b"\xaa"
    assert entry.end == LOAD_AT + 0x3000


def test_elf_at_1_mib_like_firmware_is_accepted() -> None:
    entry = load_kernel(FakeRam(), as_file(make_elf(paddr=MIB), "firmware"))

    assert entry.address == MIB


@pytest.mark.parametrize("size", [4, 8])
def test_elf_note_of_either_width_after_others_is_found(size: int) -> None:
    notes = note(b"Linux\0", 0x101, b"abc") + note(b"Xen\0", 5, b"x") + pvh_note(LOAD_AT, size)

    assert load_kernel(FakeRam(), as_file(make_elf(notes=notes))).address == LOAD_AT


def test_elf_notes_aligned_to_8_are_walked_by_8() -> None:
    notes = note(b"GNU\0", 5, b"12345", align=8) + note(b"Xen\0", 18, b"\0\0\x20\0", align=8)

    image = make_elf(notes=notes, note_align=8)

    assert load_kernel(FakeRam(), as_file(image)).address == LOAD_AT


@pytest.mark.parametrize(
    "notes",
    [b"", note(b"GNU\0", 18, bytes(4)), note(b"Xen\0", 1, bytes(4)), pvh_note(LOAD_AT)[:-1]],
    ids=["none", "other name", "other type", "cut"],
)
def test_elf_without_a_pvh_note_says_how_to_get_one(notes: bytes) -> None:
    with pytest.raises(ConfigError, match=r"^Kernel /kernel lacks a PVH note .*CONFIG_PVH=y"):
        load_kernel(FakeRam(), as_file(make_elf(notes=notes)))


def test_elf_beyond_the_end_of_ram_names_needed_and_available_memory() -> None:
    image = make_elf(memsz=100 * MIB)

    with pytest.raises(ConfigError, match=r"102 MiB, and the VM has 64 MiB there; raise memory"):
        load_kernel(FakeRam(), as_file(image))


def test_elf_in_the_hole_does_not_ask_for_more_memory() -> None:
    memory = FakeRam((0, 3 * GIB), (4 * GIB, GIB))

    with pytest.raises(ConfigError, match="link it lower"):
        load_kernel(memory, as_file(make_elf(paddr=3 * GIB)))


def test_elf_over_the_boot_tables_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"loadable segment 0 at 0x7000.*1 MiB"):
        load_kernel(FakeRam(), as_file(make_elf(paddr=0x7000)))


def test_elf_entered_outside_its_segments_is_refused() -> None:
    image = make_elf(notes=pvh_note(0x12345678))

    with pytest.raises(ConfigError, match=r"entry at 0x12345678, which none of its 1"):
        load_kernel(FakeRam(), as_file(image))


def test_elf_of_a_386_with_64_bit_headers_like_cloudhv_is_accepted() -> None:
    entry = load_kernel(FakeRam(), as_file(make_elf(paddr=MIB, machine=3), "firmware"))

    assert entry.address == MIB


def test_elf_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match="machine 183, and only"):
        load_kernel(FakeRam(), as_file(make_elf(machine=183)))


def test_elf_that_ends_within_its_header_is_refused() -> None:
    with pytest.raises(ConfigError, match="ends after 20 bytes"):
        load_kernel(FakeRam(), as_file(make_elf()[:20]))


def test_elf_that_ends_within_its_program_headers_is_refused() -> None:
    with pytest.raises(ConfigError, match="program headers at 0x40, beyond its end"):
        load_kernel(FakeRam(), as_file(make_elf()[:100]))


def test_elf_with_a_segment_longer_than_the_file_is_refused() -> None:
    extra = [(1, 7, 0, 0, 4 * MIB, 1 << 20, 1 << 20, 1)]

    with pytest.raises(ConfigError, match=r"loadable segment 1 ends at byte 1048576"):
        load_kernel(FakeRam(), as_file(make_elf(extra=extra)))


def test_elf_with_more_file_than_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match="has 16 bytes for loadable segment 0, more than the 4"):
        load_kernel(FakeRam(), as_file(make_elf(bytes(16), memsz=4)))


def test_elf_with_too_many_program_headers_is_refused() -> None:
    with pytest.raises(ConfigError, match="202 program headers"):
        load_kernel(FakeRam(), as_file(make_elf(extra=[(0,) * 8] * 200)))


def test_elf_with_notes_beyond_its_end_is_refused() -> None:
    image = make_elf(notes=b"", extra=[(4, 4, 1 << 63, 0, 0, 64, 64, 4)])

    with pytest.raises(ConfigError, match="has notes up to byte"):
        load_kernel(FakeRam(), as_file(image))


def test_elf_with_huge_notes_is_refused_before_they_are_read() -> None:
    image = make_elf(notes=b"", extra=[(4, 4, 0, 0, 0, 1 << 40, 64, 4)])

    with pytest.raises(ConfigError, match="1099511627776 bytes of notes and 65536 is the limit"):
        load_kernel(FakeRam(), as_file(image))
