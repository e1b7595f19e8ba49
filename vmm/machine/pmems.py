"""From a pmem section to a device over its file, which is mapped and shown to the guest."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from vmm.config.pmem import ALIGNMENT_BYTES
from vmm.errors import ConfigError, HostError
from vmm.kvm_cffi import address_of
from vmm.virtio.pmem import Pmem

if TYPE_CHECKING:
    from vmm.config.pmem import PmemConfig
    from vmm.machine.device_memory import DeviceMemory

MAP_NORESERVE: Final = 0x4000
MADV_DONTDUMP: Final = 16
FILE: Final = "pmem[].file (--pmem file=…)"
SIZE: Final = "pmem[].size (--pmem size=…)"


@contextmanager
def open_pmem(config: PmemConfig, id: str, memory: DeviceMemory) -> Iterator[Pmem]:
    """The device over its file, mapped and in the guest until the scope is left.

    Raises: ConfigError (caller), HostError.
    """
    with _opened(config) as fd:
        size = _size(fd, config)
        with (
            _mapped(fd, size, config) as hva,
            memory.shown(
                hva, size, id=id, segment=config.pci_segment, alignment=ALIGNMENT_BYTES
            ) as gpa,
        ):
            yield Pmem(id, gpa, size, None if config.discard_writes else partial(os.fsync, fd))


@contextmanager
def _opened(config: PmemConfig) -> Iterator[int]:
    """The file, or in a directory one without a name."""
    is_directory = os.path.isdir(config.file)
    if is_directory and config.size is None:
        raise ConfigError(
            f"{config.file} is a directory ({FILE}); give the size of the file: {SIZE}"
        )
    is_written = is_directory or not config.discard_writes
    # Without O_NONBLOCK a named pipe would have this wait for its writer.
    flags = os.O_CLOEXEC | os.O_NONBLOCK | (os.O_RDWR if is_written else os.O_RDONLY)
    try:
        fd = os.open(config.file, flags | (os.O_TMPFILE if is_directory else 0), 0o600)
    except OSError as error:
        raise HostError.from_os_error(
            "open of a pmem file",
            error,
            path=config.file,
            hint=f"give {FILE} a file that can be {'written' if is_written else 'read'}",
        ) from error
    try:
        if is_directory:
            _lengthen(fd, config)
        yield fd
    finally:
        os.close(fd)


def _lengthen(fd: int, config: PmemConfig) -> None:
    assert config.size is not None, "a directory comes with a size"
    try:
        os.ftruncate(fd, config.size)
    except OSError as error:
        raise HostError.from_os_error(
            "sizing of a pmem file", error, path=config.file, hint=f"give a smaller {SIZE}"
        ) from error


def _size(fd: int, config: PmemConfig) -> int:
    """What the guest sees of the file. Raises: ConfigError (caller)."""
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise ConfigError(
            f"{config.file} is neither a regular file nor a block device; give such a one ({FILE})"
        )
    present = os.lseek(fd, 0, os.SEEK_END)
    if config.size is None and (present == 0 or present % ALIGNMENT_BYTES):
        raise ConfigError(
            f"{config.file} has {present} bytes, no positive multiple of {ALIGNMENT_BYTES}; "
            f"lengthen it, or give the part of it to use ({SIZE})"
        )
    if config.size is not None and config.size > present:
        raise ConfigError(
            f"{config.file} has {present} bytes, less than the {config.size} of {SIZE}; lengthen "
            "the file or lower the size"
        )
    return present if config.size is None else config.size


@contextmanager
def _mapped(fd: int, size: int, config: PmemConfig) -> Iterator[int]:
    """Its host address: the file itself, or a private copy that ends with the scope."""
    flags = mmap.MAP_PRIVATE if config.discard_writes else mmap.MAP_SHARED
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    try:
        mapping = mmap.mmap(fd, size, flags=flags | MAP_NORESERVE, prot=protection)
    except OSError as error:
        raise HostError.from_os_error(
            f"mmap of {size >> 20} MiB of a pmem file",
            error,
            path=config.file,
            hint=f"give a file whose file system can be mapped, or a smaller {SIZE}",
        ) from error
    with mapping:
        mapping.madvise(MADV_DONTDUMP)
        with memoryview(mapping) as view:
            yield address_of(view)
