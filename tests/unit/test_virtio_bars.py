"""BARs in the guest's address space: placed, moved, in each other's way; shares of segments."""

from __future__ import annotations

import pytest

from vmm.boot import layout
from vmm.boot.layout import Area
from vmm.config.vm import VmConfig
from vmm.errors import ConfigError
from vmm.kvm_cffi import ExitRouter, Loop
from vmm.machine.bus import AddressSpaces
from vmm.machine.pci_bus import BarWindow, PciBus, SegmentAreas, segment_areas
from vmm.pci.bar import BarKind
from vmm.pci.segment import SHADOW_SIZE, Segment

MIB = 1 << 20
LOW, HIGH = Area(0xC000_0000, 16 * MIB), Area(1 << 32, 64 * MIB)
SIZE = 0x80000
ALIGNMENT = 8 * MIB
NOTHING = (1 << 32) - 1


class Register:
    """A handler that answers with its name."""

    def __init__(self, value: int) -> None:
        self.value = value

    def read(self, offset: int, size: int) -> int:
        return self.value

    def write(self, offset: int, size: int, value: int) -> None:
        pass


class Follower:
    def __init__(self) -> None:
        self.moves: list[int | None] = []

    def move(self, base: int | None) -> None:
        self.moves.append(base)


class Place:
    """A bus with nothing on it, and where its BARs are seen."""

    def __init__(self) -> None:
        self.spaces = AddressSpaces(ExitRouter(), Loop())
        segment = Segment(0, memoryview(bytearray(SHADOW_SIZE)))
        self.bus = PciBus(segment, SegmentAreas(Area(0, 0), LOW, HIGH), self.spaces)

    def window(self, value: int, follower: Follower | None = None) -> BarWindow:
        window = self.bus.open_window(BarKind.MEMORY64, SIZE, ALIGNMENT, follower)
        window.serve(Register(value))
        return window

    def seen(self, address: int) -> int:
        return self.spaces.mmio.read(address, 4)


@pytest.fixture
def place() -> Place:
    return Place()


def test_windows_are_placed_from_the_high_end_downwards(place: Place) -> None:
    assert place.window(1).address == HIGH.end - ALIGNMENT
    assert place.window(2).address == HIGH.end - 2 * ALIGNMENT
    low = place.bus.open_window(BarKind.MEMORY32, 16, 16)
    assert low.address == LOW.end - 16
    assert place.seen(HIGH.end - ALIGNMENT) == 1
    assert place.seen(HIGH.end - 2 * ALIGNMENT + SIZE - 4) == 2


def test_window_that_moves_is_seen_in_its_new_place_only(place: Place) -> None:
    follower = Follower()
    window = place.window(1, follower)
    before = window.address

    window.move(LOW.base)

    assert place.seen(before) == NOTHING
    assert place.seen(LOW.base) == 1
    assert follower.moves == [before, None, LOW.base]


def test_window_that_is_moved_to_where_it_is_stays_untouched(place: Place) -> None:
    follower = Follower()
    window = place.window(1, follower)

    window.move(window.address)

    assert place.seen(window.address) == 1
    assert follower.moves == [window.address]


def test_window_without_decoding_keeps_its_addresses(place: Place) -> None:
    window = place.window(1)
    address = window.address

    window.move(None)
    other = place.window(2)
    window.move(address)

    assert place.seen(address) == 1
    assert place.seen(other.address) == 2


def test_windows_change_places_whatever_the_order(place: Place) -> None:
    first, second = place.window(1), place.window(2)
    one, two = first.address, second.address

    first.move(two)
    assert (place.seen(one), place.seen(two)) == (NOTHING, 2)

    second.move(one)
    assert (place.seen(one), place.seen(two)) == (2, 1)


@pytest.mark.parametrize("address", [0, 0xFEE0_0000, HIGH.end, HIGH.end - SIZE // 2, 1 << 52])
def test_window_outside_the_areas_is_out_of_reach_until_it_comes_back(
    place: Place, address: int
) -> None:
    window = place.window(1)
    home = window.address

    window.move(address)
    assert place.seen(address) == place.seen(home) == NOTHING

    window.move(home)
    assert place.seen(home) == 1


def test_closed_window_leaves_room_for_the_next_and_for_who_waits(place: Place) -> None:
    first, second = place.window(1), place.window(2)
    one, two = first.address, second.address
    second.move(one)

    with first:
        pass

    assert (place.seen(one), place.seen(two)) == (2, NOTHING)
    assert place.window(3).address == two


def test_full_area_is_the_caller_s_fault(place: Place) -> None:
    for value in range(8):
        place.window(value)

    with pytest.raises(ConfigError, match="64-bit device area"):
        place.window(8)


def areas_of(**sections: object) -> list[SegmentAreas]:
    config = VmConfig.model_validate({"payload": {"kernel": "/k"}, **sections})
    return segment_areas(config, layout.device_areas(1 << 30, 46))


def test_one_segment_has_all_addresses() -> None:
    areas = layout.device_areas(1 << 30, 46)

    [only] = areas_of()

    assert only == (Area(layout.ECAM, MIB), areas.mmio32, areas.mmio64)


def test_segments_share_the_addresses_by_weight() -> None:
    shares = areas_of(
        platform={"num_pci_segments": 3},
        pci_segments=[{"pci_segment": 1, "mmio32_aperture_weight": 2, "mmio64_aperture_weight": 6}],
    )
    whole = layout.device_areas(1 << 30, 46)

    assert [share.ecam.base for share in shares] == [layout.ECAM + i * MIB for i in range(3)]
    assert [share.mmio32.size for share in shares] == [160 * MIB, 320 * MIB, 160 * MIB]
    assert shares[1].mmio64.size == 6 * shares[0].mmio64.size
    assert shares[2].mmio64.end == whole.mmio64.end
    assert all(share.mmio64.size % (4 << 30) == 0 for share in shares[:2])
