"""Can this machine's KVM run a stock Linux guest, or is the nested host needed?"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Final, NamedTuple

# _IOWR(0xAE, 0x05, struct kvm_cpuid2), Linux include/uapi/linux/kvm.h
KVM_GET_SUPPORTED_CPUID: Final = 0xC008AE05
_HEADER: Final = struct.Struct("II")  # struct kvm_cpuid2: nent, padding
_ENTRY: Final = struct.Struct("7I12x")  # struct kvm_cpuid_entry2: function, index, flags, eax-edx
_MAX_ENTRIES: Final = 256
# What every x86 processor with hardware virtualisation has in ECX of leaf 1, and a stock kernel's
# user space may rely on. A KVM that runs guests in software does not advertise them.
_NEEDED_ECX: Final = {"SSE3": 1 << 0, "POPCNT": 1 << 23, "XSAVE": 1 << 26}
_VARIABLE: Final = "TRIO_VMM_HOST"


class KvmAnswer(NamedTuple):
    """Whether KVM here runs Linux, and why it is believed to, as words that follow "because"."""

    runs: bool
    reason: str


def kvm_runs_linux(
    kvm: Path = Path("/dev/kvm"), cpuinfo: Path = Path("/proc/cpuinfo")
) -> KvmAnswer:
    """Probe this machine's KVM; TRIO_VMM_HOST (direct, nested or auto) decides instead if set.

    Raises: ValueError: TRIO_VMM_HOST has another value (caller).
    """
    chosen = os.environ.get(_VARIABLE, "auto")
    if chosen not in ("auto", "direct", "nested"):
        raise ValueError(f"{_VARIABLE} is {chosen!r}; set it to direct, nested or auto.")
    if chosen != "auto":
        return KvmAnswer(chosen == "direct", f"{_VARIABLE}={chosen} says so")
    try:
        fd = os.open(kvm, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return KvmAnswer(False, _why_not_opened(kvm, error))
    try:
        leaf_1_ecx = _supported_leaf_1_ecx(fd)
    except OSError as error:
        return KvmAnswer(False, f"{kvm} does not answer as KVM does: {error.strerror}")
    finally:
        os.close(fd)
    flags = set(cpuinfo.read_text().split())
    if not flags & {"vmx", "svm"}:
        return KvmAnswer(False, "this CPU has neither VMX nor SVM: its KVM runs guests in software")
    missing = [name for name, bit in _NEEDED_ECX.items() if not leaf_1_ecx & bit]
    if missing:
        return KvmAnswer(False, f"KVM here does not offer {', '.join(missing)} to guests")
    return KvmAnswer(True, "KVM is there, and is backed by hardware")


def _why_not_opened(kvm: Path, error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"this user may not open {kvm} (its group, usually kvm, may)"
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return f"this machine has no {kvm}"
    return f"{kvm} does not open: {error.strerror}"


def _supported_leaf_1_ecx(fd: int) -> int:
    """Return ECX of leaf 1 of the CPUID that KVM offers to guests."""
    buffer = bytearray(_HEADER.size + _MAX_ENTRIES * _ENTRY.size)
    _HEADER.pack_into(buffer, 0, _MAX_ENTRIES, 0)
    fcntl.ioctl(fd, KVM_GET_SUPPORTED_CPUID, buffer)
    count, _ = _HEADER.unpack_from(buffer)
    for index in range(count):
        entry = _ENTRY.unpack_from(buffer, _HEADER.size + index * _ENTRY.size)
        if entry[0] == 1:
            return int(entry[5])
    return 0
