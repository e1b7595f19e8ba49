"""From the configuration to the items of the firmware configuration device."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from vmm.boot.bzimage import DEFAULT_SETUP_SECTORS, SECTOR, is_bzimage
from vmm.boot.memmap import memory_map
from vmm.errors import ConfigError, HostError
from vmm.legacy import fw_cfg
from vmm.legacy.fw_cfg import Blob, Bytes, FwCfg

if TYPE_CHECKING:
    from vmm.config.fw_cfg import FwCfgConfig
    from vmm.config.payload import PayloadConfig
    from vmm.machine.memory import GuestMemory

E820_ENTRY = struct.Struct("<QQI")
SETUP_SECTORS_AT = 0x1F1

MOST_BYTES = 0xFFFF_FFFF
"""The most that the size of an item can say."""


class FileBlob(NamedTuple):
    """A piece of an opened file."""

    fd: int
    path: str
    start: int
    size: int

    def read(self, at: int, size: int) -> bytes:
        """Read a piece, shorter where it ends. Raises: HostError."""
        wanted = min(size, self.size - at)
        try:
            return os.pread(self.fd, wanted, self.start + at) if wanted > 0 else b""
        except OSError as error:
            raise HostError.from_os_error("read", error, path=self.path) from error


@contextmanager
def open_fw_cfg(payload: PayloadConfig, memory: GuestMemory) -> Iterator[FwCfg]:
    """Open what the items are made of and make the device.

    Raises: HostError, ConfigError for a file that is too large (caller).
    """
    config = payload.fw_cfg_config
    assert config is not None, "only a configuration with this section has the device"
    with ExitStack() as stack:
        items: dict[int, Blob] = {
            fw_cfg.SIGNATURE: Bytes(b"QEMU"),
            fw_cfg.ID: Bytes(struct.pack("<I", fw_cfg.HAS_DMA)),
        }
        if config.kernel and payload.kernel:
            items |= _kernel(_open(stack, payload.kernel))
        if config.initramfs and payload.initramfs:
            blob = _open(stack, payload.initramfs)
            items |= {fw_cfg.INITRD_SIZE: _number(blob.size), fw_cfg.INITRD_DATA: blob}
        if config.cmdline and payload.cmdline:
            line = payload.cmdline.encode() + b"\0"
            items |= {fw_cfg.CMDLINE_SIZE: _number(len(line)), fw_cfg.CMDLINE_DATA: Bytes(line)}
        files = list(_files(stack, config, memory))
        items[fw_cfg.FILE_DIR] = Bytes(fw_cfg.directory(files))
        items |= {fw_cfg.FIRST_FILE + number: blob for number, (_, blob) in enumerate(files)}
        yield FwCfg(items, memory)


def _files(
    stack: ExitStack, config: FwCfgConfig, memory: GuestMemory
) -> Iterator[tuple[str, Blob]]:
    if config.e820:
        entries = (E820_ENTRY.pack(*entry) for entry in memory_map(memory.ram))
        yield "etc/e820", Bytes(b"".join(entries))
    for item in config.items or ():
        if item.file is not None:
            yield item.name, _open(stack, item.file)
        else:
            yield item.name, Bytes((item.string or "").encode())


def _kernel(whole: FileBlob) -> dict[int, Blob]:
    """The kernel in the two parts that firmware loads: its setup, if it has one, and its code."""
    head = whole.read(0, 2 * SECTOR)
    setup = (
        SECTOR * (1 + (head[SETUP_SECTORS_AT] or DEFAULT_SETUP_SECTORS)) if is_bzimage(head) else 0
    )
    code = whole._replace(start=setup, size=max(0, whole.size - setup))
    return {
        fw_cfg.SETUP_SIZE: _number(setup),
        fw_cfg.SETUP_DATA: whole._replace(size=min(setup, whole.size)),
        fw_cfg.KERNEL_SIZE: _number(code.size),
        fw_cfg.KERNEL_DATA: code,
    }


def _number(value: int) -> Bytes:
    return Bytes(struct.pack("<I", value))


def _open(stack: ExitStack, path: str) -> FileBlob:
    hint = "give payload.fw_cfg_config (--fw-cfg-config items=…) a file that can be read"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        stack.callback(os.close, fd)
        os.pread(fd, 0, 0)  # A directory can be opened, and a pipe, but no more.
    except OSError as error:
        raise HostError.from_os_error("open", error, path=path, hint=hint) from error
    size = os.fstat(fd).st_size
    if size > MOST_BYTES:
        raise ConfigError(
            f"{path} has {size} bytes; an item of fw_cfg (payload.fw_cfg_config, "
            f"--fw-cfg-config) may have {MOST_BYTES}: give a smaller file"
        )
    return FileBlob(fd, path, 0, size)
