"""The opened back ends of one VM's consoles: they outlive a reboot, so that who watches stays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from vmm.console import Backend, SizedBackend, open_backend
from vmm.console.null import NullBackend

if TYPE_CHECKING:
    from vmm.config.vm import VmConfig


class Consoles(NamedTuple):
    """The other side of the serial port, of the debug console, of the firmware's debug port, and
    of the virtio console."""

    serial: Backend
    debug: Backend
    firmware: Backend
    console: SizedBackend = NullBackend()

    def described_in(self, config: VmConfig) -> VmConfig:
        """The configuration with the paths that opening chose."""
        changes: dict[str, object] = {}
        if self.serial.path is not None:
            changes["serial"] = config.serial.model_copy(update={"file": self.serial.path})
        if self.debug.path is not None:
            changes["debug_console"] = config.debug_console.model_copy(
                update={"file": self.debug.path}
            )
        if self.console.path is not None:
            changes["console"] = config.console.model_copy(update={"file": self.console.path})
        return config.model_copy(update=changes) if changes else config


@asynccontextmanager
async def open_consoles(config: VmConfig) -> AsyncIterator[Consoles]:
    """Open what the configuration's consoles lead to.

    Raises: ConfigError (caller), HostError (a path, terminal or socket that cannot be had).
    """
    serial, debug, console = config.serial, config.debug_console, config.console
    async with AsyncExitStack() as stack:
        yield Consoles(
            await stack.enter_async_context(
                open_backend(serial.mode, name="serial", file=serial.file, socket=serial.socket)
            ),
            await stack.enter_async_context(
                open_backend(
                    debug.mode,
                    name="debug_console",
                    file=debug.file,
                    has_keyboard=False,
                    has_socket=False,
                )
            ),
            await stack.enter_async_context(
                open_backend("Tty", name="firmware's debug port", has_keyboard=False)
            ),
            await stack.enter_async_context(
                open_backend(
                    console.mode,
                    name="console",
                    file=console.file,
                    # A key goes to one of them. A serial terminal has been asked for by name.
                    has_keyboard=serial.mode != "Tty",
                    has_socket=False,
                )
            ),
        )
