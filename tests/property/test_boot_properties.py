"""What holds of the memory map, the topology and the tables whatever the machine is."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_boot_smbios import parse
from vmm.boot import layout
from vmm.boot.cpuid import CpuModel, vcpu_cpuid
from vmm.boot.layout import GIB, Area, device_areas, ram_ranges, split_area
from vmm.boot.memmap import memory_map
from vmm.boot.smbios import SystemIdentity, encode_smbios
from vmm.boot.topology import Topology, x2apic_ids
from vmm.page import PAGE

sizes = st.integers(512, 16 * GIB // PAGE).map(lambda pages: pages * PAGE)
parts = st.integers(1, 7)
topologies = st.builds(Topology, st.integers(1, 2), parts, st.integers(1, 3), st.integers(1, 3))
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)


@given(sizes)
def test_ram_ranges_hold_all_ram_and_avoid_the_hole(size: int) -> None:
    ranges = ram_ranges(size)

    assert sum(piece.size for piece in ranges) == size
    assert all(piece.end <= layout.HOLE or piece.gpa >= 4 * GIB for piece in ranges)


@given(sizes, st.integers(40, 52), st.none() | st.integers(0, 64 * GIB))
def test_device_areas_meet_neither_ram_nor_each_other(
    size: int, phys_bits: int, hotplug: int | None
) -> None:
    areas = device_areas(size, phys_bits, hotplug)

    in_order = [areas.mmio32, areas.ecam, areas.mmio64, areas.platform]
    assert all(low.end <= high.base for low, high in pairwise(in_order))
    assert areas.mmio64.base >= ram_ranges(size)[-1].end + (hotplug or 0)
    assert areas.platform.end < 1 << phys_bits


@given(st.integers(0, 1000), st.integers(1, 5000), st.lists(st.integers(1, 9), min_size=1))
def test_area_shares_cover_the_area_without_a_gap(base: int, size: int, weights: list[int]) -> None:
    shares = split_area(Area(base, size), 16, weights)

    assert len(shares) == len(weights)
    ends = [base, *(share.end for share in shares)]
    assert [share.base for share in shares] == ends[:-1]
    assert ends[-1] == base + size
    assert all(share.size % 16 == 0 for share in shares[:-1])


@given(sizes)
def test_memory_map_tells_of_all_ram_but_the_tables(size: int) -> None:
    usable = sum(entry.size for entry in memory_map(ram_ranges(size)) if entry.type == 1)

    assert usable == size - (layout.HIGH_RAM - layout.LOW_RAM_END)


@given(topologies)
def test_apic_ids_are_distinct_and_ascend(shape: Topology) -> None:
    ids = x2apic_ids(shape.total, shape)

    assert list(ids) == sorted(set(ids))


@given(topologies)
def test_apic_ids_say_who_shares_a_core_a_die_and_a_package(shape: Topology) -> None:
    ids = x2apic_ids(shape.total, shape)

    for shift, group in (
        (shape.core_shift, shape.threads_per_core),
        (shape.die_shift, shape.threads_per_die),
        (shape.package_shift, shape.threads_per_package),
    ):
        assert [apic_id >> shift for apic_id in ids[::group]] == [
            apic_id >> shift for apic_id in ids[group - 1 :: group]
        ]
        assert len({apic_id >> shift for apic_id in ids}) == shape.total // group


@given(topologies)
def test_cpuid_levels_lead_to_the_same_packages_in_both_leaves(shape: Topology) -> None:
    model = CpuModel(shape.total, shape.total, 46, shape)

    table = {entry[:2]: entry for entry in vcpu_cpuid([], model, shape.total - 1, 0)}

    assert table[0xB, 1].eax == table[0x1F, 2].eax
    assert table[0xB, 1].edx >> table[0xB, 1].eax == shape.packages - 1
    assert table[0xB, 1].ebx == table[0x1F, 2].ebx == shape.threads_per_package


@given(st.lists(texts, max_size=20), texts, st.none() | texts)
def test_smbios_gives_every_text_back(oem: list[str], serial: str, tag: str | None) -> None:
    identity = SystemIdentity(serial_number=serial, chassis_asset_tag=tag, oem_strings=oem)

    found = parse(encode_smbios(identity))

    assert found[1].text(7) == serial
    assert (found[11].strings if oem else []) == oem
    assert (found[3].text(8) if tag is not None else None) == tag
