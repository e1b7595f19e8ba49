"""MAC addresses, as text such as ``2e:89:a8:e4:92:af`` and as six bytes."""

from __future__ import annotations

import secrets

MAC_BYTES = 6

_GROUP = 0x01
_LOCAL = 0x02


def random_mac() -> str:
    """A random address of one station that no maker of hardware gave out.

    Spec: IEEE 802, locally administered addresses.
    """
    address = bytearray(secrets.token_bytes(MAC_BYTES))
    address[0] = address[0] & ~_GROUP | _LOCAL
    return text_of(address)


def text_of(address: bytes | bytearray) -> str:
    """An address as text."""
    return address.hex(":")


def bytes_of(text: str) -> bytes:
    """The bytes of an address that the configuration has accepted."""
    return bytes.fromhex(text.replace(":", ""))


def is_group(address: bytes) -> bool:
    """Whether it means several stations: no interface has such an address."""
    return bool(address[0] & _GROUP)
