"""What CPUID tells a guest: KVM's own answer, changed where the machine needs it.

``common_cpuid`` makes what all vCPUs share, ``vcpu_cpuid`` adds what tells them apart. Everything
else that KVM offers is left as it is.

Specification: Intel SDM, volume 2, CPUID; AMD APM, volume 3, appendix E; Linux
Documentation/virt/kvm/x86/cpuid.rst for the leaves from 0x40000000.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple

from vmm.boot import hyperv
from vmm.boot.cpuid_table import SIGNIFICANT_INDEX, CpuidTable, bits
from vmm.boot.topology import Topology, flat
from vmm.errors import ConfigError
from vmm.kvm_cffi.structs import CpuidEntry

HostCpuid = Callable[[int, int], tuple[int, int, int, int]]
"""The CPUID instruction on the host: leaf and subleaf give EAX, EBX, ECX, EDX."""

DEFAULT_PHYS_BITS = 36
AMD_VENDORS = (b"AuthenticAMD", b"HygonGenuine")

KVM_BASE = 0x4000_0000
KVM_FEATURES = 0x4000_0001
KVM_TIMING = 0x4000_0010
KVM_MSI_EXT_DEST_ID = 1 << 15

LEAF_1_EDX_MTRR = 1 << 12
LEAF_1_EDX_HTT = 1 << 28
LEAF_1_ECX_VMX = 1 << 5
LEAF_1_ECX_TSC_DEADLINE = 1 << 24
LEAF_1_ECX_HYPERVISOR = 1 << 31
AMD_ECX_CMP_LEGACY = 1 << 1
AMD_ECX_SVM = 1 << 2
AMD_ECX_TOPOLOGY_EXTENSIONS = 1 << 22
INVARIANT_TSC = 1 << 8

AMX_TILE = 1 << 24
AMX_LEAF_7_0_EDX = bits(22, 24, 25)
AMX_LEAF_7_1_EAX = bits(21)
AMX_LEAF_7_1_EDX = bits(8)

LEVEL_THREAD = 1
LEVEL_CORE = 2
LEVEL_DIE = 5

TSC_LEAF_BUS_KHZ = 1_000_000


class CpuModel(NamedTuple):
    """The vCPUs of a machine as CPUID describes them.

    ``phys_bits`` is the width of a guest physical address; ``topology`` is None where none is
    configured.
    """

    boot_vcpus: int
    max_vcpus: int
    phys_bits: int
    topology: Topology | None = None
    nested: bool = True
    kvm_hyperv: bool = False
    amx: bool = False


def guest_phys_bits(supported: Iterable[CpuidEntry], max_phys_bits: int) -> int:
    """The width in bits of a guest's physical addresses: the host's, up to the configured limit."""
    table = CpuidTable(supported)
    widths = table.get(0x8000_0008).eax
    host = widths & 0xFF or DEFAULT_PHYS_BITS
    # Newer kernels add how much of it nested page tables can really map.
    mappable = widths >> 16 & 0xFF or host
    return min(host, mappable, max_phys_bits)


def common_cpuid(
    supported: Iterable[CpuidEntry], model: CpuModel, host_cpuid: HostCpuid
) -> list[CpuidEntry]:
    """Make the CPUID entries that all vCPUs share, from those that KVM supports.

    Raises: ConfigError (caller) when the topology does not make ``max_vcpus``, or when AMX is asked
    for and the host lacks it.
    """
    _check_topology(model)
    table = CpuidTable(supported)
    leaf = table.get(1)
    table.put(
        leaf._replace(
            ecx=leaf.ecx | LEAF_1_ECX_TSC_DEADLINE | LEAF_1_ECX_HYPERVISOR,
            edx=leaf.edx | LEAF_1_EDX_MTRR,
        )
    )
    _set_amx(table, model.amx)
    _copy_host_leaves(table, host_cpuid)
    leaf = table.get(0x8000_0008)
    widths = leaf.eax & ~0x00FF_00FF | model.phys_bits << 16 | model.phys_bits
    table.put(leaf._replace(eax=widths))
    if not model.nested:
        _hide_virtualization(table)
    if model.kvm_hyperv:
        table.drop(range(hyperv.FIRST_LEAF, hyperv.LAST_LEAF + 1))
        for leaf in hyperv.HYPERV_LEAVES:
            table.put(leaf)
    elif table.has(KVM_FEATURES):
        leaf = table.get(KVM_FEATURES)
        table.put(leaf._replace(eax=leaf.eax | KVM_MSI_EXT_DEST_ID))
    return table.entries()


def _check_topology(model: CpuModel) -> None:
    shape = model.topology
    if shape is not None and (min(shape) < 1 or shape.total != model.max_vcpus):
        text = ":".join(str(count) for count in shape)
        raise ConfigError(
            f"The topology {text} (cpus.topology, --cpus topology=…) makes {shape.total} vCPUs and "
            f"cpus.max_vcpus is {model.max_vcpus}; make its product equal to that, with no part "
            f"below 1"
        )


def _set_amx(table: CpuidTable, wanted: bool) -> None:
    if wanted:
        if not table.get(7).edx & AMX_TILE:
            raise ConfigError(
                "AMX is asked for (cpus.features.amx, --cpus features=[amx]) and the host's "
                "processor or kernel does not offer it to guests; leave it out or use a host "
                "with AMX"
            )
        return
    for index, eax, edx in ((0, 0, AMX_LEAF_7_0_EDX), (1, AMX_LEAF_7_1_EAX, AMX_LEAF_7_1_EDX)):
        if table.has(7, index):
            leaf = table.get(7, index)
            table.put(leaf._replace(eax=leaf.eax & ~eax, edx=leaf.edx & ~edx))
    for function in (0x1D, 0x1E):
        for leaf in table.subleaves(function):
            table.put(leaf._replace(eax=0, ebx=0, ecx=0, edx=0))


def _copy_host_leaves(table: CpuidTable, host_cpuid: HostCpuid) -> None:
    """Copy the brand string, and the caches where KVM says nothing of them."""
    for function in (0x8000_0002, 0x8000_0003, 0x8000_0004):
        table.put(CpuidEntry(function, 0, 0, *host_cpuid(function, 0)))
    for function in (0x8000_0005, 0x8000_0006):
        if not any(table.get(function)[3:]):
            table.put(CpuidEntry(function, 0, 0, *host_cpuid(function, 0)))


def _hide_virtualization(table: CpuidTable) -> None:
    leaf = table.get(1)
    table.put(leaf._replace(ecx=leaf.ecx & ~LEAF_1_ECX_VMX))
    leaf = table.get(0x8000_0001)
    table.put(leaf._replace(ecx=leaf.ecx & ~AMD_ECX_SVM))


def vcpu_cpuid(
    common: Iterable[CpuidEntry], model: CpuModel, index: int, tsc_khz: int
) -> list[CpuidEntry]:
    """Make the CPUID entries of the n-th vCPU.

    Units: ``tsc_khz`` in kHz, 0 where KVM does not know it.
    """
    table = CpuidTable(common)
    shape = model.topology or flat(model.boot_vcpus)
    apic_id = index if model.topology is None else model.topology.x2apic_id(index)
    _set_processor_counts(table, shape, apic_id)
    _set_levels(table, shape, apic_id)
    _set_cache_sharing(table, shape)
    if is_amd(table):
        _set_amd_topology(table, shape, apic_id)
    if tsc_khz and not model.kvm_hyperv and table.get(0x8000_0007).edx & INVARIANT_TSC:
        table.put(table.get(KVM_BASE)._replace(eax=KVM_TIMING))
        table.put(CpuidEntry(KVM_TIMING, eax=tsc_khz, ebx=TSC_LEAF_BUS_KHZ))
    return table.entries()


def is_amd(table: CpuidTable) -> bool:
    """Whether the processor follows AMD's manual where it differs from Intel's."""
    leaf = table.get(0)
    return struct.pack("<III", leaf.ebx, leaf.edx, leaf.ecx) in AMD_VENDORS


def _set_processor_counts(table: CpuidTable, shape: Topology, apic_id: int) -> None:
    leaf = table.get(1)
    count = min(shape.threads_per_package, 0xFF)
    table.put(
        leaf._replace(
            ebx=leaf.ebx & 0xFFFF | count << 16 | (apic_id & 0xFF) << 24,
            edx=leaf.edx | LEAF_1_EDX_HTT if count > 1 else leaf.edx & ~LEAF_1_EDX_HTT,
        )
    )


def _set_levels(table: CpuidTable, shape: Topology, apic_id: int) -> None:
    """Describe the levels of the topology in leaves 0xB, which knows no dies, and 0x1F."""
    thread = (shape.core_shift, shape.threads_per_core, LEVEL_THREAD)
    core = (shape.die_shift, shape.threads_per_die, LEVEL_CORE)
    die = (shape.package_shift, shape.threads_per_package, LEVEL_DIE)
    package = (shape.package_shift, shape.threads_per_package, LEVEL_CORE)
    for function, levels in ((0xB, (thread, package)), (0x1F, (thread, core, die))):
        table.drop(range(function, function + 1))
        for index, (shift, count, kind) in enumerate((*levels, (0, 0, 0))):
            table.put(
                CpuidEntry(
                    function,
                    index,
                    SIGNIFICANT_INDEX,
                    eax=shift,
                    ebx=count,
                    ecx=kind << 8 | index,
                    edx=apic_id,
                )
            )


def _set_cache_sharing(table: CpuidTable, shape: Topology) -> None:
    """Keep a cache within one die, and give Intel's leaf 4 the number of cores."""
    most = shape.threads_per_die - 1
    cores = min(shape.cores_per_die * shape.dies_per_package - 1, 0x3F)
    for function in (0x4, 0x8000_001D):
        for leaf in table.subleaves(function):
            if not leaf.eax & 0x1F:
                continue
            sharing = min(leaf.eax >> 14 & 0xFFF, most)
            eax = leaf.eax & ~(0xFFF << 14) | sharing << 14
            if function == 0x4:
                eax = eax & ~(0x3F << 26) | cores << 26
            table.put(leaf._replace(eax=eax))


def _set_amd_topology(table: CpuidTable, shape: Topology, apic_id: int) -> None:
    threads = shape.threads_per_package
    core_id = (apic_id & (1 << shape.package_shift) - 1) >> shape.core_shift
    die_id = (apic_id & (1 << shape.package_shift) - 1) >> shape.die_shift
    table.put(
        table.get(0x8000_001E)._replace(
            eax=apic_id,
            ebx=(shape.threads_per_core - 1) << 8 | core_id & 0xFF,
            ecx=(shape.dies_per_package - 1 & 7) << 8 | die_id & 0xFF,
            edx=0,
        )
    )
    if threads > 1:
        leaf = table.get(0x8000_0001)
        ecx = leaf.ecx | AMD_ECX_CMP_LEGACY | AMD_ECX_TOPOLOGY_EXTENSIONS
        table.put(leaf._replace(ecx=ecx))
        leaf = table.get(0x8000_0008)
        counts = shape.package_shift << 12 | min(threads - 1, 0xFF)
        table.put(leaf._replace(ecx=leaf.ecx & ~0xF0FF | counts))
