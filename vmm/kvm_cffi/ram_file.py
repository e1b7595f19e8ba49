"""RAM to a file and back; for worker threads, as C lets go of the interpreter's lock meanwhile."""

from __future__ import annotations

from vmm.kvm_cffi._kvm import ffi, lib
from vmm.kvm_cffi.check import check


def write_ram(fd: int, hva: int, size: int, offset: int, pagemap_fd: int = -1) -> int:
    """Write what is not zero of ``size`` bytes of memory to a file; give how much that was.

    Whole pages only. ``pagemap_fd`` is /proc/self/pagemap for private memory without a file: pages
    that were never touched are then not looked at. Raises: HostError (host).
    """
    memory = ffi.cast("void *", hva)
    return check("write", lib.vk_ram_write(fd, memory, size, offset, pagemap_fd))


def read_ram(fd: int, hva: int, size: int, offset: int) -> int:
    """Read a piece of a file into memory; give how much there was. Raises: HostError (host)."""
    return check("read", lib.vk_ram_read(fd, ffi.cast("void *", hva), size, offset))
