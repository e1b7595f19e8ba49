"""The types that fields are made of: widths of integers, sizes in bytes, text the host accepts.

Each type carries its own limits, so a model says them once and JSON, the command line and the
served document agree. Nothing here knows a model.
"""

from enum import Enum, auto
from typing import Annotated, Final, TypeVar

from pydantic import AfterValidator, Field, Strict

U8_MAX: Final = (1 << 8) - 1
U16_MAX: Final = (1 << 16) - 1
U32_MAX: Final = (1 << 32) - 1
U64_MAX: Final = (1 << 64) - 1
I32_MAX: Final = (1 << 31) - 1

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30


def is_power_of_two(number: int) -> bool:
    """Tell whether one bit of a number is set."""
    return number > 0 and number & (number - 1) == 0


class Mark(Enum):
    """What a type means beyond its Python type; travels in ``Annotated``."""

    BYTES = auto()
    """An amount of memory or storage, in bytes; the command line takes K, M and G."""

    DESCRIPTOR = auto()
    """A number of an open file of this process: JSON cannot carry it, so it is never trusted."""


def usable_text(text: str) -> str:
    """Refuse what no file name, socket name or kernel command line can hold."""
    if "\0" in text:
        raise ValueError("it holds a NUL character; remove it")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("it is not valid UTF-8; use a name that is") from None
    return text


def parse_byte_size(text: str) -> int:
    """Read a decimal number of bytes with an optional suffix K, M or G (powers of 1024).

    Raises: ValueError (caller).
    """
    shift = {"K": 10, "M": 20, "G": 30}.get(text[-1:], 0)
    return parse_decimal(text[:-1] if shift else text) << shift


def format_byte_size(size: int) -> str:
    """Write bytes with the largest suffix that loses nothing."""
    for suffix, unit in (("G", GIB), ("M", MIB), ("K", KIB)):
        if size and size % unit == 0:
            return f"{size // unit}{suffix}"
    return str(size)


def parse_decimal(text: str) -> int:
    """Read plain decimal digits: no sign, blank, underscore or other script's digits.

    Raises: ValueError (caller).
    """
    if not (text.isascii() and text.isdigit()) or len(text) > 20:
        raise ValueError("it is not a plain decimal number")
    return int(text)


T = TypeVar("T")

U8 = Annotated[int, Field(ge=0, le=U8_MAX)]
U16 = Annotated[int, Field(ge=0, le=U16_MAX)]
U32 = Annotated[int, Field(ge=0, le=U32_MAX)]
U64 = Annotated[int, Field(ge=0, le=U64_MAX)]
PositiveU32 = Annotated[int, Field(ge=1, le=U32_MAX)]
PositiveU64 = Annotated[int, Field(ge=1, le=U64_MAX)]
ByteSize = Annotated[int, Field(ge=0, le=U64_MAX), Mark.BYTES]
Descriptor = Annotated[int, Field(ge=-1, le=I32_MAX), Mark.DESCRIPTOR]
Milliseconds = U64

Text = Annotated[str, AfterValidator(usable_text)]
HostPath = Text
"""A file name on the host; it is not opened here."""

# Strict models would refuse a JSON array for a tuple; the elements stay strict.
Array = Annotated[tuple[T, ...], Strict(False)]
# Likewise for a JSON string that names a member of an enumeration.
Choice = Annotated[T, Strict(False)]
