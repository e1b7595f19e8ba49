"""Addresses of Python buffers in this process, and where their memory comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.kvm_cffi._kvm import ffi, lib
from vmm.kvm_cffi.check import check

if TYPE_CHECKING:
    from mmap import mmap


def address_of(buffer: memoryview | bytearray | mmap) -> int:
    """Return the address of a buffer's first byte; it holds only while the buffer lives."""
    with ffi.from_buffer(buffer) as data:
        return int(ffi.cast("uintptr_t", data))


def bind_to_numa_node(address: int, size: int, node: int) -> None:
    """Let ``size`` bytes of memory come from one host NUMA node only. Raises: HostError (host)."""
    check("mbind", lib.vk_bind_to_node(address, size, node))
