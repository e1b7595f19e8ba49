"""The grammar of the command line's option strings, driven by the models. Sans-I/O.

``parse_option`` reads ``key=value,key=value`` into a model and ``format_option`` writes one that
reads back the same. Which keys there are, and how their values are written, comes from the
model's fields (``vmm.config.values``); the rules for quotes and brackets are in
``vmm.config.tokens``.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticUndefined

from vmm.config.model import ConfigModel
from vmm.config.refusal import echo, path_text, wanted
from vmm.config.tokens import UnbalancedError, split
from vmm.config.values import Cli, FieldSyntax, Syntax, shape_of, syntax_of
from vmm.errors import ConfigError

logger = logging.getLogger("vmm.config")

M = TypeVar("M", bound=ConfigModel)


class OneKey(NamedTuple):
    """A field that has one key, perhaps under older names too."""

    key: str
    also: tuple[str, ...]
    syntax: Syntax

    @property
    def keys(self) -> Mapping[str, bool]:
        return dict.fromkeys((self.key, *self.also), True)

    def read(self, given: Mapping[str, str]) -> object:
        used = [key for key in (self.key, *self.also) if key in given]
        if len(used) > 1:
            raise ConfigError(f"{used[0]} and {used[1]} mean the same; give {used[0]} alone")
        if not used or not given[used[0]]:
            return None
        if used[0] in self.also:
            logger.warning("The key %s is the old name of %s", used[0], self.key)
        return convert(self.syntax, used[0], given[used[0]])

    def write(self, value: object) -> Iterator[str]:
        yield f"{self.key}={self.syntax.format(value)}"


def convert(syntax: Syntax, key: str, raw: str) -> object:
    """Read the value of a key. Raises: ConfigError (caller)."""
    try:
        return syntax.parse(raw)
    except UnbalancedError as error:
        raise ConfigError(f"Invalid syntax: {error}") from None
    except ValueError as error:
        raise ConfigError(f"Unable to convert {raw} for {key}; {error}") from None


def parse_option(model: type[M], text: str) -> M:
    """Read an option string.

    Raises: ConfigError (caller), with every value that the model refuses.
    """
    fields = field_syntaxes(model)
    keys = {key: needs for syntax in fields.values() for key, needs in syntax.keys.items()}
    given = parse_keys(text, keys)
    values: dict[str, object] = {}
    for name, syntax in fields.items():
        value = syntax.read(given)
        if value is None:
            value = _unsaid(shape_of(model.model_fields[name]).cli, values)
        if value is not None:
            values[name] = value
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        raise ConfigError(*(_refusal(fields, fault) for fault in faults)) from None


def _unsaid(cli: Cli, values: Mapping[str, object]) -> object:
    return values.get(cli.same_as) if cli.same_as is not None else cli.default


def _refusal(fields: Mapping[str, FieldSyntax], fault: ErrorDetails) -> str:
    name, *inner = fault["loc"]
    keys = list(fields[str(name)].keys)
    key = keys[0] if len(keys) == 1 or not inner else path_text((name, *inner))
    if fault["type"] == "missing":
        return f"{key} is missing; give {key}="
    return f"Unable to convert {echo(fault['input'])} for {key}; {wanted(fault)}"


def parse_keys(text: str, keys: Mapping[str, bool]) -> dict[str, str]:
    """Read an option string into its keys; ``keys`` says which need a value.

    The values keep their quotes and brackets; of a repeated key the last one counts.
    Raises: ConfigError (caller).
    """
    whole = text.strip()
    try:
        pieces = split(whole) if whole else []
    except UnbalancedError:
        raise ConfigError(f"Invalid syntax: {whole}; close every quote and every bracket") from None
    given: dict[str, str] = {}
    for piece in pieces:
        key, equals, value = piece.partition("=")
        if key not in keys:
            raise ConfigError(f"Unknown option: {key}; the keys are {', '.join(keys)}")
        if keys[key] and not equals:
            raise ConfigError(f"Invalid syntax: {piece}; give {key}=value")
        given[key] = value.strip()
    return given


def format_option(model: ConfigModel) -> str:
    """Write the option string that ``parse_option`` reads back as an equal model."""
    pieces: list[str] = []
    for name, syntax in field_syntaxes(type(model)).items():
        value = getattr(model, name)
        default = type(model).model_fields[name].get_default(call_default_factory=True)
        if value is not None and (default is PydanticUndefined or value != default):
            pieces.extend(syntax.write(value))
    return ",".join(pieces)


def field_syntaxes(model: type[ConfigModel]) -> dict[str, FieldSyntax]:
    """The keys of every field that the command line can give."""
    syntaxes: dict[str, FieldSyntax] = {}
    for name, field in model.model_fields.items():
        shape = shape_of(field)
        cli = shape.cli
        if cli.hidden:
            continue
        syntaxes[name] = (
            OneKey(cli.key or name, cli.also, syntax_of(shape))
            if cli.keys is None
            else cli.keys(shape.type)
        )
    return syntaxes
