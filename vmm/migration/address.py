"""Where the other side of a migration is: the URLs of the two requests."""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import NamedTuple

from vmm.errors import ConfigError

UNIX_PATH_BYTES = 107
MOST_NAME = 253
MOST_LABEL = 63
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
        if (_is_ipv6(name) if bracketed else _is_name(name)) and _is_port(port):
            return TcpAddress(name, int(port))
    raise ConfigError(f"{field} is {url!r}; give {FORMS}")


def _is_port(text: str) -> bool:
    return len(text) <= 5 and text.isascii() and text.isdigit() and 0 < int(text) < 1 << 16


def _is_name(text: str) -> bool:
    """Whether a resolver can be asked for a name. Source: RFC 1035, 2.3.4."""
    labels = text.removesuffix(".").split(".")
    is_long = len(text) > MOST_NAME or any(not 0 < len(each) <= MOST_LABEL for each in labels)
    return text.isascii() and text.isprintable() and ":" not in text and not is_long


def _is_ipv6(text: str) -> bool:
    address, percent, zone = text.partition("%")
    try:
        IPv6Address(address)
    except ValueError:
        return False
    return not percent or (bool(zone) and zone.isascii() and zone.isprintable())
