"""What the host's processor and scheduler are asked for outside KVM."""

from __future__ import annotations

import errno

from vmm.errors import ConfigError, HostError
from vmm.kvm_cffi._kvm import ffi, lib

NO_CORE_SCHEDULING = (errno.EINVAL, errno.ENODEV)
"""What a kernel built without it, or a host without hyper-threads, answers."""


def cpuid(function: int, index: int) -> tuple[int, int, int, int]:
    """Run the CPUID instruction: a leaf and subleaf give EAX, EBX, ECX, EDX."""
    registers = ffi.new("uint32_t[4]")
    lib.vk_cpuid(function, index, registers)
    eax, ebx, ecx, edx = registers
    return eax, ebx, ecx, edx


def request_amx_for_guests() -> None:
    """Ask the kernel to let this process's guests use AMX tiles.

    Raises: ConfigError (caller) where the processor or the kernel has none.
    """
    result = lib.vk_request_amx_for_guests()
    if result < 0:
        cause = HostError("arch_prctl(ARCH_REQ_XCOMP_GUEST_PERM)", -result)
        raise ConfigError(
            "cpus.features.amx (--cpus features=[amx]) asks for AMX and this host does not have "
            "it; leave it out or use a host with AMX"
        ) from cause


def create_core_scheduling_cookie() -> bool:
    """Let this thread, and those it makes from now on, share a physical core with no others.

    Returns False where the host has no core scheduling, or no threads of a core to schedule.
    Raises: HostError.
    """
    result = lib.vk_create_core_scheduling_cookie()
    if -result in NO_CORE_SCHEDULING:
        return False
    if result < 0:
        raise HostError("prctl(PR_SCHED_CORE)", -result)
    return True
