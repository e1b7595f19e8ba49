"""Hostile kernels.

Invariant: whatever the bytes of a kernel are, it is loaded or refused with ConfigError; nothing
outside RAM and nothing below 1 MiB is written, and no read into our own memory is longer than
READ_LIMIT.
"""

from __future__ import annotations

import contextlib
import io
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.boot_images import FakeRam, make_bzimage, make_elf, note, pvh_note
from vmm.boot.elf import find_pvh_note
from vmm.boot.layout import HIGH_RAM, MIB
from vmm.boot.loader import load_kernel
from vmm.boot.payload import PayloadFile
from vmm.errors import ConfigError

RAM_SIZE = 4 * MIB
READ_LIMIT = 64 << 10

edges = st.sampled_from(
    [0, 1, 4, 0x1000, HIGH_RAM - 1, HIGH_RAM, RAM_SIZE - 1, RAM_SIZE, 1 << 31, 1 << 32, 1 << 63]
) | st.integers(0, (1 << 64) - 1)
headers = st.tuples(
    st.sampled_from([0, 1, 4, 0x6474E551]),
    st.integers(0, 7),
    edges,
    edges,
    edges,
    edges,
    edges,
    st.sampled_from([0, 1, 4, 8, 1 << 63]),
)
patches = st.lists(st.tuples(st.integers(0, 0x270), st.binary(min_size=1, max_size=8)), max_size=6)


class WatchedFile(io.BytesIO):
    """A file that notes how much is read into memory of our own at once."""

    longest = 0

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert size >= 0
        self.longest = max(self.longest, size)
        return super().read(size)


class WatchedRam(FakeRam):
    """RAM that refuses what would destroy the boot tables."""

    def write(self, gpa: int, data: bytes | memoryview) -> None:
        assert gpa >= HIGH_RAM
        super().write(gpa, data)

    def write_from_file(
        self, gpa: int, size: int, file: io.BufferedIOBase | io.RawIOBase, offset: int
    ) -> None:
        assert gpa >= HIGH_RAM
        super().write_from_file(gpa, size, file, offset)


def load_or_refuse(image: bytes) -> None:
    file = WatchedFile(image)
    with contextlib.suppress(ConfigError):
        entry = load_kernel(WatchedRam((0, RAM_SIZE)), PayloadFile(file, "/kernel"))
        assert HIGH_RAM <= entry.address < entry.end <= RAM_SIZE
    assert file.longest <= READ_LIMIT


def patched(image: bytes, changes: list[tuple[int, bytes]]) -> bytes:
    changed = bytearray(image)
    for offset, data in changes:
        changed[offset : offset + len(data)] = data
    return bytes(changed)


@given(st.binary(max_size=2048))
@settings(deadline=None)
def test_kernel_of_any_bytes_is_loaded_or_refused(image: bytes) -> None:
    load_or_refuse(image)


@given(st.binary(max_size=2048))
@settings(deadline=None)
def test_kernel_of_any_bytes_behind_the_elf_magic_is_loaded_or_refused(rest: bytes) -> None:
    load_or_refuse(b"\x7fELF\x02\x01" + rest)


@given(patches)
@settings(deadline=None)
def test_elf_with_any_change_is_loaded_or_refused(changes: list[tuple[int, bytes]]) -> None:
    load_or_refuse(patched(make_elf(bytes(700)), changes))


@given(st.lists(headers, min_size=1, max_size=4), st.binary(max_size=64))
@settings(deadline=None)
def test_elf_with_any_program_headers_is_loaded_or_refused(
    extra: list[tuple[int, ...]], notes: bytes
) -> None:
    load_or_refuse(make_elf(extra=extra))
    load_or_refuse(make_elf(notes=notes, extra=extra))


@given(edges, st.integers(0, 1 << 33), st.sampled_from([4, 8]))
@settings(deadline=None)
def test_elf_with_any_entry_and_size_is_loaded_or_refused(
    paddr: int, memsz: int, width: int
) -> None:
    notes = pvh_note(paddr & (1 << 8 * width) - 1, width)

    load_or_refuse(make_elf(notes=notes, paddr=paddr, memsz=memsz))


@given(st.binary(max_size=256), st.sampled_from([4, 8]))
def test_notes_of_any_bytes_are_walked_to_their_end(notes: bytes, align: int) -> None:
    entry = find_pvh_note(notes, align)

    assert entry is None or 0 <= entry < 1 << 64


@given(st.binary(min_size=1, max_size=9), st.integers(0, 100), st.binary(max_size=40))
def test_notes_before_the_right_one_do_not_hide_it(name: bytes, kind: int, value: bytes) -> None:
    other = note(b"other" + name, kind, value)

    assert find_pvh_note(other + pvh_note(0x1234567), 4) == 0x1234567


@given(patches, st.integers(0, 0xFF), st.binary(max_size=600))
@settings(deadline=None)
def test_bzimage_with_any_change_is_loaded_or_refused(
    changes: list[tuple[int, bytes]], setup_sectors: int, code: bytes
) -> None:
    image = patched(make_bzimage(code), changes)

    load_or_refuse(image)
    load_or_refuse(patched(image, [(0x1F1, bytes([setup_sectors]))]))


@given(st.integers(0, 0xFFFF), st.binary(min_size=0x60, max_size=0x60), edges, edges)
@settings(deadline=None)
def test_bzimage_with_any_fields_is_loaded_or_refused(
    version: int, fields: bytes, code32_start: int, pref_address: int
) -> None:
    image = patched(
        make_bzimage(),
        [
            (0x206, struct.pack("<H", version) + fields[:0x50]),
            (0x211, b"\x01"),
            (0x214, struct.pack("<I", code32_start & 0xFFFFFFFF)),
            (0x258, struct.pack("<Q", pref_address)),
        ],
    )

    load_or_refuse(image)


@given(st.integers(0, 2000))
@settings(deadline=None)
def test_images_cut_anywhere_are_loaded_or_refused(length: int) -> None:
    load_or_refuse(make_bzimage()[:length])
    load_or_refuse(make_elf(bytes(1500))[:length])
