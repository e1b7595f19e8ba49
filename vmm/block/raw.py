"""Raw images: a regular file or a block device whose bytes are the disk's."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import struct
from contextlib import suppress
from typing import NamedTuple

from vmm.errors import ConfigError, HostError
from vmm.kvm_cffi.block import can_punch_holes

SECTOR = 512
PAGE = 4096

BLKSSZGET = 0x1268
BLKIOMIN = 0x1278
BLKIOOPT = 0x1279
BLKPBSZGET = 0x127B


class Topology(NamedTuple):
    """Sizes in bytes of what a disk reads and writes at once; ``optimal_io`` may be 0: unknown."""

    logical_block: int = SECTOR
    physical_block: int = SECTOR
    minimum_io: int = SECTOR
    optimal_io: int = 0


class RawImage:
    """An open raw image. ``fd`` is its own: ``close`` it.

    ``size`` is in bytes. ``alignment`` is what O_DIRECT asks for, 1 without. ``has_holes`` says
    that parts of it can be given back to the host, and then read as zeros.
    """

    def __init__(self, fd: int, path: str, *, read_only: bool, direct: bool) -> None:
        self.fd = fd
        self.path = path
        self.read_only = read_only
        self._status = os.fstat(fd)
        self.is_block_device = stat.S_ISBLK(self._status.st_mode)
        self.size = os.lseek(fd, 0, os.SEEK_END)
        self.topology = self._topology(direct)
        self.alignment = self.topology.logical_block if direct else 1
        self.has_holes = not read_only and (
            _device_discards(self._status.st_rdev)
            if self.is_block_device
            else can_punch_holes(fd, self.size)
        )

    @property
    def host_serial(self) -> bytes:
        """A name for the disk that stays the same while the image does."""
        status = self._status
        return f"{status.st_dev}{status.st_rdev}{status.st_ino}".encode()

    @property
    def allocated(self) -> int:
        """Bytes that the host keeps for it."""
        return os.fstat(self.fd).st_blocks * SECTOR

    def _topology(self, direct: bool) -> Topology:
        if self.is_block_device:
            return Topology(*(_ask(self.fd, self.path, request) for request in _QUESTIONS))
        if not direct:
            return Topology()
        block = _direct_alignment(self.fd, self.path)
        return Topology(block, block, block)

    def preallocate(self) -> None:
        """Have the host keep room for all of it. Blocks. Raises: HostError when there is none."""
        if self.is_block_device or self.read_only:
            return
        try:
            os.posix_fallocate(self.fd, 0, self.size)
        except OSError as error:
            hint = "make room on the host, or let it be sparse (disks[].sparse, --disk sparse=on)"
            raise HostError.from_os_error(
                "preallocation of a disk image", error, path=self.path, hint=hint
            ) from error

    def resize(self, size: int) -> None:
        """Cut it off or make it longer, with zeros. Raises: ConfigError (caller), HostError."""
        if self.is_block_device:
            raise ConfigError(
                f"{self.path} is a block device, which this VMM cannot resize; resize it on the "
                "host, or use a file as the image"
            )
        if self.read_only:
            raise ConfigError(
                f"{self.path} is open for reading only; leave readonly off to resize it"
            )
        try:
            os.ftruncate(self.fd, size)
        except OSError as error:
            hint = "give a size that the host's file system can hold"
            raise HostError.from_os_error(
                "resizing of a disk image", error, path=self.path, hint=hint
            ) from error
        self.size = size

    def close(self) -> None:
        """Close the image; its locks end."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


_QUESTIONS = (BLKSSZGET, BLKPBSZGET, BLKIOMIN, BLKIOOPT)


def open_file(path: str, *, read_only: bool, direct: bool) -> int:
    """Open an image; the caller closes it.

    Raises: HostError when it cannot be opened, ConfigError (caller) when it is neither a regular
    file nor a block device.
    """
    # Without O_NONBLOCK a named pipe would have this wait for its writer.
    flags = os.O_CLOEXEC | os.O_NONBLOCK | (os.O_RDONLY if read_only else os.O_RDWR)
    try:
        fd = os.open(path, flags | (os.O_DIRECT if direct else 0))
    except OSError as error:
        raise HostError.from_os_error(
            "open of a disk image", error, path=path, hint=_open_hint(error.errno, direct)
        ) from error
    try:
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise ConfigError(
                f"{path} is {_kind(mode)}, no disk image; give a regular file or a block device "
                "(disks[].path, --disk path=…)"
            )
        os.set_blocking(fd, True)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open_hint(number: int | None, direct: bool) -> str | None:
    match number:
        case errno.ENOENT:
            return "create the image, or correct disks[].path (--disk path=…)"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return "give this process the right to write it, or set readonly (--disk readonly=on)"
        case errno.EISDIR:
            return "give a regular file or a block device"
        case errno.EINVAL if direct:
            return "its file system has no direct I/O; leave direct off (--disk direct=off)"
        case _:
            return None


def _kind(mode: int) -> str:
    for is_kind, name in (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a character device"),
    ):
        if is_kind(mode):
            return name
    return "a special file"


def _ask(fd: int, path: str, request: int) -> int:
    try:
        answer = fcntl.ioctl(fd, request, bytes(4))
    except OSError as error:
        raise HostError.from_os_error(
            "asking a block device for its block sizes", error, path=path
        ) from error
    (value,) = struct.unpack("I", answer)
    return int(value)


def _device_discards(device: int) -> bool:
    name = f"{os.major(device)}:{os.minor(device)}"
    # A partition's limits are in the folder of its disk.
    for place in ("queue", "../queue"):
        with (
            suppress(OSError, ValueError),
            open(f"/sys/dev/block/{name}/{place}/discard_max_bytes") as limit,
        ):
            return int(limit.read()) > 0
    return False


def _direct_alignment(fd: int, path: str) -> int:
    """The smallest alignment at which a file can be read directly: found by reading it."""
    with mmap.mmap(-1, 2 * PAGE) as room, memoryview(room) as view:
        for block in (SECTOR, PAGE):
            with view[block : 2 * block] as part:
                try:
                    os.preadv(fd, [part], block)
                except OSError as error:
                    if error.errno == errno.EINVAL:
                        continue
                    raise HostError.from_os_error(
                        "reading of a disk image", error, path=path
                    ) from error
                return block
    raise ConfigError(
        f"{path} cannot be read directly in blocks of {PAGE} bytes; leave direct off "
        "(--disk direct=off)"
    )
