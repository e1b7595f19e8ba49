"""CPUID: what is changed of KVM's answer, for all vCPUs and for each."""

from __future__ import annotations

import struct

import pytest

from vmm.boot.cpuid import CpuModel, common_cpuid, guest_phys_bits, vcpu_cpuid
from vmm.boot.topology import Topology
from vmm.errors import ConfigError
from vmm.kvm_cffi.structs import CpuidEntry

SIGNIFICANT = 1
KVM_FEATURE_BITS = 0x01007EFB
INTEL = struct.unpack("<III", b"GenuineIntel")
AMD = struct.unpack("<III", b"AuthenticAMD")

SUPPORTED = (
    CpuidEntry(0x1, 0, 0, 0xA10F11, 0x07020800, 0x202020, 0x078BFBFF & ~(1 << 28 | 1 << 12)),
    CpuidEntry(0x4, 0, SIGNIFICANT, 0x1C004121, 1, 2, 3),
    CpuidEntry(0x4, 3, SIGNIFICANT, 0x1C1FC163, 4, 5, 6),
    CpuidEntry(0x4, 4, SIGNIFICANT, 0, 0, 0, 0),
    CpuidEntry(0x7, 0, SIGNIFICANT, 1, 2, 3, 0xFFFFFFFF),
    CpuidEntry(0x7, 1, SIGNIFICANT, 0xFFFFFFFF, 0, 0, 0xFFFFFFFF),
    CpuidEntry(0xB, 0, SIGNIFICANT, 0, 0, 0, 9),
    CpuidEntry(0xB, 3, SIGNIFICANT, 7, 7, 7, 7),
    CpuidEntry(0xD, 0, SIGNIFICANT, 7, 576, 576, 0),
    CpuidEntry(0x1D, 0, SIGNIFICANT, 1, 1, 1, 1),
    CpuidEntry(0x1D, 1, SIGNIFICANT, 2, 2, 2, 2),
    CpuidEntry(0x1E, 0, SIGNIFICANT, 3, 3, 3, 3),
    CpuidEntry(0x80000000, 0, 0, 0x80000021, *AMD),
    CpuidEntry(0x80000001, 0, 0, 0xA10F11, 0x40000000, 0x4, 0x23D3FBFF),
    CpuidEntry(0x80000005, 0, 0, 1, 2, 3, 4),
    CpuidEntry(0x80000006, 0, 0, 0, 0, 0, 0),
    CpuidEntry(0x80000007, 0, 0, 0, 0, 0, 0x100),
    CpuidEntry(0x80000008, 0, 0, 0x12303030, 0x50020005, 0xFFFFFFFF, 0),
    CpuidEntry(0x8000001D, 3, SIGNIFICANT, 0x163 | 15 << 14, 0, 0, 0),
    CpuidEntry(0x40000000, 0, 0, 0x40000001, 0x4B4D564B, 0x564B4D56, 0x4D),
    CpuidEntry(0x40000001, 0, 0, KVM_FEATURE_BITS, 0, 0, 0),
)
MODEL = CpuModel(boot_vcpus=2, max_vcpus=4, phys_bits=46)


def supported(vendor: tuple[int, int, int]) -> list[CpuidEntry]:
    ebx, edx, ecx = vendor
    return [CpuidEntry(0, 0, 0, 0x1F, ebx, ecx, edx), *SUPPORTED]


def host_cpuid(function: int, index: int) -> tuple[int, int, int, int]:
    assert index == 0
    return (function, 0x11, 0x22, 0x33)


def by_leaf(entries: list[CpuidEntry]) -> dict[tuple[int, int], CpuidEntry]:
    found = {(entry.function, entry.index): entry for entry in entries}
    assert len(found) == len(entries), "KVM takes the first of two entries for one leaf"
    return found


def common(model: CpuModel = MODEL, vendor: tuple[int, int, int] = AMD) -> list[CpuidEntry]:
    return common_cpuid(supported(vendor), model, host_cpuid)


def of_vcpu(
    index: int,
    model: CpuModel = MODEL,
    vendor: tuple[int, int, int] = AMD,
    tsc_khz: int = 2_600_000,
) -> dict[tuple[int, int], CpuidEntry]:
    return by_leaf(vcpu_cpuid(common(model, vendor), model, index, tsc_khz))


def test_common_leaf_1_adds_tsc_deadline_hypervisor_and_mtrr() -> None:
    before = SUPPORTED[0]
    leaf = by_leaf(common())[1, 0]

    assert leaf.ecx == before.ecx | 1 << 24 | 1 << 31
    assert leaf.edx == before.edx | 1 << 12


def test_common_brand_string_is_the_hosts() -> None:
    table = by_leaf(common())

    for leaf in (0x80000002, 0x80000003, 0x80000004):
        assert table[leaf, 0] == (leaf, 0, 0, leaf, 0x11, 0x22, 0x33)


def test_common_cache_leaves_are_the_hosts_only_where_kvm_says_nothing() -> None:
    table = by_leaf(common())

    assert table[0x80000005, 0] == CpuidEntry(0x80000005, 0, 0, 1, 2, 3, 4)
    assert table[0x80000006, 0] == CpuidEntry(0x80000006, 0, 0, 0x80000006, 0x11, 0x22, 0x33)


def test_common_address_width_is_the_guests_and_linear_width_stays() -> None:
    assert by_leaf(common())[0x80000008, 0].eax == 0x122E302E


def test_common_kvm_features_survive_with_extended_msi_destinations() -> None:
    table = by_leaf(common())

    assert table[0x40000001, 0].eax == KVM_FEATURE_BITS | 1 << 15
    assert table[0x40000000, 0] == SUPPORTED[-2]


def test_common_leaves_that_nobody_changes_are_kvms() -> None:
    table = by_leaf(common())

    assert table[0xD, 0] in SUPPORTED
    assert table[0x80000007, 0] in SUPPORTED


def test_common_without_amx_hides_all_of_it() -> None:
    table = by_leaf(common())

    assert table[7, 0] == CpuidEntry(7, 0, 1, 1, 2, 3, 0xFFFFFFFF & ~(1 << 22 | 1 << 24 | 1 << 25))
    assert table[7, 1].eax == 0xFFFFFFFF & ~(1 << 21)
    assert table[7, 1].edx == 0xFFFFFFFF & ~(1 << 8)
    for key in ((0x1D, 0), (0x1D, 1), (0x1E, 0)):
        assert table[key] == (*key, 1, 0, 0, 0, 0)


def test_common_with_amx_keeps_it() -> None:
    table = by_leaf(common(MODEL._replace(amx=True)))

    for key in ((7, 0), (7, 1), (0x1D, 0), (0x1D, 1), (0x1E, 0)):
        assert table[key] in SUPPORTED


def test_common_with_amx_on_a_host_without_it_is_refused() -> None:
    entries = [entry for entry in supported(INTEL) if entry.function != 7]

    with pytest.raises(ConfigError, match=r"AMX.*cpus\.features\.amx"):
        common_cpuid(entries, MODEL._replace(amx=True), host_cpuid)


def test_common_without_nesting_hides_both_kinds_of_virtualization() -> None:
    table = by_leaf(common(MODEL._replace(nested=False)))

    assert not table[1, 0].ecx & 1 << 5
    assert not table[0x80000001, 0].ecx & 1 << 2


def test_common_with_nesting_shows_virtualization() -> None:
    table = by_leaf(common())

    assert table[1, 0].ecx & 1 << 5
    assert table[0x80000001, 0].ecx & 1 << 2


def test_common_with_hyperv_replaces_kvms_own_leaves() -> None:
    table = by_leaf(common(MODEL._replace(kvm_hyperv=True)))

    assert struct.pack("<3I", *table[0x40000000, 0][4:]) == b"Linux KVM Hv"
    assert table[0x40000000, 0].eax == 0x4000000A
    assert struct.pack("<I", table[0x40000001, 0].eax) == b"Hv#1"
    assert table[0x40000002, 0][3:5] == (0x3839, 0xA0000)
    assert table[0x40000003, 0][3:] == (0xA7F, 0, 0, 0x118)
    assert table[0x40000004, 0][3:] == (0x62E, 0xFFF, 0, 0)
    assert all(not any(table[leaf, 0][3:]) for leaf in range(0x40000005, 0x4000000B))


def test_common_with_a_topology_that_does_not_make_the_vcpus_is_refused() -> None:
    model = MODEL._replace(topology=Topology(2, 2, 2, 1))

    with pytest.raises(ConfigError, match=r"2:2:2:1 .* makes 8 vCPUs and cpus\.max_vcpus is 4"):
        common(model)


def test_common_with_a_topology_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="0:0:1:1"):
        common(MODEL._replace(topology=Topology(0, 0, 1, 1)))


def test_vcpu_without_topology_is_a_core_of_one_package_of_boot_vcpus() -> None:
    table = of_vcpu(1)

    assert table[1, 0].ebx == 0x01020800
    assert table[1, 0].edx & 1 << 28
    assert table[0xB, 0][2:] == (SIGNIFICANT, 0, 1, 0x100, 1)
    assert table[0xB, 1][2:] == (SIGNIFICANT, 1, 2, 0x201, 1)
    assert table[0xB, 2][2:] == (SIGNIFICANT, 0, 0, 2, 1)
    assert (0xB, 3) not in table
    assert table[0x1F, 2][2:] == (SIGNIFICANT, 1, 2, 0x502, 1)


def test_vcpu_alone_in_its_package_has_no_threads_to_count() -> None:
    table = of_vcpu(0, CpuModel(boot_vcpus=1, max_vcpus=1, phys_bits=46))

    assert table[1, 0].ebx == 0x00010800
    assert not table[1, 0].edx & 1 << 28
    assert not table[0x80000001, 0].ecx & 1 << 22


def test_vcpu_with_topology_has_its_place_in_every_leaf() -> None:
    # Three cores take two bits: the last thread is package 1, die 1, core 2, thread 1.
    model = CpuModel(24, 24, 46, topology=Topology(2, 3, 2, 2))

    table = of_vcpu(23, model)

    apic_id = 0b1_1_10_1
    assert table[1, 0].ebx == apic_id << 24 | 12 << 16 | 0x0800
    assert [entry[3:] for key, entry in table.items() if key[0] == 0xB] == [
        (1, 2, 0x100, apic_id),
        (4, 12, 0x201, apic_id),
        (0, 0, 2, apic_id),
    ]
    assert [entry[3:] for key, entry in table.items() if key[0] == 0x1F] == [
        (1, 2, 0x100, apic_id),
        (3, 6, 0x201, apic_id),
        (4, 12, 0x502, apic_id),
        (0, 0, 3, apic_id),
    ]


def test_vcpu_on_amd_has_its_core_and_die() -> None:
    model = CpuModel(24, 24, 46, topology=Topology(2, 3, 2, 2))

    table = of_vcpu(23, model, AMD)

    assert table[0x8000001E, 0][3:] == (0b11101, 0x100 | 0b110, 0x101, 0)
    assert table[0x80000001, 0].ecx == 0x4 | 1 << 1 | 1 << 22
    assert table[0x80000008, 0].ecx == 0xFFFF0F00 | 4 << 12 | 11


def test_vcpu_on_intel_leaves_amds_leaves_alone() -> None:
    table = of_vcpu(1, vendor=INTEL)

    assert (0x8000001E, 0) not in table
    assert table[0x80000001, 0].ecx == 0x4
    assert table[0x80000008, 0].ecx == 0xFFFFFFFF


def test_vcpu_caches_are_shared_within_one_die_at_most() -> None:
    model = CpuModel(8, 8, 46, topology=Topology(2, 2, 2, 1))

    table = of_vcpu(0, model, INTEL)

    # The first-level cache is shared by two threads on the host, which a die can have.
    assert table[4, 0][3:] == (3 << 26 | 1 << 14 | 0x121, 1, 2, 3)
    assert table[4, 3][3:] == (3 << 26 | 3 << 14 | 0x163, 4, 5, 6)
    assert table[4, 4] in SUPPORTED
    assert table[0x8000001D, 3].eax == 0x163 | 3 << 14


def test_vcpu_timing_leaf_tells_the_tsc_frequency() -> None:
    table = of_vcpu(0, tsc_khz=2_600_000)

    assert table[0x40000000, 0].eax == 0x40000010
    assert table[0x40000000, 0][4:] == SUPPORTED[-2][4:]
    assert table[0x40000010, 0] == (0x40000010, 0, 0, 2_600_000, 1_000_000, 0, 0)


def test_vcpu_with_hyperv_has_no_timing_leaf() -> None:
    table = of_vcpu(0, MODEL._replace(kvm_hyperv=True))

    assert (0x40000010, 0) not in table
    assert table[0x40000000, 0].eax == 0x4000000A


def test_vcpu_without_invariant_tsc_has_no_timing_leaf() -> None:
    entries = [entry for entry in common() if entry.function != 0x80000007]

    assert (0x40000010, 0) not in by_leaf(vcpu_cpuid(entries, MODEL, 0, 2_600_000))


@pytest.mark.parametrize(
    ("eax", "limit", "expected"),
    [
        (0x3030, 46, 46),
        (0x3027, 46, 39),
        (0x303030, 52, 48),
        (0x303934, 64, 48),
        (0, 46, 36),
    ],
    ids=["limit", "host", "both fields", "nested tables map less", "unknown"],
)
def test_guest_phys_bits_are_the_least_of_limit_and_host(
    eax: int, limit: int, expected: int
) -> None:
    assert guest_phys_bits([CpuidEntry(0x80000008, eax=eax)], limit) == expected
