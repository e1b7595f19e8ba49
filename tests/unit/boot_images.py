"""A fake of guest RAM and makers of small kernel images, for the tests of the boot layer."""

from __future__ import annotations

import io
import mmap
import struct
from collections.abc import Sequence

from vmm.boot.layout import MIB, RamRange
from vmm.boot.payload import PayloadFile
from vmm.errors import GuestError

LOAD_AT = 2 * MIB
PT_LOAD = 1
PT_NOTE = 4


class FakeRam:
    """RAM that is mapped lazily: an untouched page costs nothing."""

    def __init__(self, *ranges: tuple[int, int]) -> None:
        self.ram = tuple(RamRange(*pair) for pair in ranges or ((0, 64 * MIB),))
        self._mappings = [mmap.mmap(-1, piece.size) for piece in self.ram]

    def read(self, gpa: int, size: int) -> bytes:
        mapping, offset = self._find(gpa, size)
        return mapping[offset : offset + size]

    def write(self, gpa: int, data: bytes | memoryview) -> None:
        mapping, offset = self._find(gpa, len(data))
        mapping[offset : offset + len(data)] = bytes(data)

    def write_from_file(
        self, gpa: int, size: int, file: io.BufferedIOBase | io.RawIOBase, offset: int
    ) -> None:
        mapping, at = self._find(gpa, size)
        file.seek(offset)
        with memoryview(mapping) as view, view[at : at + size] as target:
            assert file.readinto(target) == size

    def _find(self, gpa: int, size: int) -> tuple[mmap.mmap, int]:
        for piece, mapping in zip(self.ram, self._mappings, strict=True):
            if piece.gpa <= gpa and gpa + size <= piece.end:
                return mapping, gpa - piece.gpa
        raise GuestError(f"{gpa:#x}+{size:#x} is not RAM")


def as_file(data: bytes, role: str = "kernel") -> PayloadFile:
    """A payload that lies in memory."""
    return PayloadFile(io.BytesIO(data), f"/{role}", role)


def note(name: bytes, kind: int, value: bytes, align: int = 4) -> bytes:
    """One ELF note, padded."""

    def pad(data: bytes) -> bytes:
        return data + bytes(-len(data) % align)

    head = pad(struct.pack("<III", len(name), len(value), kind) + name)
    return head + pad(value)


def pvh_note(entry: int, size: int = 4) -> bytes:
    """The note that says where a kernel is entered."""
    return note(b"Xen\0", 18, entry.to_bytes(size, "little"))


def make_elf(
    code: bytes = b"\xf4",
    *,
    notes: bytes | None = None,
    paddr: int = LOAD_AT,
    memsz: int | None = None,
    machine: int = 62,
    note_align: int = 4,
    extra: Sequence[tuple[int, ...]] = (),
) -> bytes:
    """An ELF image with one segment of code, one of notes, and no section headers.

    ``extra`` are more program headers: type, flags, offset, vaddr, paddr, filesz, memsz, align.
    """
    if notes is None:
        notes = pvh_note(paddr)
    count = 2 + len(extra)
    code_at = 64 + 56 * count
    note_at = code_at + len(code) + -(code_at + len(code)) % 8
    memsz = len(code) if memsz is None else memsz
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        2,
        machine,
        1,
        paddr,
        64,
        0,
        0,
        64,
        56,
        count,
        0,
        0,
        0,
    )
    table = [
        (PT_LOAD, 7, code_at, 0, paddr, len(code), memsz, 1),
        (PT_NOTE, 4, note_at, 0, 0, len(notes), len(notes), note_align),
        *extra,
    ]
    headers = b"".join(struct.pack("<IIQQQQQQ", *fields) for fields in table)
    return (header + headers + code).ljust(note_at, b"\0") + notes


def make_bzimage(
    code: bytes = bytes(range(256)) * 2,
    *,
    version: int = 0x20F,
    loadflags: int = 1,
    code32_start: int = 0x100000,
    setup_sectors: int = 2,
    paragraphs: int | None = None,
    pref_address: int = 0,
    init_size: int = 0,
    initrd_addr_max: int = 0x7FFFFFFF,
) -> bytes:
    """A bzImage whose fields are true unless told otherwise."""
    setup = bytearray(((setup_sectors or 4) + 1) * 512)
    setup[0x1F1] = setup_sectors
    struct.pack_into("<I", setup, 0x1F4, len(code) // 16 if paragraphs is None else paragraphs)
    struct.pack_into("<H", setup, 0x1FE, 0xAA55)
    setup[0x200:0x202] = b"\xeb\x66"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, version)
    setup[0x211] = loadflags
    struct.pack_into("<I", setup, 0x214, code32_start)
    struct.pack_into("<I", setup, 0x22C, initrd_addr_max)
    struct.pack_into("<QI", setup, 0x258, pref_address, init_size)
    return bytes(setup) + code
