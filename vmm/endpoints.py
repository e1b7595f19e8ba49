"""Where others reach the VMM: the options that name a path or an inherited descriptor."""

from __future__ import annotations

from vmm.config.syntax import parse_keys
from vmm.config.tokens import dequote
from vmm.config.units import I32_MAX, parse_decimal
from vmm.errors import ConfigError


def parse_api_socket(text: str | None) -> str | int | None:
    """Read ``--api-socket``: what does not read as options is the path itself, as in the original.

    Raises: ConfigError (caller).
    """
    if text is None:
        return None
    try:
        given = parse_keys(text, {"path": True, "fd": True})
    except ConfigError:
        return text
    return _path_or_descriptor("--api-socket", text, given)


def parse_event_monitor(text: str | None) -> str | int | None:
    """Read ``--event-monitor``. Raises: ConfigError (caller)."""
    if text is None:
        return None
    try:
        given = parse_keys(text, {"path": True, "fd": True})
    except ConfigError as error:
        raise ConfigError("Error parsing --event-monitor") from error
    return _path_or_descriptor("--event-monitor", text, given)


def parse_gdb(text: str | None) -> str | None:
    """Read ``--gdb``, which takes a path only. Raises: ConfigError (caller)."""
    if text is None:
        return None
    try:
        path = dequote(parse_keys(text, {"path": True}).get("path", ""))
    except ConfigError as error:
        raise ConfigError("Error parsing --gdb") from error
    if not path:
        raise ConfigError(f"--gdb {text}: path required; give path=<path>")
    return path


def _path_or_descriptor(flag: str, text: str, given: dict[str, str]) -> str | int:
    """Take the one place that is given. Raises: ConfigError (caller)."""
    path, number = (dequote(given.get(key, "")) for key in ("path", "fd"))
    if bool(path) == bool(number):
        raise ConfigError(f"{flag} {text}: path or fd required; give path=<path> or fd=<number>")
    if path:
        return path
    try:
        descriptor = parse_decimal(number)
    except ValueError:
        descriptor = I32_MAX + 1
    if descriptor > I32_MAX:
        raise ConfigError(
            f"{flag} {text}: Unable to convert {number} for fd; give a number up to {I32_MAX}"
        )
    return descriptor
