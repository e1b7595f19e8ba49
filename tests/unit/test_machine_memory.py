"""Guest memory: how zones are laid out, and that no access leaves RAM."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmm.boot.layout import RamRange, ram_ranges
from vmm.config.memory import MemoryConfig
from vmm.errors import ConfigError, GuestError, HostError
from vmm.machine.memory import GuestMemory, Zone, lay_out, zones_of

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
