"""Where page tables put an address, in each of the modes of a processor."""

from __future__ import annotations

import struct

import pytest

from vmm.errors import GuestError
from vmm.gdb import paging
from vmm.gdb.paging import translate
from vmm.kvm_cffi.structs import Sregs

PRESENT, LARGE = 1, 0x81
LONG = Sregs(cr0=paging.CR0_PG, cr4=paging.CR4_PAE, efer=paging.EFER_LMA, cr3=0x1000)


class Memory:
    """A few entries of tables."""

    def __init__(self, entries: dict[int, int], size: int = 8) -> None:
        self._entries = entries
        self._size = size

    def read(self, at: int, size: int) -> bytes:
        assert size == self._size
        if at >= 1 << 30:
            raise GuestError("outside of RAM")
        return struct.pack("<Q", self._entries.get(at, 0))[:size]


def test_without_paging_an_address_is_its_own() -> None:
    assert translate(Memory({}).read, Sregs(), 0x12_3456) == 0x12_3456


@pytest.mark.parametrize(
    ("entries", "address", "place"),
    [
        # Slot 511 of the top table, then the first slots, to a page of 4 KiB.
        (
            {0x1FF8: 0x2001, 0x2000: 0x3001, 0x3000: 0x4001, 0x4000: 0x7_7000 | PRESENT},
            0xFFFF_FF80_0000_0123,
            0x7_7123,
        ),
        ({0x1000: 0x2001, 0x2000: 0x3001, 0x3008: 0x40_0000 | LARGE}, 0x20_1234, 0x40_1234),
        ({0x1000: 0x2001, 0x2008: 0x8000_0000 | LARGE}, 0x4000_0042, 0x8000_0042),
        ({0x1000: 0x2001, 0x2000: 0}, 0x1000, None),
        ({}, 0, None),
    ],
)
def test_four_levels_lead_to_pages_of_each_size(
    entries: dict[int, int], address: int, place: int | None
) -> None:
    assert translate(Memory(entries).read, LONG, address) == place


def test_bits_that_are_no_address_are_left_out() -> None:
    entries = {0x1000: 1 << 63 | 0x2001, 0x2000: 0x3001, 0x3000: 0x4001, 0x4000: 1 << 63 | 0x7001}

    assert translate(Memory(entries).read, LONG, 5) == 0x7005


def test_five_levels_have_one_table_more() -> None:
    entries = {0x1008: 0x2001, 0x2000: 0x3001, 0x3000: 0x4001, 0x4000: 0x5001, 0x5000: 0x9001}
    sregs = Sregs(
        cr0=paging.CR0_PG,
        cr4=paging.CR4_PAE | paging.CR4_LA57,
        efer=paging.EFER_LMA,
        cr3=0x1000,
    )

    assert translate(Memory(entries).read, sregs, 1 << 48) == 0x9000


def test_pae_begins_with_four_entries() -> None:
    entries = {0x1018 + 0x20: 0x2001, 0x2000: 0x3001, 0x3000: 0x5001}
    sregs = Sregs(cr0=paging.CR0_PG, cr4=paging.CR4_PAE, cr3=0x1020)

    assert translate(Memory(entries).read, sregs, 0xC000_0007) == 0x5007
    assert translate(Memory(entries).read, sregs, 0x7) is None


def test_old_tables_have_entries_of_four_bytes() -> None:
    entries = {0x1004: 0x2001, 0x2000: 0x6001, 0x1008: 0x0080_0000 | LARGE}
    memory = Memory(entries, size=4)
    sregs = Sregs(cr0=paging.CR0_PG, cr4=paging.CR4_PSE, cr3=0x1000)

    assert translate(memory.read, sregs, 0x40_0010) == 0x6010
    assert translate(memory.read, sregs, 0x80_1234) == 0x0080_1234
    assert translate(memory.read, sregs, 0) is None


def test_table_outside_of_ram_is_the_guests_fault() -> None:
    with pytest.raises(GuestError):
        translate(Memory({0x1000: (1 << 40) | PRESENT}).read, LONG, 0)
