"""The vCPU descriptor: its registers and its shared run area.

KVM serialises these ioctls with KVM_RUN, so call them before the vCPU's thread starts or while it
stands still; otherwise they block until the guest exits by itself.
Source: Linux Documentation/virt/kvm/api.rst, "vcpu ioctls".
"""

from __future__ import annotations

import errno
import os
from enum import IntFlag
from typing import TYPE_CHECKING

from vmm.errors import HostError, InternalError
from vmm.kvm_cffi import registers
from vmm.kvm_cffi._kvm import ffi, lib
from vmm.kvm_cffi.check import check
from vmm.kvm_cffi.closing import Closing
from vmm.kvm_cffi.cpuid import MAX_CPUID_ENTRIES, pack_cpuid, unpack_cpuid
from vmm.kvm_cffi.msrs import get_msrs, set_msrs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmm.kvm_cffi._kvm import CData
    from vmm.kvm_cffi.structs import CpuidEntry, Fpu, MsrEntry, Regs, Sregs

XSAVE_BYTES = 4096
LAPIC_BYTES = 1024
NESTED_HEADER_BYTES = 128
NESTED_SIZE = slice(4, 8)
"""Where ``struct kvm_nested_state`` says how many bytes it has."""


class SyncRegs(IntFlag):
    """Register files that KVM keeps in the run area."""

    REGS = lib.KVM_SYNC_X86_REGS
    SREGS = lib.KVM_SYNC_X86_SREGS


class Vcpu(Closing):
    """One vCPU; a context manager that unmaps its run area and closes its descriptor."""

    def __init__(
        self, fd: int, index: int, *, run_bytes: int, xsave_bytes: int, nested_bytes: int
    ) -> None:
        self.fd = fd
        self.index = index
        self.run_bytes = run_bytes
        self.has_thread = False
        """Set by the thread that runs this vCPU, for as long as it lives."""
        self._xsave_bytes = xsave_bytes
        self.nested_bytes = nested_bytes
        """The most that ``get_nested_state`` gives: 0 where KVM has no such state."""
        area = ffi.new("void **")
        try:
            check("mmap", lib.vk_map_run(fd, run_bytes, area))
        except HostError:
            os.close(fd)
            raise
        self.run_area = area[0]
        self._run = ffi.cast("struct kvm_run *", self.run_area)

    def close(self) -> None:
        """Unmap and close. A second call does nothing.

        Raises: InternalError while its thread lives, because the thread uses what this takes away.
        """
        if self.has_thread:
            raise InternalError(f"vCPU {self.index} still has a thread; close that first")
        fd, self.fd = self.fd, -1
        if fd >= 0:
            lib.vk_unmap_run(self.run_area, self.run_bytes)
            os.close(fd)

    def get_regs(self) -> Regs:
        """Return the general-purpose registers."""
        regs = ffi.new("struct kvm_regs *")
        self._ioctl("KVM_GET_REGS", lib.KVM_GET_REGS, regs)
        return registers.unpack_regs(regs)

    def set_regs(self, regs: Regs) -> None:
        """Replace the general-purpose registers."""
        self._ioctl("KVM_SET_REGS", lib.KVM_SET_REGS, registers.pack_regs(regs))

    def get_sregs(self) -> Sregs:
        """Return segments, control registers and the APIC base."""
        sregs = ffi.new("struct kvm_sregs *")
        self._ioctl("KVM_GET_SREGS", lib.KVM_GET_SREGS, sregs)
        return registers.unpack_sregs(sregs)

    def set_sregs(self, sregs: Sregs) -> None:
        """Replace segments, control registers and the APIC base."""
        self._ioctl("KVM_SET_SREGS", lib.KVM_SET_SREGS, registers.pack_sregs(sregs))

    def sync_regs(self, fields: SyncRegs) -> None:
        """Have KVM leave register files in the run area at each exit, to be read without an ioctl.

        Source: api.rst, "KVM_CAP_SYNC_REGS"; KVM_RUN fails on a kernel without it.
        """
        self._run.kvm_valid_regs = fields

    def get_synced_regs(self) -> Regs:
        """Return the general-purpose registers as of the last exit. Asked for: SyncRegs.REGS."""
        return registers.unpack_regs(lib.vk_sync_regs(self.run_area).regs)

    def get_synced_sregs(self) -> Sregs:
        """Return the system registers as of the last exit. Asked for: SyncRegs.SREGS."""
        return registers.unpack_sregs(lib.vk_sync_regs(self.run_area).sregs)

    def set_synced_regs(self, regs: Regs) -> None:
        """Replace the general-purpose registers as KVM enters the guest again."""
        lib.vk_sync_regs(self.run_area).regs = registers.pack_regs(regs)[0]
        self._run.kvm_dirty_regs |= SyncRegs.REGS

    def get_fpu(self) -> Fpu:
        """Return the x87 and SSE state."""
        fpu = ffi.new("struct kvm_fpu *")
        self._ioctl("KVM_GET_FPU", lib.KVM_GET_FPU, fpu)
        return registers.unpack_fpu(fpu)

    def set_fpu(self, fpu: Fpu) -> None:
        """Replace the x87 and SSE state."""
        self._ioctl("KVM_SET_FPU", lib.KVM_SET_FPU, registers.pack_fpu(fpu))

    def get_xsave(self) -> bytes:
        """Return the XSAVE area: 4096 bytes, or more where KVM has KVM_CAP_XSAVE2."""
        if self._xsave_bytes == XSAVE_BYTES:
            return self._get_bytes("KVM_GET_XSAVE", lib.KVM_GET_XSAVE, XSAVE_BYTES)
        return self._get_bytes("KVM_GET_XSAVE2", lib.KVM_GET_XSAVE2, self._xsave_bytes)

    def set_xsave(self, area: bytes) -> None:
        """Replace the XSAVE area; it must be as long as ``get_xsave`` gives."""
        self._set_bytes("KVM_SET_XSAVE", lib.KVM_SET_XSAVE, area, self._xsave_bytes)

    def get_nested_state(self) -> bytes:
        """Return ``struct kvm_nested_state``: what a guest does that runs VMs itself.

        Source: api.rst, KVM_GET_NESTED_STATE.
        """
        area = ffi.new("uint8_t[]", self.nested_bytes)
        content = memoryview(ffi.buffer(area))
        content[NESTED_SIZE] = self.nested_bytes.to_bytes(4, "little")
        self._ioctl("KVM_GET_NESTED_STATE", lib.KVM_GET_NESTED_STATE, area)
        return bytes(content[: int.from_bytes(content[NESTED_SIZE], "little")])

    def set_nested_state(self, state: bytes) -> None:
        """Replace that; the bytes of ``get_nested_state``."""
        size = int.from_bytes(state[NESTED_SIZE], "little")
        if not NESTED_HEADER_BYTES <= size == len(state):
            raise InternalError(f"A nested state of {len(state)} bytes says that it has {size}")
        self._ioctl("KVM_SET_NESTED_STATE", lib.KVM_SET_NESTED_STATE, ffi.new("uint8_t[]", state))

    def get_xcrs(self) -> dict[int, int]:
        """Return the extended control registers, by number."""
        xcrs = ffi.new("struct kvm_xcrs *")
        self._ioctl("KVM_GET_XCRS", lib.KVM_GET_XCRS, xcrs)
        return {xcrs.xcrs[at].xcr: xcrs.xcrs[at].value for at in range(xcrs.nr_xcrs)}

    def set_xcrs(self, values: Mapping[int, int]) -> None:
        """Replace extended control registers, at most 16 of them."""
        xcrs = ffi.new("struct kvm_xcrs *")
        xcrs.nr_xcrs = len(values)
        for at, (number, value) in enumerate(values.items()):
            xcrs.xcrs[at].xcr = number
            xcrs.xcrs[at].value = value
        self._ioctl("KVM_SET_XCRS", lib.KVM_SET_XCRS, xcrs)

    def get_msrs(self, indices: Sequence[int]) -> list[MsrEntry]:
        """Read MSRs. Raises: HostError (host) naming the first one that KVM refuses."""
        return get_msrs(self.fd, indices)

    def set_msrs(self, entries: Sequence[MsrEntry]) -> None:
        """Write MSRs in order. Raises: HostError (host) naming the first one that KVM refuses."""
        set_msrs(self.fd, entries)

    def set_cpuid2(self, entries: Sequence[CpuidEntry]) -> None:
        """Replace what the guest's CPUID instruction shows."""
        self._ioctl("KVM_SET_CPUID2", lib.KVM_SET_CPUID2, pack_cpuid(entries))

    def get_cpuid2(self) -> list[CpuidEntry]:
        """Return what the guest's CPUID instruction shows."""
        cpuid = pack_cpuid((), room=MAX_CPUID_ENTRIES)
        self._ioctl("KVM_GET_CPUID2", lib.KVM_GET_CPUID2, cpuid)
        return unpack_cpuid(cpuid)

    def get_lapic(self) -> bytes:
        """Return the local APIC's register page: 1024 bytes."""
        return self._get_bytes("KVM_GET_LAPIC", lib.KVM_GET_LAPIC, LAPIC_BYTES)

    def set_lapic(self, page: bytes) -> None:
        """Replace the local APIC's register page: 1024 bytes."""
        self._set_bytes("KVM_SET_LAPIC", lib.KVM_SET_LAPIC, page, LAPIC_BYTES)

    def get_vcpu_events(self) -> bytes:
        """Return ``struct kvm_vcpu_events``: pending exceptions, interrupts, NMI, SIPI, SMM."""
        size = ffi.sizeof("struct kvm_vcpu_events")
        return self._get_bytes("KVM_GET_VCPU_EVENTS", lib.KVM_GET_VCPU_EVENTS, size)

    def set_vcpu_events(self, events: bytes) -> None:
        """Replace what is pending; the bytes of ``get_vcpu_events``."""
        size = ffi.sizeof("struct kvm_vcpu_events")
        self._set_bytes("KVM_SET_VCPU_EVENTS", lib.KVM_SET_VCPU_EVENTS, events, size)

    def get_debugregs(self) -> bytes:
        """Return ``struct kvm_debugregs``: DR0-DR3, DR6, DR7."""
        size = ffi.sizeof("struct kvm_debugregs")
        return self._get_bytes("KVM_GET_DEBUGREGS", lib.KVM_GET_DEBUGREGS, size)

    def set_debugregs(self, debugregs: bytes) -> None:
        """Replace the debug registers; the bytes of ``get_debugregs``."""
        size = ffi.sizeof("struct kvm_debugregs")
        self._set_bytes("KVM_SET_DEBUGREGS", lib.KVM_SET_DEBUGREGS, debugregs, size)

    def set_guest_debug(self, control: int, debugregs: Sequence[int] = ()) -> None:
        """Have the vCPU exit for a debugger: KVM_GUESTDBG_*, and DR0 to DR7 for hardware's."""
        debug = ffi.new("struct kvm_guest_debug *")
        debug.control = control
        for at, value in enumerate(debugregs):
            debug.arch.debugreg[at] = value
        self._ioctl("KVM_SET_GUEST_DEBUG", lib.KVM_SET_GUEST_DEBUG, debug)

    def get_mp_state(self) -> int:
        """Return the run state, one of KVM_MP_STATE_*."""
        state = ffi.new("struct kvm_mp_state *")
        self._ioctl("KVM_GET_MP_STATE", lib.KVM_GET_MP_STATE, state)
        return int(state.mp_state)

    def set_mp_state(self, mp_state: int) -> None:
        """Replace the run state, one of KVM_MP_STATE_*."""
        state = ffi.new("struct kvm_mp_state *")
        state.mp_state = mp_state
        self._ioctl("KVM_SET_MP_STATE", lib.KVM_SET_MP_STATE, state)

    def get_tsc_khz(self) -> int:
        """Return the guest's time-stamp frequency in kHz."""
        return check("KVM_GET_TSC_KHZ", lib.vk_ioctl_value(self.fd, lib.KVM_GET_TSC_KHZ, 0))

    def set_tsc_khz(self, khz: int) -> None:
        """Set the guest's time-stamp frequency in kHz."""
        check("KVM_SET_TSC_KHZ", lib.vk_ioctl_value(self.fd, lib.KVM_SET_TSC_KHZ, khz))

    def tell_paused(self) -> None:
        """Tell a guest that uses the paravirtual clock that it stood, so that it sees no lock-up.

        Source: api.rst, KVM_KVMCLOCK_CTRL. Raises: HostError (host).
        """
        result = lib.vk_ioctl_value(self.fd, lib.KVM_KVMCLOCK_CTRL, 0)
        if result != -errno.EINVAL:  # It does not use that clock.
            check("KVM_KVMCLOCK_CTRL", result)

    def enable_cap(self, cap: int, *args: int) -> None:
        """Turn on a capability of this vCPU alone. Raises: HostError (host) when it is refused."""
        enable = ffi.new("struct kvm_enable_cap *")
        enable.cap = cap
        for at, value in enumerate(args):
            enable.args[at] = value
        self._ioctl("KVM_ENABLE_CAP", lib.KVM_ENABLE_CAP, enable)

    def _ioctl(self, name: str, request: int, argument: CData) -> int:
        return check(name, lib.vk_ioctl(self.fd, request, argument))

    def _get_bytes(self, name: str, request: int, size: int) -> bytes:
        area = ffi.new("uint8_t[]", size)
        self._ioctl(name, request, area)
        return bytes(ffi.buffer(area))

    def _set_bytes(self, name: str, request: int, area: bytes, size: int) -> None:
        if len(area) != size:
            raise InternalError(f"{name} takes {size} bytes on this host and was given {len(area)}")
        self._ioctl(name, request, ffi.new("uint8_t[]", area))
