"""How one value is written on the command line, decided by the type of its field.

A field needs no description besides its own type: a bool is a toggle, a ``ByteSize`` takes K, M
and G, an enumeration is written by the names of its members, a tuple of two-field models is a
list ``[first@second]``. Where the command line departs from the type, ``Cli`` says so in the
field's own annotation. Values come out as plain data; the model that takes them checks limits.
"""

from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from types import UnionType
from typing import Annotated, Final, NamedTuple, Protocol, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vmm.config.model import LaterModel
from vmm.config.tokens import dequote, quote, split, unbracket
from vmm.config.units import Mark, format_byte_size, parse_byte_size, parse_decimal

LONGEST_LIST: Final = 1 << 16
"""Elements an integer list may have: more than any host has CPUs, little enough to hold."""


class Syntax(Protocol):
    """The written form of one value. ``parse`` raises ValueError (caller)."""

    def parse(self, raw: str) -> object: ...
    def format(self, value: object) -> str: ...


class FieldSyntax(Protocol):
    """The keys by which one field is given. ``read`` gives None if none of them speaks of it."""

    @property
    def keys(self) -> Mapping[str, bool]:
        """Each key, and whether it needs a value."""

    def read(self, given: Mapping[str, str]) -> object: ...
    def write(self, value: object) -> Iterator[str]: ...


class Cli(NamedTuple):
    """How the command line departs from the field's name and type.

    ``also`` holds older names of the key; ``default`` and ``same_as`` fill a field that JSON
    requires; ``values`` makes the syntax of the value, ``keys`` that of several keys, both from the
    model in the annotation; a ``hidden`` field has no key at all; ``caption`` is what help says.
    """

    key: str | None = None
    also: tuple[str, ...] = ()
    default: object = None
    same_as: str | None = None
    values: Callable[[type], Syntax] | None = None
    keys: Callable[[type], FieldSyntax] | None = None
    hidden: bool = False
    caption: str = ""


class Shape(NamedTuple):
    """A field's type with the wrappings taken off."""

    type: type
    is_list: bool
    marks: tuple[object, ...]

    @property
    def cli(self) -> Cli:
        """The departures of the command line; none if nothing is declared."""
        return next((mark for mark in self.marks if isinstance(mark, Cli)), Cli())


def shape_of(field: FieldInfo) -> Shape:
    """Take ``None``, ``Annotated`` and ``tuple`` off a field's annotation."""
    inner, is_list, marks = unwrap(field)
    return Shape(inner.model if isinstance(inner, LaterModel) else inner, is_list, marks)


def unwrap(field: FieldInfo) -> tuple[type | LaterModel, bool, tuple[object, ...]]:
    """Do what ``shape_of`` does without declaring a model that comes later."""
    inner: object = field.annotation
    marks = list(field.metadata)
    is_list = False
    while (origin := get_origin(inner)) is not None:
        arguments = get_args(inner)
        if origin is Annotated:
            marks += arguments[1:]
            inner = arguments[0]
        elif origin is Union or origin is UnionType:
            inner = next(each for each in arguments if each is not type(None))
        elif origin is tuple:
            is_list = True
            inner = arguments[0]
        else:
            break
    assert isinstance(inner, type | LaterModel) or origin is dict
    return inner if isinstance(inner, type | LaterModel) else dict, is_list, tuple(marks)


def key_of(model: type[BaseModel], name: str) -> str:
    """The command line's key for a field of a model."""
    return shape_of(model.model_fields[name]).cli.key or name


def syntax_of(shape: Shape) -> Syntax:
    """The written form that belongs to a type."""
    if (make := shape.cli.values) is not None:
        return make(shape.type)
    if shape.is_list:
        if issubclass(shape.type, BaseModel):
            return PairList(shape.type)
        return INTEGER_LIST if shape.type is int else TEXT_LIST
    if shape.type is bool:
        return TOGGLE
    if shape.type is int:
        return BYTE_SIZE if Mark.BYTES in shape.marks else INTEGER
    if issubclass(shape.type, Enum):
        return words_of(shape.type)
    return TEXT


class _Toggle:
    def parse(self, raw: str) -> bool:
        word = dequote(raw).lower()
        if word in ("on", "true"):
            return True
        if word in ("off", "false", ""):
            return False
        raise ValueError("give on or off")

    def format(self, value: object) -> str:
        return "on" if value else "off"


class _Integer:
    def parse(self, raw: str) -> int:
        return parse_decimal(dequote(raw))

    def format(self, value: object) -> str:
        return str(value)


class _ByteSize:
    def parse(self, raw: str) -> int:
        try:
            return parse_byte_size(dequote(raw))
        except ValueError:
            raise ValueError("give whole bytes, or a whole number and K, M or G") from None

    def format(self, value: object) -> str:
        assert isinstance(value, int)
        return format_byte_size(value)


class _Text:
    def parse(self, raw: str) -> str:
        return dequote(raw)

    def format(self, value: object) -> str:
        return quote(str(value))


class _HexPort:
    def parse(self, raw: str) -> int:
        text = dequote(raw)
        digits = text.removeprefix("0x")
        if digits == text or not digits.isalnum() or len(digits) > 16:
            raise ValueError("give a hexadecimal number that starts with 0x")
        return int(digits, 16)

    def format(self, value: object) -> str:
        return f"{value:#x}"


class _TextList:
    def parse(self, raw: str) -> list[str]:
        inner = unbracket(raw)
        return [dequote(piece.strip()) for piece in split(inner)] if inner.strip() else []

    def format(self, value: object) -> str:
        assert isinstance(value, tuple)
        return f"[{','.join(quote(str(each)) for each in value)}]"


class _IntegerList:
    def parse(self, raw: str) -> list[int]:
        inner = unbracket(dequote(raw))
        numbers: list[int] = []
        for piece in inner.split(",") if inner else ():
            first, dash, last = piece.partition("-")
            start = parse_decimal(first)
            if not dash:
                numbers.append(start)
                continue
            end = parse_decimal(last)
            if start >= end:
                raise ValueError(f"the range {piece} must grow")
            if end - start >= LONGEST_LIST:
                raise ValueError(f"the range {piece} has more than {LONGEST_LIST} numbers")
            numbers.extend(range(start, end + 1))
        if len(numbers) > LONGEST_LIST:
            raise ValueError(f"the list has more than {LONGEST_LIST} numbers")
        return numbers

    def format(self, value: object) -> str:
        assert isinstance(value, tuple)
        return f"[{','.join(map(str, value))}]"


TOGGLE: Final = _Toggle()
INTEGER: Final = _Integer()
BYTE_SIZE: Final = _ByteSize()
TEXT: Final = _Text()
HEX_PORT: Final = _HexPort()
TEXT_LIST: Final = _TextList()
INTEGER_LIST: Final = _IntegerList()


class Words:
    """One word of a fixed choice, in any case."""

    def __init__(self, meanings: Mapping[str, object]) -> None:
        self._meanings = meanings

    def parse(self, raw: str) -> object:
        word = dequote(raw).lower()
        if word not in self._meanings:
            raise ValueError(f"give one of {', '.join(self._meanings)}")
        return self._meanings[word]

    def format(self, value: object) -> str:
        return next(word for word, each in self._meanings.items() if each is value)


def words_of(members: type[Enum]) -> Words:
    """The members of an enumeration, by their names with dashes."""
    return Words({each.name.lower().replace("_", "-"): each for each in members})


class _Columns:
    """The fields of a model in order, without their names."""

    def __init__(self, model: type[BaseModel]) -> None:
        self._syntaxes = {
            name: syntax_of(shape_of(field)) for name, field in model.model_fields.items()
        }


class Colons(_Columns):
    """Every field of a model in order: ``1:2:1:1``."""

    def parse(self, raw: str) -> dict[str, object]:
        pieces = dequote(raw).split(":")
        if len(pieces) != len(self._syntaxes):
            raise ValueError(f"give {':'.join(self._syntaxes)}")
        return {
            name: syntax.parse(piece)
            for (name, syntax), piece in zip(self._syntaxes.items(), pieces, strict=True)
        }

    def format(self, value: object) -> str:
        return ":".join(
            syntax.format(getattr(value, name)) for name, syntax in self._syntaxes.items()
        )


class PairList(_Columns):
    """A list of models by their first two fields: ``[0@[0-3],1@[4,5]]``; brackets mandatory."""

    def parse(self, raw: str) -> list[dict[str, object]]:
        inner = unbracket(raw)
        if inner == raw:
            raise ValueError("give a list in brackets, [key@value,…]")
        (first, first_syntax), (second, second_syntax) = list(self._syntaxes.items())[:2]
        pairs: list[dict[str, object]] = []
        for piece in split(inner) if inner.strip() else ():
            halves = split(piece.strip(), "@", nesting=False)
            if len(halves) != 2 or not halves[0]:
                raise ValueError(f"give key@value instead of {piece.strip()}")
            pairs.append(
                {first: first_syntax.parse(halves[0]), second: second_syntax.parse(halves[1])}
            )
        return pairs

    def format(self, value: object) -> str:
        assert isinstance(value, tuple)
        (first, first_syntax), (second, second_syntax) = list(self._syntaxes.items())[:2]
        pairs = (
            f"{first_syntax.format(getattr(each, first))}"
            f"@{second_syntax.format(getattr(each, second))}"
            for each in value
        )
        return f"[{','.join(pairs)}]"


class Names:
    """The toggles of a model that are on: ``[amx]``."""

    def __init__(self, model: type[BaseModel]) -> None:
        self._known = tuple(model.model_fields)

    def parse(self, raw: str) -> dict[str, object]:
        names = TEXT_LIST.parse(raw)
        for name in names:
            if name not in self._known:
                raise ValueError(f"{name} is none of {', '.join(self._known)}")
        return dict.fromkeys(names, True)

    def format(self, value: object) -> str:
        return f"[{','.join(name for name in self._known if getattr(value, name))}]"


def hex_port(_: type) -> Syntax:
    """The syntax of an I/O port: hexadecimal with 0x."""
    return HEX_PORT
