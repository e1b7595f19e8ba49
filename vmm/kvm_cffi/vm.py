"""The VM descriptor: memory slots, interrupt routing, event descriptors, the clock, vCPUs.

Source: Linux Documentation/virt/kvm/api.rst, "VM ioctls".
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmm.kvm_cffi._kvm import ffi, lib
from vmm.kvm_cffi.check import check
from vmm.kvm_cffi.closing import Closing
from vmm.kvm_cffi.constants import KVM_CAP_NESTED_STATE, KVM_CAP_XSAVE2
from vmm.kvm_cffi.structs import ClockData
from vmm.kvm_cffi.vcpu import XSAVE_BYTES, Vcpu
from vmm.page import PAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.kvm_cffi._kvm import CData
    from vmm.kvm_cffi.structs import MsiRoute


class Vm(Closing):
    """One VM; a context manager that closes its descriptor.

    Close the vCPUs first: KVM keeps a VM alive as long as one of them is open.
    """

    def __init__(self, fd: int, run_bytes: int) -> None:
        self.fd = fd
        self._run_bytes = run_bytes

    def close(self) -> None:
        """Close the VM. A second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def check_extension(self, cap: int) -> int:
        """Return what KVM says about a capability of this VM: 0 for absent."""
        return self._ioctl_value("KVM_CHECK_EXTENSION", lib.KVM_CHECK_EXTENSION, cap)

    def enable_cap(self, cap: int, *args: int, flags: int = 0) -> None:
        """Turn on a capability. Raises: HostError (host) when it is refused."""
        enable = ffi.new("struct kvm_enable_cap *")
        enable.cap = cap
        enable.flags = flags
        for at, value in enumerate(args):
            enable.args[at] = value
        self._ioctl("KVM_ENABLE_CAP", lib.KVM_ENABLE_CAP, enable)

    def set_user_memory_region(
        self,
        slot: int,
        gpa: int,
        size: int,
        hva: int,
        *,
        read_only: bool = False,
        log_dirty: bool = False,
    ) -> None:
        """Show ``size`` bytes at host address ``hva`` to the guest; size 0 removes the slot.

        Guest writes to a read-only slot become MMIO exits. Raises: HostError (host).
        """
        region = ffi.new("struct kvm_userspace_memory_region *")
        region.slot = slot
        if read_only:
            region.flags |= lib.KVM_MEM_READONLY
        if log_dirty:
            region.flags |= lib.KVM_MEM_LOG_DIRTY_PAGES
        region.guest_phys_addr = gpa
        region.memory_size = size
        region.userspace_addr = hva
        self._ioctl("KVM_SET_USER_MEMORY_REGION", lib.KVM_SET_USER_MEMORY_REGION, region)

    def get_dirty_log(self, slot: int, size_bytes: int) -> bytes:
        """Return a slot's bitmap of written pages, bit 0 of byte 0 first, in whole 64-bit words."""
        bitmap = ffi.new("uint64_t[]", -(-size_bytes // (64 * PAGE)))
        log = ffi.new("struct kvm_dirty_log *")
        log.slot = slot
        log.dirty_bitmap = bitmap
        self._ioctl("KVM_GET_DIRTY_LOG", lib.KVM_GET_DIRTY_LOG, log)
        return bytes(ffi.buffer(bitmap))

    def clear_dirty_log(
        self, slot: int, first_page: int, num_pages: int, bitmap: bytes | bytearray | memoryview
    ) -> None:
        """Write-protect again the pages whose bit is set, counted from ``first_page``."""
        log = ffi.new("struct kvm_clear_dirty_log *")
        log.slot = slot
        log.first_page = first_page
        log.num_pages = num_pages
        with ffi.from_buffer(bitmap) as bits:
            log.dirty_bitmap = bits
            self._ioctl("KVM_CLEAR_DIRTY_LOG", lib.KVM_CLEAR_DIRTY_LOG, log)

    def set_tss_addr(self, gpa: int) -> None:
        """Give KVM three guest-physical pages for its task segment (Intel)."""
        self._ioctl_value("KVM_SET_TSS_ADDR", lib.KVM_SET_TSS_ADDR, gpa)

    def set_identity_map_addr(self, gpa: int) -> None:
        """Give KVM one guest-physical page for its identity map (Intel)."""
        address = ffi.new("uint64_t *", gpa)
        self._ioctl("KVM_SET_IDENTITY_MAP_ADDR", lib.KVM_SET_IDENTITY_MAP_ADDR, address)

    def set_gsi_routing(self, routes: Sequence[MsiRoute]) -> None:
        """Replace the whole table of what each GSI stands for. Raises: HostError (host)."""
        table = ffi.new("struct vk_msi_route[]", len(routes))
        for entry, (gsi, address, data) in zip(table, routes, strict=True):
            entry.gsi = gsi
            entry.data = data
            entry.address = address
        check("KVM_SET_GSI_ROUTING", lib.vk_set_gsi_routing(self.fd, table, len(routes)))

    def irqfd(self, fd: int, gsi: int, *, assign: bool = True) -> None:
        """Let every signal of an eventfd raise a GSI, or stop that. Raises: HostError (host)."""
        irqfd = ffi.new("struct kvm_irqfd *")
        irqfd.fd = fd
        irqfd.gsi = gsi
        irqfd.flags = 0 if assign else lib.KVM_IRQFD_FLAG_DEASSIGN
        self._ioctl("KVM_IRQFD", lib.KVM_IRQFD, irqfd)

    def ioeventfd(
        self,
        fd: int,
        address: int,
        length: int,
        *,
        pio: bool = False,
        datamatch: int | None = None,
        assign: bool = True,
    ) -> None:
        """Signal an eventfd, without an exit, when the guest writes ``length`` bytes at an address.

        A length of 0 means any; ``datamatch`` narrows it to one value. Raises: HostError (host).
        """
        event = ffi.new("struct kvm_ioeventfd *")
        event.fd = fd
        event.addr = address
        event.len = length
        if pio:
            event.flags |= lib.KVM_IOEVENTFD_FLAG_PIO
        if datamatch is not None:
            event.flags |= lib.KVM_IOEVENTFD_FLAG_DATAMATCH
            event.datamatch = datamatch
        if not assign:
            event.flags |= lib.KVM_IOEVENTFD_FLAG_DEASSIGN
        self._ioctl("KVM_IOEVENTFD", lib.KVM_IOEVENTFD, event)

    def signal_msi(self, address: int, data: int) -> bool:
        """Deliver one message; False when the guest has blocked it. Raises: HostError (host)."""
        msi = ffi.new("struct kvm_msi *")
        msi.address_lo = address & 0xFFFF_FFFF
        msi.address_hi = address >> 32
        msi.data = data
        return self._ioctl("KVM_SIGNAL_MSI", lib.KVM_SIGNAL_MSI, msi) > 0

    def get_clock(self) -> ClockData:
        """Return the guest's paravirtual clock in ns; its flags say what else is valid."""
        clock = ffi.new("struct kvm_clock_data *")
        self._ioctl("KVM_GET_CLOCK", lib.KVM_GET_CLOCK, clock)
        return ClockData(clock.clock, clock.flags, clock.realtime, clock.host_tsc)

    def set_clock(self, data: ClockData) -> None:
        """Set the guest's paravirtual clock; flags may hold KVM_CLOCK_REALTIME only."""
        clock = ffi.new("struct kvm_clock_data *")
        clock.clock, clock.flags, clock.realtime, clock.host_tsc = data
        self._ioctl("KVM_SET_CLOCK", lib.KVM_SET_CLOCK, clock)

    def create_vcpu(self, index: int) -> Vcpu:
        """Make a vCPU whose APIC id is ``index``. Raises: HostError (host)."""
        xsave_bytes = max(self.check_extension(KVM_CAP_XSAVE2), XSAVE_BYTES)
        nested_bytes = self.check_extension(KVM_CAP_NESTED_STATE)
        fd = self._ioctl_value("KVM_CREATE_VCPU", lib.KVM_CREATE_VCPU, index)
        return Vcpu(
            fd,
            index,
            run_bytes=self._run_bytes,
            xsave_bytes=xsave_bytes,
            nested_bytes=nested_bytes,
        )

    def _ioctl(self, name: str, request: int, argument: CData) -> int:
        return check(name, lib.vk_ioctl(self.fd, request, argument))

    def _ioctl_value(self, name: str, request: int, argument: int) -> int:
        return check(name, lib.vk_ioctl_value(self.fd, request, argument))
