"""The model-specific registers that a vCPU starts with.

Specification: Intel SDM, volume 4; the memory types are of volume 3, section 12.11.
"""

from __future__ import annotations

from vmm.kvm_cffi.structs import MsrEntry

TSC = 0x10
SYSENTER_CS = 0x174
SYSENTER_ESP = 0x175
SYSENTER_EIP = 0x176
MISC_ENABLE = 0x1A0
MTRR_DEF_TYPE = 0x2FF
STAR = 0xC000_0081
LSTAR = 0xC000_0082
CSTAR = 0xC000_0083
SYSCALL_MASK = 0xC000_0084
KERNEL_GS_BASE = 0xC000_0102

FAST_STRING = 1 << 0
MTRR_ENABLE = 1 << 11
MTRR_WRITE_BACK = 6

BOOT_MSRS = (
    MsrEntry(SYSENTER_CS, 0),
    MsrEntry(SYSENTER_ESP, 0),
    MsrEntry(SYSENTER_EIP, 0),
    MsrEntry(STAR, 0),
    MsrEntry(CSTAR, 0),
    MsrEntry(KERNEL_GS_BASE, 0),
    MsrEntry(SYSCALL_MASK, 0),
    MsrEntry(LSTAR, 0),
    MsrEntry(TSC, 0),
    MsrEntry(MISC_ENABLE, FAST_STRING),
    # Without this a guest finds no memory type for its RAM and treats all of it as uncached.
    MsrEntry(MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK),
)
