"""From a console's mode in the configuration to its back end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from vmm.console.backend import SizedBackend
from vmm.console.file import open_file
from vmm.console.null import NullBackend
from vmm.errors import ConfigError


def open_backend(
    mode: str,
    *,
    name: str,
    file: str | None = None,
    socket: str | None = None,
    has_keyboard: bool = True,
    has_socket: bool = True,
) -> AbstractAsyncContextManager[SizedBackend]:
    """Choose the back end for a mode: Off, Null, Tty, File, Pty or Socket.

    ``name`` is the console's in messages ("serial"); ``file`` and ``socket`` are the paths of the
    modes File and Socket; ``has_keyboard`` says whether mode Tty takes the terminal's input, and
    ``has_socket`` whether there is a mode Socket. Enter what is returned in the scope that owns the
    console.

    Raises: ConfigError when the mode is unknown or its path is missing; entering, HostError.
    """
    match mode:
        case "Off" | "Null":
            return _open_null()
        case "Tty":
            from vmm.console.terminal import open_tty

            return open_tty(name, has_keyboard=has_keyboard)
        case "Pty":
            from vmm.console.pty import open_pty

            return open_pty(name)
        case "File":
            return open_file(_needed(file, name, mode, "file"), name)
        case "Socket" if not has_socket:
            raise ConfigError(
                f"{name}.mode is Socket: No socket option support for console device; "
                "use serial.socket or another mode"
            )
        case "Socket":
            from vmm.console.unix_socket import open_socket

            return open_socket(_needed(socket, name, mode, "socket"), name)
    raise ConfigError(f"{name}.mode {mode!r} is unknown: use Off, Null, Tty, File, Pty or Socket")


@asynccontextmanager
async def _open_null() -> AsyncIterator[NullBackend]:
    yield NullBackend()


def _needed(path: str | None, name: str, mode: str, key: str) -> str:
    if not path:
        raise ConfigError(f"{name}.mode {mode} has no path: give {name}.{key}")
    return path
