"""Resource descriptors: what a device's _CRS says it decodes and which interrupts it raises.

Spec: ACPI 6.5, section 6.4. Addresses and lengths are bytes; ranges name their last address.
"""

from __future__ import annotations

import struct

from vmm.acpi.aml import buffer

_END_TAG = b"\x79\x00"  # a checksum of 0 says that there is none

_MEMORY, _IO, _BUS = 0, 1, 2
_FIXED = 0x0C  # a producer whose first and last address cannot move
_READ_WRITE = 0x01
_CACHEABLE = 1 << 1
_ENTIRE_RANGE = 0x03


def resource_template(*descriptors: bytes) -> bytes:
    """Put descriptors in the buffer that _CRS gives."""
    return buffer(b"".join(descriptors) + _END_TAG)


def memory32_fixed(base: int, length: int) -> bytes:
    """Describe a writable range below 4 GiB that the device decodes."""
    return struct.pack("<BHBII", 0x86, 9, _READ_WRITE, base, length)


def io_ports(base: int, count: int, alignment: int = 1) -> bytes:
    """Describe up to 255 ports, decoded with 16 bits."""
    return struct.pack("<BBHHBB", 0x47, 1, base, base, alignment, count)


def interrupt(gsi: int) -> bytes:
    """Describe an edge-triggered, active-high interrupt that is not shared."""
    consumer, edge = 1, 1 << 1
    return struct.pack("<BHBBI", 0x89, 6, consumer | edge, 1, gsi)


def bus_numbers(first: int, last: int) -> bytes:
    """Describe the buses behind a root bridge."""
    return _address_space("H", 0x88, _BUS, 0, first, last)


def word_io(first: int, last: int) -> bytes:
    """Describe ports that a bridge passes on."""
    return _address_space("H", 0x88, _IO, _ENTIRE_RANGE, first, last)


def dword_memory(first: int, last: int) -> bytes:
    """Describe uncached memory below 4 GiB that a bridge passes on."""
    return _address_space("I", 0x87, _MEMORY, _READ_WRITE, first, last)


def qword_memory(first: int, last: int) -> bytes:
    """Describe uncached memory anywhere that a bridge passes on."""
    return _address_space("Q", 0x8A, _MEMORY, _READ_WRITE, first, last)


def qword_ram(first: int, last: int) -> bytes:
    """Describe cached memory anywhere that the device itself is."""
    return _address_space("Q", 0x8A, _MEMORY, _CACHEABLE | _READ_WRITE, first, last)


def _address_space(width: str, tag: int, kind: int, flags: int, first: int, last: int) -> bytes:
    granularity = translation = 0
    numbers = (granularity, first, last, translation, last - first + 1)
    body = struct.pack(f"<BBB5{width}", kind, _FIXED, flags, *numbers)
    return struct.pack("<BH", tag, len(body)) + body
