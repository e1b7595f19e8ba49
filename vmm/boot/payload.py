"""The files a machine is booted from, as the loader reads them: bounded, and named in errors."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from vmm.boot.ram import BootRam
from vmm.errors import ConfigError, HostError

FLAGS = {"kernel": "--kernel", "firmware": "--firmware", "initramfs": "--initramfs"}


class PayloadFile(NamedTuple):
    """An opened kernel, firmware image or initramfs.

    ``role`` is the payload's field that names it, ``path`` what the user called it.
    """

    file: io.BufferedIOBase | io.RawIOBase
    path: str
    role: str = "kernel"

    def size(self) -> int:
        """The file's length in bytes.

        Raises: HostError when it cannot be told.
        """
        try:
            return self.file.seek(0, io.SEEK_END)
        except OSError as error:
            raise self._unreadable(error) from error

    def read(self, offset: int, size: int) -> bytes:
        """Read ``size`` bytes, or fewer where the file ends.

        Raises: HostError when the file cannot be read.
        """
        parts: list[bytes] = []
        try:
            self.file.seek(offset)
            while size:
                part = self.file.read(size)
                if not part:
                    break
                parts.append(part)
                size -= len(part)
        except OSError as error:
            raise self._unreadable(error) from error
        return b"".join(parts)

    def load(self, memory: BootRam, gpa: int, size: int, offset: int) -> None:
        """Read a piece straight into RAM that is known to be there.

        Raises: HostError when the file cannot be read.
        """
        try:
            memory.write_from_file(gpa, size, self.file, offset)
        except OSError as error:
            raise self._unreadable(error) from error

    def refuse(self, reason: str) -> ConfigError:
        """Make the error for a file that cannot be used; ``reason`` goes on after its name."""
        return ConfigError(f"{self.role.capitalize()} {self.path} {reason}")

    def _unreadable(self, error: OSError) -> HostError:
        hint = f"give {FLAGS[self.role]} (payload.{self.role}) the path of a readable file"
        return HostError.from_os_error("read", error, path=self.path, hint=hint)


@contextmanager
def open_payload(path: str, role: str = "kernel") -> Iterator[PayloadFile]:
    """Open a file to boot from and close it at the end of the block.

    Raises: HostError when it cannot be opened, ConfigError (caller) when it is not a file or a
    disk: reading a pipe could wait for ever.
    """
    hint = f"give {FLAGS[role]} (payload.{role}) the path of a readable file"
    try:
        file = open(path, "rb", buffering=0, opener=_open_nonblocking)  # noqa: SIM115
    except OSError as error:
        raise HostError.from_os_error("open", error, path=path, hint=hint) from error
    except ValueError as error:
        raise ConfigError(f"The path {path!r} holds a NUL character; {hint}") from error
    with file:
        mode = os.fstat(file.fileno()).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise ConfigError(f"{role.capitalize()} {path} is not a regular file; {hint}")
        yield PayloadFile(file, path, role)


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
