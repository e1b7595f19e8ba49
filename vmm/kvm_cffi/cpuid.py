"""CPUID tables between KVM's structure and Python values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.kvm_cffi._kvm import ffi
from vmm.kvm_cffi.structs import CpuidEntry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.kvm_cffi._kvm import CData

MAX_CPUID_ENTRIES = 256
"""KVM's own limit (KVM_MAX_CPUID_ENTRIES)."""


def pack_cpuid(entries: Sequence[CpuidEntry], *, room: int = 0) -> CData:
    """Make a ``struct kvm_cpuid2`` of the entries, or an empty one with room for some."""
    size = max(len(entries), room)
    cpuid = ffi.new("struct kvm_cpuid2 *", {"entries": size})
    cpuid.nent = size
    for at, entry in enumerate(entries):
        to = cpuid.entries[at]
        to.function, to.index, to.flags, to.eax, to.ebx, to.ecx, to.edx = entry
    return cpuid


def unpack_cpuid(cpuid: CData) -> list[CpuidEntry]:
    """Return the entries of a filled ``struct kvm_cpuid2``."""
    found = (cpuid.entries[at] for at in range(cpuid.nent))
    return [CpuidEntry(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx) for e in found]
