"""The host's side of consoles: terminal, file, pty, socket."""

from vmm.console.backend import Backend, WindowSize
from vmm.console.modes import open_backend

__all__ = ["Backend", "WindowSize", "open_backend"]
