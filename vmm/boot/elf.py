"""ELF images with a PVH entry: vmlinux, and firmware such as CLOUDHV.fd.

All that is used are the program headers: an image without section headers boots as well.

Specification: System V ABI, chapters 4 and 5; Xen's PVH boot protocol (note type 18,
XEN_ELFNOTE_PHYS32_ENTRY).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from vmm.boot.entry import KernelEntry, require_ram
from vmm.boot.payload import PayloadFile
from vmm.boot.ram import BootRam

MAGIC = b"\x7fELF"
CLASS_64 = 2
LITTLE_ENDIAN = 1
MACHINES = (3, 62)
"""The entry is 32-bit code, so that CLOUDHV.fd, a 64-bit image, says 80386; kernels say x86-64."""
PT_LOAD = 1
PT_NOTE = 4
NOTE_PHYS32_ENTRY = 18

FILE_HEADER = struct.Struct("<4s5B7xHHIQQQIHHHHHH")
PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
NOTE_HEADER = struct.Struct("<III")
MAX_PROGRAM_HEADERS = 128
MAX_NOTES_SIZE = 64 << 10

ZEROS = memoryview(bytes(1 << 20))


class Segment(NamedTuple):
    """One program header, with the names of the specification; sizes in bytes."""

    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int


def is_elf(head: bytes) -> bool:
    """Whether a file that begins like this claims to be ELF."""
    return head.startswith(MAGIC)


def load(memory: BootRam, file: PayloadFile, head: bytes) -> KernelEntry:
    """Load an ELF image's segments at their physical addresses.

    Raises: ConfigError (caller) when the image is malformed, has no PVH note, or does not fit into
    RAM; HostError when it cannot be read.
    """
    size = file.size()
    segments = _read_program_headers(file, head, size)
    entry = _find_pvh_entry(file, segments, size)
    loaded = [segment for segment in segments if segment.type == PT_LOAD and segment.memsz]
    if not any(segment.paddr <= entry < segment.paddr + segment.memsz for segment in loaded):
        raise file.refuse(
            f"has its PVH entry at {entry:#x}, which none of its {len(loaded)} loadable segments "
            f"covers; use an intact image"
        )
    for index, segment in enumerate(loaded):
        _check_segment(memory, file, segment, f"loadable segment {index}", size)
    for segment in loaded:
        if segment.filesz:
            file.load(memory, segment.paddr, segment.filesz, segment.offset)
        _zero(memory, segment.paddr + segment.filesz, segment.memsz - segment.filesz)
    return KernelEntry("pvh", entry, max(segment.paddr + segment.memsz for segment in loaded))


def _read_program_headers(file: PayloadFile, head: bytes, size: int) -> list[Segment]:
    if len(head) < FILE_HEADER.size:
        raise file.refuse(
            f"ends after {len(head)} bytes, within an ELF header of {FILE_HEADER.size}; use an "
            f"intact image"
        )
    header = FILE_HEADER.unpack_from(head)
    elf_class, byte_order = header[1:3]
    machine = header[7]
    offset = header[10]
    entry_size, count = header[14:16]
    if (elf_class, byte_order) != (CLASS_64, LITTLE_ENDIAN) or machine not in MACHINES:
        raise file.refuse(
            f"is an ELF image of class {elf_class}, byte order {byte_order}, machine {machine}, "
            f"and only 64-bit (2), little-endian (1), x86 (3 or 62) boots; build it for x86-64 or "
            f"pass a bzImage"
        )
    if entry_size != PROGRAM_HEADER.size or not 0 < count <= MAX_PROGRAM_HEADERS:
        raise file.refuse(
            f"has {count} program headers of {entry_size} bytes, and 1 to {MAX_PROGRAM_HEADERS} of "
            f"{PROGRAM_HEADER.size} are accepted; use an intact image"
        )
    table_size = count * entry_size
    if offset + table_size > size:
        raise file.refuse(
            f"has its program headers at {offset:#x}, beyond its end at {size:#x}; use an intact "
            f"image"
        )
    table = file.read(offset, table_size)
    if len(table) < table_size:
        raise file.refuse("became shorter while it was read; use a file that nobody writes")
    return [Segment(*fields) for fields in PROGRAM_HEADER.iter_unpack(table)]


def _find_pvh_entry(file: PayloadFile, segments: Sequence[Segment], size: int) -> int:
    for segment in segments:
        if segment.type != PT_NOTE:
            continue
        if segment.filesz > MAX_NOTES_SIZE:
            raise file.refuse(
                f"has {segment.filesz} bytes of notes and {MAX_NOTES_SIZE} is the limit; use an "
                f"intact image"
            )
        if segment.offset + segment.filesz > size:
            raise file.refuse(
                f"has notes up to byte {segment.offset + segment.filesz} and ends at byte {size}; "
                f"use an intact image"
            )
        notes = file.read(segment.offset, segment.filesz)
        entry = find_pvh_note(notes, 8 if segment.align == 8 else 4)
        if entry is not None:
            return entry
    raise file.refuse(
        f"lacks a PVH note (type {NOTE_PHYS32_ENTRY} of Xen), which says where it is entered; "
        f"build the kernel with CONFIG_PVH=y or pass a bzImage"
    )


def find_pvh_note(notes: bytes, align: int) -> int | None:
    """Find the 32-bit entry among the notes of one segment; None where there is none.

    Units: ``align`` in bytes, what names and descriptions are padded to.
    """
    at = 0
    while at + NOTE_HEADER.size <= len(notes):
        name_size, value_size, kind = NOTE_HEADER.unpack_from(notes, at)
        name_at = at + NOTE_HEADER.size
        value_at = _round_up(name_at + name_size, align)
        end = value_at + value_size
        if end > len(notes):
            return None
        name = notes[name_at : name_at + name_size].rstrip(b"\0")
        if kind == NOTE_PHYS32_ENTRY and name == b"Xen" and value_size in (4, 8):
            return int.from_bytes(notes[value_at:end], "little")
        at = _round_up(end, align)
    return None


def _check_segment(
    memory: BootRam, file: PayloadFile, segment: Segment, name: str, size: int
) -> None:
    if segment.filesz > segment.memsz:
        raise file.refuse(
            f"has {segment.filesz} bytes for {name}, more than the {segment.memsz} it takes in "
            f"memory; use an intact image"
        )
    if segment.filesz and segment.offset + segment.filesz > size:
        raise file.refuse(
            f"ends at byte {size}, and its {name} ends at byte {segment.offset + segment.filesz}; "
            f"use an intact image"
        )
    require_ram(memory, file, segment.paddr, segment.paddr + segment.memsz, name)


def _zero(memory: BootRam, gpa: int, size: int) -> None:
    """Clear what an image expects to be zero: RAM made of a file may hold something else."""
    while size:
        step = min(size, len(ZEROS))
        memory.write(gpa, ZEROS[:step])
        gpa += step
        size -= step


def _round_up(value: int, align: int) -> int:
    return -(-value // align) * align
