"""The system descriptor, /dev/kvm: what this host can do, and making VMs.

Source: Linux Documentation/virt/kvm/api.rst, "System ioctls".
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from vmm.errors import HostError
from vmm.kvm_cffi._kvm import ffi, lib
from vmm.kvm_cffi.check import check
from vmm.kvm_cffi.closing import Closing
from vmm.kvm_cffi.constants import KVM_API_VERSION
from vmm.kvm_cffi.cpuid import MAX_CPUID_ENTRIES, pack_cpuid, unpack_cpuid
from vmm.kvm_cffi.msrs import get_msrs
from vmm.kvm_cffi.structs import CpuidEntry, MsrEntry
from vmm.kvm_cffi.vm import Vm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.kvm_cffi._kvm import CData


class Kvm(Closing):
    """An open /dev/kvm; a context manager that closes it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def open(cls, path: str = "/dev/kvm") -> Kvm:
        """Open the device and check that it speaks the stable API.

        Raises: HostError (host) when it is absent, forbidden, or too old.
        """
        kvm = cls(check("open", lib.vk_open(os.fsencode(path)), path=path))
        try:
            version = kvm.get_api_version()
            if version != KVM_API_VERSION:
                raise HostError(
                    "KVM_GET_API_VERSION",
                    errno.ENOTSUP,
                    path=path,
                    hint=f"version {version} is not {KVM_API_VERSION}; use a newer kernel",
                )
        except BaseException:
            kvm.close()
            raise
        return kvm

    def close(self) -> None:
        """Close the device; its VMs live on. A second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def get_api_version(self) -> int:
        """Return KVM's API version: 12."""
        return self._ioctl_value("KVM_GET_API_VERSION", lib.KVM_GET_API_VERSION, 0)

    def check_extension(self, cap: int) -> int:
        """Return what KVM says about a capability: 0 for absent."""
        return self._ioctl_value("KVM_CHECK_EXTENSION", lib.KVM_CHECK_EXTENSION, cap)

    def get_vcpu_mmap_size(self) -> int:
        """Return the size in bytes of a vCPU's shared run area."""
        return self._ioctl_value("KVM_GET_VCPU_MMAP_SIZE", lib.KVM_GET_VCPU_MMAP_SIZE, 0)

    def get_supported_cpuid(self) -> list[CpuidEntry]:
        """Return the CPUID leaves that KVM can show a guest."""
        cpuid = pack_cpuid((), room=MAX_CPUID_ENTRIES)
        self._ioctl("KVM_GET_SUPPORTED_CPUID", lib.KVM_GET_SUPPORTED_CPUID, cpuid)
        return unpack_cpuid(cpuid)

    def get_msr_index_list(self) -> list[int]:
        """Return the MSRs that make up a vCPU's state."""
        return self._msr_list("KVM_GET_MSR_INDEX_LIST", lib.KVM_GET_MSR_INDEX_LIST)

    def get_msr_feature_index_list(self) -> list[int]:
        """Return the MSRs that describe the host's features."""
        return self._msr_list("KVM_GET_MSR_FEATURE_INDEX_LIST", lib.KVM_GET_MSR_FEATURE_INDEX_LIST)

    def get_msrs(self, indices: Sequence[int]) -> list[MsrEntry]:
        """Return feature MSRs. Raises: HostError (host) naming one that KVM does not have."""
        return get_msrs(self.fd, indices)

    def create_vm(self) -> Vm:
        """Make a VM without memory or vCPUs. Raises: HostError (host)."""
        run_bytes = self.get_vcpu_mmap_size()
        return Vm(self._ioctl_value("KVM_CREATE_VM", lib.KVM_CREATE_VM, 0), run_bytes)

    def _ioctl(self, name: str, request: int, argument: CData) -> int:
        return check(name, lib.vk_ioctl(self.fd, request, argument))

    def _ioctl_value(self, name: str, request: int, argument: int) -> int:
        return check(name, lib.vk_ioctl_value(self.fd, request, argument))

    def _msr_list(self, name: str, request: int) -> list[int]:
        """Ask twice: with no room KVM fails with E2BIG and says how many there are."""
        probe = ffi.new("struct kvm_msr_list *", {"indices": 0})
        result = lib.vk_ioctl(self.fd, request, probe)
        if result != -errno.E2BIG:
            check(name, result)
        room = int(probe.nmsrs)
        found = ffi.new("struct kvm_msr_list *", {"indices": room})
        found.nmsrs = room
        self._ioctl(name, request, found)
        return [int(found.indices[at]) for at in range(found.nmsrs)]
