"""bzImage: a Linux kernel as distributions ship it, entered in 32-bit protected mode.

Specification: Linux Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header" and "32-bit
Boot Protocol".
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from vmm.boot import layout
from vmm.boot.entry import KernelEntry, require_ram
from vmm.boot.payload import PayloadFile
from vmm.boot.ram import BootRam

SECTOR = 512
BOOT_FLAG_AT = 0x1FE
BOOT_FLAG = b"\x55\xaa"
MAGIC_AT = 0x202
MAGIC = b"HdrS"
HEADER_AT = 0x1F1
HEADER_END = 0x290
"""Where the boot parameters need the room for something else."""
HEADER_LENGTH_AT = 0x201
"""The jump over the header: its distance tells how long the header is."""
MIN_HEADER_SIZE = 0x238
"""A file that ends before here, in bytes, cannot hold the header of protocol 2.06."""

PROTOCOL_2_06 = 0x206
PROTOCOL_2_10 = 0x20A
LOADED_HIGH = 1 << 0
DEFAULT_SETUP_SECTORS = 4


class SetupHeader(NamedTuple):
    """The fields of the setup header that a loader uses; sizes in bytes."""

    setup_size: int
    code_size: int
    version: int
    loadflags: int
    code32_start: int
    initrd_addr_max: int
    pref_address: int
    init_size: int
    raw: bytes


def is_bzimage(head: bytes) -> bool:
    """Whether a file that begins like this claims to be a bzImage."""
    return (
        head[BOOT_FLAG_AT : BOOT_FLAG_AT + 2] == BOOT_FLAG
        and head[MAGIC_AT : MAGIC_AT + 4] == MAGIC
    )


def load(memory: BootRam, file: PayloadFile, head: bytes) -> KernelEntry:
    """Load a bzImage's protected-mode code where its header says, which is 1 MiB.

    Raises: ConfigError (caller) when the image is malformed, too old, or does not fit into RAM with
    the room that it unpacks itself into; HostError when it cannot be read.
    """
    header = _read_header(file, head)
    size = file.size() - header.setup_size
    # The checksum at the end may be missing from an image that was signed: allow for its paragraph.
    if size <= 0 or size + 16 < header.code_size:
        raise file.refuse(
            f"ends at byte {header.setup_size + size}, and its header says {header.setup_size} and "
            f"{header.code_size} bytes of setup and kernel; use an intact image"
        )
    start = header.code32_start
    require_ram(memory, file, start, start + size, "code")
    unpacked_end = header.pref_address + header.init_size
    if unpacked_end:
        require_ram(memory, file, header.pref_address, unpacked_end, "unpacked kernel")
    file.load(memory, start, size, header.setup_size)
    return KernelEntry(
        "bzimage",
        start,
        max(start + size, unpacked_end),
        initramfs_limit=min(header.initrd_addr_max + 1, layout.RAM_ABOVE_HOLE),
        setup_header=header.raw,
    )


def _read_header(file: PayloadFile, head: bytes) -> SetupHeader:
    if len(head) < MIN_HEADER_SIZE:
        raise file.refuse(
            f"ends after {len(head)} bytes, within the setup header of a bzImage "
            f"({MIN_HEADER_SIZE}); use an intact image"
        )
    (version,) = struct.unpack_from("<H", head, 0x206)
    loadflags = head[0x211]
    if version < PROTOCOL_2_06 or not loadflags & LOADED_HIGH:
        raise file.refuse(
            f"is a kernel of boot protocol {version >> 8}.{version & 0xFF:02} with load flags "
            f"{loadflags:#04x}, and protocol 2.06 loaded high (flag 0x01) is needed; build a "
            f"bzImage of Linux 2.6.22 or later"
        )
    (code_paragraphs,) = struct.unpack_from("<I", head, 0x1F4)
    (code32_start,) = struct.unpack_from("<I", head, 0x214)
    (initrd_addr_max,) = struct.unpack_from("<I", head, 0x22C)
    pref_address = init_size = 0
    if version >= PROTOCOL_2_10 and len(head) >= 0x264:
        pref_address, init_size = struct.unpack_from("<QI", head, 0x258)
    header_end = min(MAGIC_AT + head[HEADER_LENGTH_AT], HEADER_END)
    return SetupHeader(
        setup_size=((head[HEADER_AT] or DEFAULT_SETUP_SECTORS) + 1) * SECTOR,
        code_size=code_paragraphs * 16,
        version=version,
        loadflags=loadflags,
        code32_start=code32_start,
        initrd_addr_max=initrd_addr_max,
        pref_address=pref_address,
        init_size=init_size,
        raw=head[HEADER_AT:header_end],
    )
