"""The ``file://`` URLs by which requests name files and directories of the host."""

from __future__ import annotations

from typing import Final

from vmm.errors import ConfigError

SCHEME: Final = "file://"


def path_of(url: str, field: str, meaning: str) -> str:
    """The path of a URL; ``meaning`` says what it is to be. Raises: ConfigError (caller)."""
    path = url.removeprefix(SCHEME)
    if path == url or not path.startswith("/"):
        raise ConfigError(f"{field} is {url!r}; give file:// and the absolute path of {meaning}")
    return path
