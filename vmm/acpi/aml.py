r"""ACPI Machine Language: one function encodes one term, and terms nest by being passed on.

A term is ``bytes`` that are encoded already, an ``int`` (the shortest integer constant) or a
``str`` (string data). A reference to a named object is ``path(r"\_SB.PC00")``, never a bare
``str``; the name that a term declares is a ``str``.

Spec: ACPI 6.5, section 20. Raises: InternalError on whatever AML cannot express; every value comes
from this program, so that is never the fault of a guest or a user.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache
from typing import NamedTuple

from vmm.errors import InternalError

Term = bytes | int | str

ONES = b"\xff"
"""The integer with every bit set."""
NOWHERE = b"\x00"
"""The target of an operation whose result is used in place."""
BREAK = b"\xa5"

_LONGEST_PACKAGE = (1 << 28) - 1
_CAPITALS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_HEX_DIGITS = frozenset("0123456789ABCDEF")
_NAME_CHARACTERS = _CAPITALS | frozenset("0123456789_")


class AddressSpace(IntEnum):
    """Where an operation region lies."""

    SYSTEM_MEMORY = 0
    SYSTEM_IO = 1
    PCI_CONFIG = 2


class Access(IntEnum):
    """The width with which a field's registers are touched."""

    ANY = 0
    BYTE = 1
    WORD = 2
    DWORD = 3
    QWORD = 4


class Update(IntEnum):
    """What a partial write puts in the bits around a field."""

    PRESERVE = 0
    WRITE_AS_ONES = 1
    WRITE_AS_ZEROS = 2


class Bits(NamedTuple):
    """A named run of bits inside a field."""

    name: str
    width: int


class Offset(NamedTuple):
    """A jump to a byte of the region; the bits passed over stay unnamed."""

    byte: int


# Data


@cache
def integer(value: int) -> bytes:
    """Encode an unsigned integer of up to 64 bits in its shortest form."""
    if value in (0, 1):
        return bytes((value,))
    if value == 0xFFFF_FFFF_FFFF_FFFF:
        return ONES
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if 0 < value < 1 << (8 * size):
            return bytes((prefix,)) + value.to_bytes(size, "little")
    raise InternalError(f"AML integer {value:#x} is not within 0 and 2**64 - 1")


def string(text: str) -> bytes:
    """Encode a zero-terminated string of ASCII characters."""
    if "\0" in text or not text.isascii():
        raise InternalError(f"AML string {text!r} has a character outside 1 to 127")
    return b"\x0d" + text.encode("ascii") + b"\0"


@cache
def path(text: str) -> bytes:
    r"""Encode a name: up to 255 segments split by dots, after ``\`` (root) or ``^`` (parents)."""
    segments = text.lstrip("\\^")
    prefix = text[: len(text) - len(segments)].encode("ascii")
    encoded = [_segment(segment) for segment in segments.split(".")]
    match len(encoded):
        case 1:
            count = b""
        case 2:
            count = b"\x2e"
        case many if many < 256:
            count = bytes((0x2F, many))
        case many:
            raise InternalError(f"AML name {text!r} has {many} segments; the limit is 255")
    return prefix + count + b"".join(encoded)


def eisa_id(text: str) -> bytes:
    """Encode a compressed EISA identifier, such as ``PNP0A08``."""
    letters, digits = text[:3], text[3:]
    if not (len(text) == 7 and set(letters) <= _CAPITALS and set(digits) <= _HEX_DIGITS):
        raise InternalError(f"EISA id {text!r} is not three capitals and four hex digits")
    high = 0
    for letter in letters:
        high = high << 5 | ord(letter) - 0x40
    return b"\x0c" + high.to_bytes(2, "big") + bytes.fromhex(digits)


def uuid(text: str) -> bytes:
    """Encode a UUID as the 16-byte buffer that ASL's ToUUID makes: first three parts swapped."""
    raw = bytes.fromhex(text.replace("-", ""))
    if len(raw) != 16:
        raise InternalError(f"UUID {text!r} has {len(raw)} bytes; it needs 16")
    return buffer(raw[3::-1] + raw[5:3:-1] + raw[7:5:-1] + raw[8:])


def buffer(data: bytes) -> bytes:
    """Encode a buffer that holds ``data``."""
    return b"\x11" + _enclose(integer(len(data)) + data)


def package(*elements: Term) -> bytes:
    """Encode a package of up to 255 elements."""
    if len(elements) > 255:
        raise InternalError(f"AML package has {len(elements)} elements; the limit is 255")
    return b"\x12" + _enclose(bytes((len(elements),)) + _terms(*elements))


# Named objects


def name(declared: str, value: Term) -> bytes:
    """Declare a named value."""
    return b"\x08" + path(declared) + _terms(value)


def scope(where: str, *terms: Term) -> bytes:
    """Declare objects inside a scope that exists already."""
    return b"\x10" + _enclose(path(where) + _terms(*terms))


def device(declared: str, *terms: Term) -> bytes:
    """Declare a device and the objects in it."""
    return b"\x5b\x82" + _enclose(path(declared) + _terms(*terms))


def method(declared: str, arguments: int, *body: Term, serialized: bool = False) -> bytes:
    """Declare a method of 0 to 7 arguments."""
    if not 0 <= arguments <= 7:
        raise InternalError(f"AML method {declared} has {arguments} arguments; the limit is 7")
    flags = arguments | serialized << 3
    return b"\x14" + _enclose(path(declared) + bytes((flags,)) + _terms(*body))


def mutex(declared: str, sync_level: int = 0) -> bytes:
    """Declare a mutex."""
    return b"\x5b\x01" + path(declared) + bytes((sync_level,))


def operation_region(declared: str, space: AddressSpace, offset: Term, length: Term) -> bytes:
    """Declare the registers that fields then name. Units: ``offset`` and ``length`` in bytes."""
    return b"\x5b\x80" + path(declared) + bytes((space,)) + _terms(offset, length)


def field(
    region: str,
    access: Access,
    *units: Bits | Offset,
    locked: bool = False,
    update: Update = Update.PRESERVE,
) -> bytes:
    """Name bits of an operation region, in ascending order."""
    encoded = path(region) + bytes((access | locked << 4 | update << 5,))
    at = 0
    for unit in units:
        if isinstance(unit, Bits):
            encoded += _segment(unit.name) + length(unit.width)
            at += unit.width
            continue
        skipped = unit.byte * 8 - at
        if skipped < 0:
            raise InternalError(f"Field offset {unit.byte:#x} lies before bit {at} of {region}")
        encoded += b"\x00" + length(skipped)
        at += skipped
    return b"\x5b\x81" + _enclose(encoded)


def create_dword_field(source: Term, index: Term, declared: str) -> bytes:
    """Name four bytes of a buffer, from byte ``index`` on."""
    return b"\x8a" + _terms(source, index) + path(declared)


def create_qword_field(source: Term, index: Term, declared: str) -> bytes:
    """Name eight bytes of a buffer, from byte ``index`` on."""
    return b"\x8f" + _terms(source, index) + path(declared)


# Statements


def if_(condition: Term, *body: Term) -> bytes:
    """Run the body when the condition is not zero; ``else_`` may come next to it."""
    return b"\xa0" + _enclose(_terms(condition, *body))


def else_(*body: Term) -> bytes:
    """Run the body when the condition of the ``if_`` just before was zero."""
    return b"\xa1" + _enclose(_terms(*body))


def while_(condition: Term, *body: Term) -> bytes:
    """Run the body as long as the condition is not zero."""
    return b"\xa2" + _enclose(_terms(condition, *body))


def return_(value: Term) -> bytes:
    """Leave the method with a value."""
    return b"\xa4" + _terms(value)


def store(value: Term, target: bytes) -> bytes:
    """Write a value to a target."""
    return b"\x70" + _terms(value) + target


def notify(target: bytes, value: Term) -> bytes:
    """Tell the operating system that something happened to a device."""
    return b"\x86" + target + _terms(value)


def acquire(target: bytes, timeout_ms: int = 0xFFFF) -> bytes:
    """Take a mutex; 0xFFFF waits for ever."""
    return b"\x5b\x23" + target + timeout_ms.to_bytes(2, "little")


def release(target: bytes) -> bytes:
    """Give a mutex back."""
    return b"\x5b\x27" + target


def increment(target: bytes) -> bytes:
    """Add one to a target."""
    return b"\x75" + target


# Expressions


def argument(number: int) -> bytes:
    """Refer to one of a method's seven arguments."""
    if not 0 <= number <= 6:
        raise InternalError(f"AML argument {number} is not within 0 and 6")
    return bytes((0x68 + number,))


def local(number: int) -> bytes:
    """Refer to one of a method's eight local variables."""
    if not 0 <= number <= 7:
        raise InternalError(f"AML local {number} is not within 0 and 7")
    return bytes((0x60 + number,))


def call(target: str, *arguments: Term) -> bytes:
    """Call a method; the number of arguments is the one it was declared with."""
    return path(target) + _terms(*arguments)


def add(left: Term, right: Term, target: bytes = NOWHERE) -> bytes:
    """Give ``left + right``."""
    return b"\x72" + _terms(left, right) + target


def subtract(left: Term, right: Term, target: bytes = NOWHERE) -> bytes:
    """Give ``left - right``."""
    return b"\x74" + _terms(left, right) + target


def shift_left(value: Term, count: Term, target: bytes = NOWHERE) -> bytes:
    """Give ``value << count``."""
    return b"\x79" + _terms(value, count) + target


def shift_right(value: Term, count: Term, target: bytes = NOWHERE) -> bytes:
    """Give ``value >> count``."""
    return b"\x7a" + _terms(value, count) + target


def and_(left: Term, right: Term, target: bytes = NOWHERE) -> bytes:
    """Give the bits set in both."""
    return b"\x7b" + _terms(left, right) + target


def or_(left: Term, right: Term, target: bytes = NOWHERE) -> bytes:
    """Give the bits set in either."""
    return b"\x7d" + _terms(left, right) + target


def index(source: Term, at: Term, target: bytes = NOWHERE) -> bytes:
    """Refer to an element of a package, or to a byte of a buffer or string."""
    return b"\x88" + _terms(source, at) + target


def dereference(reference: Term) -> bytes:
    """Give the value that a reference leads to."""
    return b"\x83" + _terms(reference)


def size_of(value: bytes) -> bytes:
    """Give the number of elements or bytes."""
    return b"\x87" + value


def equal(left: Term, right: Term) -> bytes:
    """Tell whether the two are equal."""
    return b"\x93" + _terms(left, right)


def greater(left: Term, right: Term) -> bytes:
    """Tell whether ``left > right``."""
    return b"\x94" + _terms(left, right)


def less(left: Term, right: Term) -> bytes:
    """Tell whether ``left < right``."""
    return b"\x95" + _terms(left, right)


def not_(value: Term) -> bytes:
    """Tell whether the value is zero."""
    return b"\x92" + _terms(value)


# Lengths


def length(value: int) -> bytes:
    """Encode a PkgLength: 6 bits alone, or 4 beside the count of the one to three bytes to come."""
    if 0 <= value < 1 << 6:
        return bytes((value,))
    for following in (1, 2, 3):
        if 0 <= value < 1 << (4 + 8 * following):
            lead = following << 6 | value & 0xF
            return bytes((lead,)) + (value >> 4).to_bytes(following, "little")
    raise InternalError(f"AML length {value} is not within 0 and {_LONGEST_PACKAGE}")


def _enclose(body: bytes) -> bytes:
    """Put the length before a body. It counts its own bytes too, hence the search."""
    for own in (1, 2, 3, 4):
        encoded = length(len(body) + own)
        if len(encoded) <= own:
            return encoded + body
    raise InternalError(f"AML object of {len(body)} bytes is over {_LONGEST_PACKAGE}; split it")


def _terms(*terms: Term) -> bytes:
    return b"".join(map(_term, terms))


def _term(term: Term) -> bytes:
    if isinstance(term, bytes):
        return term
    return integer(term) if isinstance(term, int) else string(term)


def _segment(text: str) -> bytes:
    if not 0 < len(text) <= 4 or not set(text) <= _NAME_CHARACTERS or text[0].isdigit():
        raise InternalError(f"AML name segment {text!r} is not 1 to 4 of A-Z, 0-9 and _")
    return text.encode("ascii").ljust(4, b"_")
