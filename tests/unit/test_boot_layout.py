"""The memory map: where RAM and device areas lie."""

from __future__ import annotations

import pytest

from vmm.boot import layout
from vmm.boot.layout import GIB, MIB, Area, Growth, device_areas, ram_ranges, split_area
from vmm.boot.memmap import memory_map
from vmm.errors import ConfigError


def test_ram_below_the_hole_is_one_range() -> None:
    assert ram_ranges(512 * MIB) == [(0, 512 * MIB)]


def test_ram_that_just_fills_up_to_the_hole_is_one_range() -> None:
    assert ram_ranges(3 * GIB) == [(0, 3 * GIB)]


def test_ram_beyond_the_hole_goes_on_at_4_gib() -> None:
    assert ram_ranges(5 * GIB) == [(0, 3 * GIB), (4 * GIB, 2 * GIB)]


def test_device_areas_of_a_small_machine_begin_at_4_gib_and_end_below_the_platform() -> None:
    areas = device_areas(512 * MIB, 46)

    assert areas.mmio32 == Area(0xC0000000, 640 * MIB)
    assert areas.mmio32.end == areas.ecam.base == 0xE8000000
    assert areas.platform.end == 2**46 - 64 * 1024
    assert areas.platform.size == MIB
    assert areas.mmio64.base == 4 * GIB
    assert areas.mmio64.end == areas.platform.base


def test_device_areas_of_a_big_machine_begin_where_ram_ends() -> None:
    assert device_areas(6 * GIB + 4096, 46).mmio64.base == 7 * GIB + 4096


def test_device_areas_with_hotplug_leave_room_from_the_next_128_mib_on() -> None:
    areas = device_areas(6 * GIB + 4096, 46, hotplug_size=GIB)

    assert areas.mmio64.base == 7 * GIB + 128 * MIB + GIB


def test_device_areas_of_a_small_machine_with_hotplug_put_its_memory_above_4_gib() -> None:
    assert device_areas(512 * MIB, 46, hotplug_size=2 * GIB).mmio64.base == 6 * GIB


def test_device_areas_leave_each_zone_that_grows_its_aligned_room() -> None:
    rooms = [Growth(256 * MIB, 128 * MIB), Growth(2 * GIB, GIB), Growth(128 * MIB, 128 * MIB)]

    areas = device_areas(4 * GIB + MIB, 46, virtio_mem=rooms)

    assert areas.hotplug is None
    assert areas.virtio_mem == (
        Area(5 * GIB + 128 * MIB, 256 * MIB),
        Area(6 * GIB, 2 * GIB),
        Area(8 * GIB, 128 * MIB),
    )
    assert areas.mmio64.base == 8 * GIB + 128 * MIB


def test_device_areas_of_a_small_machine_put_what_it_grows_by_above_4_gib() -> None:
    assert device_areas(MIB, 46, virtio_mem=[Growth(GIB, MIB)]).virtio_mem == (Area(4 * GIB, GIB),)


def test_device_areas_with_more_room_than_addresses_are_refused() -> None:
    with pytest.raises(ConfigError, match="with 65536 MiB for hot-plug"):
        device_areas(GIB, 36, virtio_mem=[Growth(32 * GIB, MIB), Growth(32 * GIB, MIB)])


def test_device_areas_with_more_ram_than_addresses_name_both() -> None:
    with pytest.raises(ConfigError, match=r"65536 MiB .* 36 bits .* max_phys_bits"):
        device_areas(64 * GIB, 36)


def test_platform_pages_are_dealt_from_the_top() -> None:
    areas = device_areas(512 * MIB, 40)

    pages = [areas.platform_page(index) for index in range(3)]

    assert pages == [2**40 - 0x11000, 2**40 - 0x12000, 2**40 - 0x13000]


def test_area_split_by_weight_gives_the_rest_to_the_last() -> None:
    shares = split_area(Area(0x1000, 0x9000), 0x1000, (1, 2, 1))

    assert shares == [Area(0x1000, 0x2000), Area(0x3000, 0x4000), Area(0x7000, 0x3000)]


def test_memory_map_leaves_the_tables_out_and_reserves_the_ecam() -> None:
    assert memory_map(ram_ranges(5 * GIB)) == [
        (0, 0xA0000, 1),
        (MIB, 3 * GIB - MIB, 1),
        (4 * GIB, 2 * GIB, 1),
        (0xE8000000, 256 * MIB, 2),
    ]


def test_memory_map_merges_ranges_that_touch() -> None:
    ram = [layout.RamRange(0, 2 * MIB), layout.RamRange(2 * MIB, MIB)]

    assert memory_map(ram)[1] == (MIB, 2 * MIB, 1)
