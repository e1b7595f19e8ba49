"""SMBIOS tables: who made this machine, and what the user calls it.

Specification: DMTF DSP0134, version 3.2.0, 64-bit entry point.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from vmm.boot import layout
from vmm.errors import ConfigError

ENTRY_POINT = struct.Struct("<5sBBBBBBBIQ")
ENTRY_REVISION = 1
VERSION = (3, 2, 0)
"""Major, minor and document revision that the entry point reports."""

BIOS_INFORMATION = 0
SYSTEM_INFORMATION = 1
CHASSIS = 3
OEM_STRINGS = 11
END_OF_TABLE = 127

BIOS_VENDOR = "cloud-hypervisor"
BIOS_VERSION = "0"
PCI_SUPPORTED = 1 << 7
IS_VIRTUAL_MACHINE = 1 << 4
WAKE_UP_UNKNOWN = 2
CHASSIS_UNKNOWN = 2

MAX_STRINGS = 255
UUID_PARTS = [8, 4, 4, 4, 12]


class SystemIdentity(NamedTuple):
    """What a machine says of itself, in the words of the configuration's ``platform`` section."""

    manufacturer: str = "Cloud Hypervisor"
    product_name: str = "cloud-hypervisor"
    version: str | None = None
    serial_number: str | None = None
    uuid: str | None = None
    sku_number: str | None = None
    family: str | None = None
    chassis_asset_tag: str | None = None
    oem_strings: Sequence[str] = ()


class _Strings:
    """The strings behind one structure; fields refer to them by number, 0 for none."""

    def __init__(self) -> None:
        self._encoded: list[bytes] = []

    def add(self, field: str, text: str | None) -> int:
        """Append a string and give its number.

        Raises: ConfigError (caller) when the text cannot stand in a table.
        """
        if not text:
            return 0
        try:
            encoded = text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"platform.{field} (--platform) holds a lone surrogate at character "
                f"{error.start}; use characters that UTF-8 can express"
            ) from error
        if b"\0" in encoded:
            raise ConfigError(
                f"platform.{field} (--platform) holds a NUL at byte {encoded.index(0)}, where a "
                f"guest would stop reading; take it out"
            )
        self._encoded.append(encoded)
        return len(self._encoded)

    def encode(self) -> bytes:
        """The strings as they follow their structure."""
        return b"".join(text + b"\0" for text in self._encoded or [b""]) + b"\0"


def encode_smbios(identity: SystemIdentity, address: int = layout.SMBIOS) -> bytes:
    """Make the entry point, to be put at ``address``, and the tables right behind it.

    Raises: ConfigError (caller) when a field cannot be expressed or there is no room for all.
    """
    structures = [_bios_information, _system_information]
    if identity.chassis_asset_tag is not None:
        structures.append(_chassis)
    if identity.oem_strings:
        structures.append(_oem_strings)
    structures.append(_end_of_table)
    tables = b"".join(make(identity, handle) for handle, make in enumerate(structures))
    room = layout.BIOS_END - address - ENTRY_POINT.size
    if len(tables) > room:
        raise ConfigError(
            f"The platform section's texts (--platform) make SMBIOS tables of {len(tables)} bytes "
            f"and {room} is the limit; shorten oem_strings or the others"
        )
    return _entry_point(address + ENTRY_POINT.size, len(tables)) + tables


def parse_uuid(text: str) -> bytes:
    """Read a UUID and put it into SMBIOS order: its first three parts are little-endian.

    Raises: ConfigError (caller) when it is none.
    """
    plain = text.removeprefix("urn:uuid:")
    if plain.startswith("{") and plain.endswith("}"):
        plain = plain[1:-1]
    if "-" in plain and [len(part) for part in plain.split("-")] != UUID_PARTS:
        plain = ""
    digits = plain.replace("-", "")
    if len(digits) != 32 or not all(digit in "0123456789abcdefABCDEF" for digit in digits):
        raise ConfigError(
            f"platform.system_uuid (--platform system_uuid=…) is {text!r} and not a UUID; write it "
            f"as xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx in hexadecimal digits"
        )
    raw = bytes.fromhex(digits)
    return raw[3::-1] + raw[5:3:-1] + raw[7:5:-1] + raw[8:]


def _entry_point(tables_address: int, tables_size: int) -> bytes:
    def pack(checksum: int) -> bytes:
        return ENTRY_POINT.pack(
            b"_SM3_",
            checksum,
            ENTRY_POINT.size,
            *VERSION,
            ENTRY_REVISION,
            0,
            tables_size,
            tables_address,
        )

    return pack(-sum(pack(0)) & 0xFF)


def _structure(kind: int, handle: int, body: bytes, strings: _Strings) -> bytes:
    return struct.pack("<BBH", kind, 4 + len(body), handle) + body + strings.encode()


def _bios_information(identity: SystemIdentity, handle: int) -> bytes:
    strings = _Strings()
    vendor = strings.add("vendor", BIOS_VENDOR)
    version = strings.add("version", BIOS_VERSION)
    body = struct.pack(
        "<BBHBBQBBBBBB",
        vendor,
        version,
        0,  # no segment: there is no BIOS code
        0,  # release date
        0,  # ROM size
        PCI_SUPPORTED,
        0,
        IS_VIRTUAL_MACHINE,
        0,  # release of the BIOS and of the embedded controller
        0,
        0,
        0,
    )
    return _structure(BIOS_INFORMATION, handle, body, strings)


def _system_information(identity: SystemIdentity, handle: int) -> bytes:
    strings = _Strings()
    body = struct.pack(
        "<BBBB16sBBB",
        strings.add("system_manufacturer", identity.manufacturer),
        strings.add("system_product_name", identity.product_name),
        strings.add("system_version", identity.version),
        strings.add("system_serial_number", identity.serial_number),
        bytes(16) if identity.uuid is None else parse_uuid(identity.uuid),
        WAKE_UP_UNKNOWN,
        strings.add("system_sku_number", identity.sku_number),
        strings.add("system_family", identity.family),
    )
    return _structure(SYSTEM_INFORMATION, handle, body, strings)


def _chassis(identity: SystemIdentity, handle: int) -> bytes:
    strings = _Strings()
    body = struct.pack(
        "<BBBBBBBBBIBBBBB",
        0,  # manufacturer
        CHASSIS_UNKNOWN,
        0,  # version
        0,  # serial number
        strings.add("chassis_asset_tag", identity.chassis_asset_tag),
        *[CHASSIS_UNKNOWN] * 4,  # state at boot, of power, of heat, of security
        0,  # OEM
        0,  # height
        0,  # power cords
        0,  # contained elements: count and size of each
        0,
        0,  # SKU number
    )
    return _structure(CHASSIS, handle, body, strings)


def _oem_strings(identity: SystemIdentity, handle: int) -> bytes:
    texts = identity.oem_strings
    if len(texts) > MAX_STRINGS:
        raise ConfigError(
            f"platform.oem_strings (--platform oem_strings=[…]) has {len(texts)} entries and "
            f"{MAX_STRINGS} is the limit; give fewer"
        )
    strings = _Strings()
    for index, text in enumerate(texts):
        if not strings.add(f"oem_strings[{index}]", text):
            raise ConfigError(
                f"platform.oem_strings[{index}] (--platform oem_strings=[…]) is empty, which would "
                f"end the list for a guest; leave it out"
            )
    return _structure(OEM_STRINGS, handle, bytes([len(texts)]), strings)


def _end_of_table(identity: SystemIdentity, handle: int) -> bytes:
    return _structure(END_OF_TABLE, handle, b"", _Strings())
