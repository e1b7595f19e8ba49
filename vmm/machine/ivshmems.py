"""From the ivshmem section to a device over its file, which is mapped and shared."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from vmm.errors import ConfigError, HostError
from vmm.legacy.ivshmem import Ivshmem
from vmm.machine.backing import MADV_DONTDUMP

if TYPE_CHECKING:
    from vmm.config.ivshmem import IvshmemConfig

PATH: Final = "ivshmem.path (--ivshmem path=…)"
SIZE: Final = "ivshmem.size (--ivshmem size=…)"


@contextmanager
def open_ivshmem(config: IvshmemConfig, id: str) -> Iterator[Ivshmem]:
    """The device over its file, mapped until the scope is left.

    Raises: ConfigError (caller), HostError.
    """
    with _mapped(config) as mapping, memoryview(mapping) as memory:
        yield Ivshmem(id, memory)


def _mapped(config: IvshmemConfig) -> mmap.mmap:
    """The beginning of the file, which others see as it is written."""
    try:
        # Without O_NONBLOCK a named pipe would have this wait.
        fd = os.open(config.path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise HostError.from_os_error(
            "open of an ivshmem file",
            error,
            path=config.path,
            hint=f"give {PATH} a file that can be read and written; it is not made",
        ) from error
    try:
        _check(os.fstat(fd), config)
        mapping = mmap.mmap(fd, config.size)
    except OSError as error:
        raise HostError.from_os_error(
            f"mmap of {config.size >> 10} KiB of an ivshmem file",
            error,
            path=config.path,
            hint="give a file whose file system can be mapped",
        ) from error
    finally:
        os.close(fd)  # The mapping has a descriptor of its own.
    mapping.madvise(MADV_DONTDUMP)
    return mapping


def _check(found: os.stat_result, config: IvshmemConfig) -> None:
    """Refuse a file that cannot be all of the memory. Raises: ConfigError (caller)."""
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{config.path} is no regular file; give such a one ({PATH})")
    if found.st_size < config.size:
        raise ConfigError(
            f"{config.path} has {found.st_size} bytes, less than the {config.size} of {SIZE}; "
            "lengthen the file or lower the size"
        )
