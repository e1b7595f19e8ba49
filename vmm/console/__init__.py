"""The host's side of consoles: terminal, file, pty, socket."""

from vmm.console.backend import Backend, SizedBackend, WindowSize
from vmm.console.modes import open_backend

__all__ = ["Backend", "SizedBackend", "WindowSize", "open_backend"]
