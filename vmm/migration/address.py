"""Where the other side of a migration is: the URLs of the two requests."""

from __future__ import annotations

from typing import NamedTuple

from vmm.errors import ConfigError

UNIX_PATH_BYTES = 107
FORMS = "unix:<path>, tcp:<host>:<port> or tcp:[<IPv6 address>]:<port>"


class UnixAddress(NamedTuple):
    """A socket in the file system."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


class TcpAddress(NamedTuple):
    """A port of a host, by name or number."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port}"


Address = UnixAddress | TcpAddress


def parse_url(field: str, url: str) -> Address:
    """Read the URL in a request's field. Raises: ConfigError (caller)."""
    scheme, colon, rest = url.partition(":")
    if colon and scheme == "unix":
        path = rest.removeprefix("//")
        if not path or len(path.encode()) > UNIX_PATH_BYTES or "\0" in path:
            raise ConfigError(
                f"{field} is {url!r}; the path of a socket has 1 to {UNIX_PATH_BYTES} bytes"
            )
        return UnixAddress(path)
    if colon and scheme == "tcp":
        host, colon, port = rest.removeprefix("//").rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        name = host[1:-1] if bracketed else host
        if name and (bracketed or ":" not in name) and _is_port(port):
            return TcpAddress(name, int(port))
    raise ConfigError(f"{field} is {url!r}; give {FORMS}")


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text[:6]) < 1 << 16
