"""Landlock: a thread gives up, for good, every file that a ruleset does not allow.

Threads that it makes later obey too; those that are there already do not.
Source: Linux Documentation/userspace-api/landlock.rst, "filesystem flags" and "system calls".
"""

from __future__ import annotations

import errno
import os
import stat
from enum import IntFlag

from vmm.errors import HostError
from vmm.kvm_cffi._kvm import lib
from vmm.kvm_cffi.closing import Closing

NEEDED_ABI = 3
"""The version since which a file can be kept from being cut off."""

NO_LANDLOCK = (errno.ENOSYS, errno.EOPNOTSUPP)
"""What a kernel answers that was built or booted without it."""

HINT = "use a kernel of version 6.2 or later with Landlock on (lsm=landlock,…), or leave it out"


class Right(IntFlag):
    """What may be done with a file, or below a directory."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14


ALL = Right((1 << 15) - 1)
READ = Right.EXECUTE | Right.READ_FILE | Right.READ_DIR
WRITE = ALL & ~READ
OF_FILES = Right.EXECUTE | Right.WRITE_FILE | Right.READ_FILE | Right.TRUNCATE
"""What can be said of a file that is no directory."""


class Ruleset(Closing):
    """What stays allowed; everything else of ``ALL`` will not be.

    Raises: HostError (host) where the kernel has no Landlock, or an old one.
    """

    def __init__(self) -> None:
        self._fd = -1
        version = int(lib.vk_landlock_abi())
        if -version in NO_LANDLOCK or 0 <= version < NEEDED_ABI:
            code = -version if version < 0 else errno.EOPNOTSUPP
            raise HostError("Landlock", code, hint=HINT)
        self._fd = _check("landlock_create_ruleset", lib.vk_landlock_new(ALL))

    def close(self) -> None:
        """Close the descriptor; who obeys the ruleset goes on to. A second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def allow(self, path: str, rights: Right) -> None:
        """Keep a file, or all that is below a directory. Raises: HostError."""
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            raise HostError.from_os_error(
                "open for Landlock", error, path=path, hint="create it first"
            ) from error
        try:
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                rights &= OF_FILES
            _check("landlock_add_rule", lib.vk_landlock_allow(self._fd, fd, rights), path)
        finally:
            os.close(fd)

    def restrict(self) -> None:
        """Have this thread obey from now on. Raises: HostError."""
        _check("landlock_restrict_self", lib.vk_landlock_restrict(self._fd))


def _check(operation: str, result: int, path: str | None = None) -> int:
    if result < 0:
        hint = "restart the VMM: it has been confined too often" if -result == errno.E2BIG else None
        raise HostError(operation, -result, path=path, hint=hint)
    return result
