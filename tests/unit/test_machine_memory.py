"""Guest memory: how zones are laid out, and that no access leaves RAM."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from vmm.boot.layout import RamRange, ram_ranges
from vmm.config.memory import MemoryConfig
from vmm.errors import ConfigError, GuestError, HostError, InternalError
from vmm.machine.memory import GuestMemory
from vmm.machine.zones import Zone, lay_out, zones_of

MIB = 1 << 20
GIB = 1 << 30


@pytest.fixture
def two_ranges() -> Iterator[GuestMemory]:
    """8 MiB from address 0 in two zones, and 4 MiB at 4 GiB."""
    zones = [Zone("low", 4 * MIB), Zone("high", 8 * MIB)]
    with GuestMemory.open(zones, [RamRange(0, 8 * MIB), RamRange(4 * GIB, 4 * MIB)]) as memory:
        yield memory


def test_zones_of_a_size_alone_is_one_zone() -> None:
    zones = zones_of(MemoryConfig(size=64 * MIB, shared=True))

    assert [(zone.id, zone.size, zone.shared) for zone in zones] == [("mem0", 64 * MIB, True)]


def test_zones_of_size_zero_are_those_that_are_listed() -> None:
    config = MemoryConfig.model_validate(
        {"size": 0, "zones": [{"id": "a", "size": MIB}, {"id": "b", "size": 2 * MIB}]}
    )

    assert [zone.id for zone in zones_of(config)] == ["a", "b"]


def test_lay_out_of_more_than_3_gib_splits_the_zone_at_the_hole() -> None:
    pieces = lay_out([Zone("mem0", 5 * GIB)], ram_ranges(5 * GIB))

    assert [(piece.range, piece.offset) for piece in pieces] == [
        (RamRange(0, 3 * GIB), 0),
        (RamRange(4 * GIB, 2 * GIB), 3 * GIB),
    ]


@pytest.mark.parametrize("size", [0, 1, 4095, 4097])
def test_lay_out_of_a_size_that_is_no_whole_page_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match="page size 4096; round it up"):
        lay_out([Zone("mem0", size)], ram_ranges(size))


def test_lay_out_that_splits_a_huge_page_is_refused() -> None:
    small = Zone("small", 4096)
    huge = Zone("huge", 4 * GIB, hugepages=True, hugepage_size=GIB)

    with pytest.raises(ConfigError, match="inside a page"):
        lay_out([small, huge], ram_ranges(small.size + huge.size))


def test_ram_of_contiguous_zones_is_one_range(two_ranges: GuestMemory) -> None:
    assert two_ranges.ram == (RamRange(0, 8 * MIB), RamRange(4 * GIB, 4 * MIB))
    assert two_ranges.size == 12 * MIB


def test_write_across_two_zones_is_read_back(two_ranges: GuestMemory) -> None:
    data = bytes(range(256)) * 16
    two_ranges.write(4 * MIB - 100, data)

    assert two_ranges.read(4 * MIB - 100, len(data)) == data


@pytest.mark.parametrize(
    ("gpa", "size"),
    [(8 * MIB, 1), (8 * MIB - 1, 2), (4 * GIB - 1, 2), (4 * GIB + 4 * MIB, 1), (1 << 63, 8)],
)
def test_access_that_leaves_ram_is_the_guests_fault(
    two_ranges: GuestMemory, gpa: int, size: int
) -> None:
    with pytest.raises(GuestError, match="is not RAM"):
        two_ranges.read(gpa, size)
    with pytest.raises(GuestError, match="is not RAM"):
        two_ranges.write(gpa, bytes(size))


def test_write_that_leaves_ram_writes_nothing(two_ranges: GuestMemory) -> None:
    with pytest.raises(GuestError):
        two_ranges.write(8 * MIB - 4, b"\xff" * 8)

    assert two_ranges.read(8 * MIB - 4, 4) == bytes(4)


def test_write_from_a_file_copies_the_piece(two_ranges: GuestMemory, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"head" + b"body" * 1000)
    with path.open("rb", buffering=0) as file:
        two_ranges.write_from_file(4 * MIB - 8, 4000, file, 4)

    assert two_ranges.read(4 * MIB - 8, 4000) == b"body" * 1000


def test_write_from_a_file_that_is_too_short_is_refused(
    two_ranges: GuestMemory, tmp_path: Path
) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"short")
    with path.open("rb", buffering=0) as file, pytest.raises(ConfigError, match="ends at byte 5"):
        two_ranges.write_from_file(0, 4096, file, 0)
    assert isinstance(file, io.RawIOBase)


def test_file_zone_that_is_split_shows_the_file_in_order(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    zone = Zone("file", 8 * MIB, file=str(path), shared=True)
    with GuestMemory.open([zone], [RamRange(0, 4 * MIB), RamRange(4 * GIB, 4 * MIB)]) as memory:
        memory.write(0, b"first")
        memory.write(4 * GIB, b"second")

    content = path.read_bytes()
    assert content[:5] == b"first"
    assert content[4 * MIB : 4 * MIB + 6] == b"second"


def test_huge_pages_that_the_host_has_not_are_refused_with_the_way_to_get_them() -> None:
    zone = Zone("huge", GIB * 1024, hugepages=True, hugepage_size=2 * MIB)

    with (
        pytest.raises(HostError, match="nr_hugepages"),
        GuestMemory.open([zone], [RamRange(0, zone.size)]),
    ):
        pass


def test_prefault_makes_the_pages_resident() -> None:
    zone = Zone("mem0", 4 * MIB, shared=True, prefault=True)
    with GuestMemory.open([zone], [RamRange(0, zone.size)]) as memory:
        list(memory.populate())

        status = Path("/proc/self/smaps").read_text()

    block = status.split("ram-mem0")[1]
    resident_kib = int(block.split("Rss:")[1].split()[0])
    assert resident_kib == 4096


def resident_pages(memory: GuestMemory, gpa: int, size: int) -> int:
    """How many pages of a range, inside one region, are in memory (mincore knows only of files)."""
    [region] = [each for each in memory.regions if each.gpa <= gpa < each.gpa + each.size]
    start = region.hva + gpa - region.gpa
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        entries = os.pread(pagemap.fileno(), size // 4096 * 8, start // 4096 * 8)
    return sum(entry >> 63 for (entry,) in struct.iter_unpack("<Q", entries))


@pytest.mark.parametrize("shared", [False, True], ids=["private", "memfd"])
def test_discard_gives_whole_pages_back_and_they_read_as_zeros(shared: bool) -> None:
    zone = Zone("ram", MIB, shared=shared, thp=False)
    with GuestMemory.open([zone], [RamRange(0, MIB)]) as memory:
        memory.write(0, b"x" * MIB)
        assert resident_pages(memory, 0, MIB) == 256

        memory.discard(4096 - 8, 4 * 4096)

        assert resident_pages(memory, 0, MIB) == 256 - 3
        assert memory.read(4096 - 8, 4 * 4096) == b"x" * 8 + bytes(3 * 4096) + b"x" * (4096 - 8)


def test_discard_of_a_shared_file_punches_a_hole_into_it(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    zone = Zone("ram", MIB, file=str(path), shared=True)
    with GuestMemory.open([zone], [RamRange(0, MIB)]) as memory:
        memory.write(0, b"x" * MIB)
        before = path.stat().st_blocks

        memory.discard(0, MIB // 2)

        assert path.stat().st_blocks <= before // 2
        assert path.read_bytes() == bytes(MIB // 2) + b"x" * (MIB // 2)


def test_discard_of_a_private_copy_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(b"file" * (MIB // 4))
    with GuestMemory.open([Zone("ram", MIB, file=str(path))], [RamRange(0, MIB)]) as memory:
        memory.write(0, b"x" * MIB)

        memory.discard(0, MIB)

        assert memory.read(0, 8) == b"filefile"
    assert path.read_bytes() == b"file" * (MIB // 4)


def test_discard_crosses_zones_but_not_the_end_of_ram(two_ranges: GuestMemory) -> None:
    for gpa in (0, 4 * GIB):
        two_ranges.write(gpa, b"x" * 4 * MIB)
    two_ranges.write(4 * MIB, b"x" * 4 * MIB)

    two_ranges.discard(4 * MIB - 4096, 8192)
    with pytest.raises(GuestError, match="0x800000 is not RAM"):
        two_ranges.discard(8 * MIB - 4096, 8192)

    assert two_ranges.read(4 * MIB - 4096, 8192) == bytes(8192)
    assert two_ranges.read(8 * MIB - 4096, 4096) == b"x" * 4096


@pytest.mark.parametrize(("gpa", "size"), [(1 << 64, 4096), ((1 << 44) - 4096, 4096), (9 * MIB, 1)])
def test_discard_outside_ram_is_the_guest_s_fault(
    two_ranges: GuestMemory, gpa: int, size: int
) -> None:
    with pytest.raises(GuestError, match="is not RAM"):
        two_ranges.discard(gpa, size)


def test_discard_of_less_than_a_huge_page_keeps_it() -> None:
    with GuestMemory.open([Zone("ram", 4 * MIB)], [RamRange(0, 4 * MIB)]) as small:
        # Not mapped with huge pages, which a host need not have: only the zone's word counts here.
        huge = Zone("huge", 4 * MIB, file="/dev/hugepages/ram", hugepages=True)
        regions = [region._replace(zone=huge) for region in small.regions]
        memory = GuestMemory(regions, ExitStack())
        memory.write(0, b"x" * 4 * MIB)

        memory.discard(4096, 2 * MIB)
        assert memory.read(0, 4 * MIB) == b"x" * 4 * MIB

        memory.discard(4096, 4 * MIB - 4096)
        assert memory.read(2 * MIB - 1, 2 * MIB + 1) == b"x" + bytes(2 * MIB)


def test_gpa_of_a_view_is_where_the_guest_has_it(two_ranges: GuestMemory) -> None:
    low, _, high = two_ranges.regions

    assert two_ranges.gpa_of(low.view[4096:8192]) == 4096
    assert two_ranges.gpa_of(high.view[100:]) == 4 * GIB + 100
    with pytest.raises(InternalError, match="host address"):
        two_ranges.gpa_of(memoryview(bytearray(8)))
