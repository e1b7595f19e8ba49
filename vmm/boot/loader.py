"""Load what a machine boots from: the kernel or firmware, the initramfs, the command line.

A kernel is tried as an ELF image with a PVH entry, then as a bzImage; firmware is the first of
these. Files go straight into guest memory, and only their headers are looked at.
"""

from __future__ import annotations

from vmm.boot import bzimage, elf, layout
from vmm.boot.entry import KernelEntry
from vmm.boot.layout import MIB, RamRange
from vmm.boot.payload import PayloadFile
from vmm.boot.ram import BootRam
from vmm.errors import ConfigError
from vmm.page import PAGE

HEAD_SIZE = 1024
"""Enough of a file, in bytes, to tell every kind of image apart."""


def load_kernel(memory: BootRam, file: PayloadFile) -> KernelEntry:
    """Put a kernel or firmware image into RAM and say where it is entered.

    Raises: ConfigError (caller) when the file is no image we can boot or does not fit into RAM;
    HostError when it cannot be read.
    """
    head = file.read(0, HEAD_SIZE)
    if elf.is_elf(head):
        return elf.load(memory, file, head)
    if bzimage.is_bzimage(head):
        return bzimage.load(memory, file, head)
    if not head:
        raise file.refuse("is empty; use an ELF image with a PVH note, or a bzImage")
    raise file.refuse(
        f"begins with {head[:4].hex()} and is neither an ELF image nor a bzImage; use a vmlinux "
        f"or firmware image with a PVH note, or a bzImage such as Debian's vmlinuz"
    )


def load_initramfs(memory: BootRam, file: PayloadFile, kernel: KernelEntry) -> RamRange:
    """Put the initramfs on the pages at the top of the first range of RAM.

    Raises: ConfigError (caller) when it is empty or there is no room for it above the kernel;
    HostError when it cannot be read.
    """
    size = file.size()
    if size == 0:
        raise file.refuse("is empty; use a cpio archive, or leave --initramfs out")
    top = min(memory.ram[0].end, kernel.initramfs_limit)
    address = (top - size) // PAGE * PAGE
    if address < kernel.end:
        needed = kernel.end + -(-size // PAGE) * PAGE
        raise file.refuse(
            f"has {size} bytes and needs RAM up to {-(-needed // MIB)} MiB, above the kernel, "
            f"which ends at {kernel.end:#x}, but what it may use ends at {top // MIB} MiB; raise "
            f"memory.size (--memory size=…) or use a smaller initramfs"
        )
    file.load(memory, address, size, 0)
    return RamRange(address, size)


def load_cmdline(memory: BootRam, cmdline: str) -> None:
    """Write the kernel's command line, with a NUL at its end.

    Raises: ConfigError (caller) when it is too long, holds a NUL, or is no text.
    """
    try:
        # Arguments that are not UTF-8 reach us with their bytes escaped: give those back as is.
        line = cmdline.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"The kernel's command line (payload.cmdline, --cmdline) holds a lone surrogate at "
            f"character {error.start}; use characters that UTF-8 can express"
        ) from error
    if b"\0" in line:
        raise ConfigError(
            f"The kernel's command line (payload.cmdline, --cmdline) holds a NUL at byte "
            f"{line.index(0)}, where the kernel would stop reading; take it out"
        )
    if len(line) >= layout.CMDLINE_MAX_SIZE:
        raise ConfigError(
            f"The kernel's command line (payload.cmdline, --cmdline) has {len(line)} bytes and "
            f"{layout.CMDLINE_MAX_SIZE - 1} is the limit; shorten it"
        )
    memory.write(layout.CMDLINE, line + b"\0")
