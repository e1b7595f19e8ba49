"""Reading and writing model-specific registers, of a vCPU or (features) of the system."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vmm.errors import HostError
from vmm.kvm_cffi._kvm import ffi, lib
from vmm.kvm_cffi.check import check
from vmm.kvm_cffi.structs import MsrEntry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.kvm_cffi._kvm import CData

MAX_PER_CALL = 255
"""KVM refuses 256 (MAX_IO_MSRS) and more."""


def get_msrs(fd: int, indices: Sequence[int]) -> list[MsrEntry]:
    """Read MSRs. Raises: HostError (host) naming the first one that KVM refuses."""
    found: list[MsrEntry] = []
    for start in range(0, len(indices), MAX_PER_CALL):
        wanted = [MsrEntry(index, 0) for index in indices[start : start + MAX_PER_CALL]]
        msrs = _pack(wanted)
        _transfer("KVM_GET_MSRS", fd, lib.KVM_GET_MSRS, msrs, wanted)
        found += [MsrEntry(e.index, e.data) for e in msrs.entries[0 : len(wanted)]]
    return found


def set_msrs(fd: int, entries: Sequence[MsrEntry]) -> None:
    """Write MSRs in order. Raises: HostError (host) naming the first one that KVM refuses."""
    for start in range(0, len(entries), MAX_PER_CALL):
        batch = entries[start : start + MAX_PER_CALL]
        _transfer("KVM_SET_MSRS", fd, lib.KVM_SET_MSRS, _pack(batch), batch)


def _pack(entries: Sequence[MsrEntry]) -> CData:
    msrs = ffi.new("struct kvm_msrs *", {"entries": len(entries)})
    msrs.nmsrs = len(entries)
    for at, (index, data) in enumerate(entries):
        msrs.entries[at].index = index
        msrs.entries[at].data = data
    return msrs


def _transfer(name: str, fd: int, request: int, msrs: CData, entries: Sequence[MsrEntry]) -> None:
    done = check(name, lib.vk_ioctl(fd, request, msrs))
    if done < len(entries):
        refused = entries[done]
        raise HostError(
            name,
            errno.EINVAL,
            hint=f"MSR {refused.index:#x} (value {refused.data:#x}) was refused; "
            "this host's processor or KVM lacks it, so leave it out",
        )
