"""JSON bodies and files into models.

A body is read as the original reads it: fields nobody knows are dropped, here with a warning that
names their place; a field given twice, a number that is no integer, or null for a field that has a
default is refused. Descriptor numbers mean nothing outside the process that wrote them and are
dropped too.
"""

import json
import logging
from collections.abc import Mapping
from typing import Final, NoReturn, TypeVar

from pydantic import ValidationError

from vmm.config.model import ConfigModel
from vmm.config.refusal import refusals
from vmm.config.units import Mark
from vmm.config.values import shape_of
from vmm.errors import ConfigError

logger = logging.getLogger("vmm.config")

M = TypeVar("M", bound=ConfigModel)

MOST_NAMED: Final = 20
"""Ignored fields that one warning names."""


def parse_document(model: type[M], body: bytes | str) -> M:
    """Read a JSON document into a model.

    Raises: ConfigError (caller), with every value that the model refuses.
    """
    try:
        text = body if isinstance(body, str) else body.decode()
        data = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(f"The body is not valid JSON: {reason}; correct it") from None
    return parse_object(model, data)


def parse_object(model: type[M], data: object) -> M:
    """Read what JSON gave into a model. Raises: ConfigError (caller)."""
    reader = _Reader()
    known = reader.known_part(model, data, "")
    reader.warn()
    try:
        return model.model_validate(known)
    except ValidationError as error:
        raise ConfigError(*refusals(error)) from None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    read = dict(pairs)
    if len(read) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"duplicate field `{twice}`")
    return read


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


class _Reader:
    """Leaves out what a model has no field for, or must not take from JSON, and says so once."""

    def __init__(self) -> None:
        self._unknown: list[str] = []
        self._descriptors: list[str] = []

    def known_part(self, model: type[ConfigModel], data: object, path: str) -> object:
        """Copy the part of ``data`` that may go to the model."""
        if not isinstance(data, Mapping):
            return data
        kept: dict[str, object] = {}
        for key, value in data.items():
            place = f"{path}.{key}" if path else key
            field = model.model_fields.get(model.SPELLINGS.get(key, key))
            if field is None:
                if model.model_config["extra"] == "forbid":
                    kept[key] = value  # The model itself refuses it.
                else:
                    self._unknown.append(place)
                continue
            shape = shape_of(field)
            if Mark.DESCRIPTOR in shape.marks:
                self._descriptors.append(place)
            elif not issubclass(shape.type, ConfigModel):
                kept[key] = value
            elif shape.is_list and isinstance(value, list):
                kept[key] = [
                    self.known_part(shape.type, each, f"{place}[{index}]")
                    for index, each in enumerate(value)
                ]
            else:
                kept[key] = self.known_part(shape.type, value, place)
        return kept

    def warn(self) -> None:
        """Log what was left out, by its place in the document."""
        if self._unknown:
            logger.warning("Unknown fields are ignored: %s", _listed(self._unknown))
        if self._descriptors:
            logger.warning(
                "Descriptors cannot travel in JSON and are ignored: %s", _listed(self._descriptors)
            )


def _listed(places: list[str]) -> str:
    # Names come from the sender: ascii() keeps line ends and terminal codes out of the log.
    shown = ", ".join(ascii(place)[1:-1] for place in places[:MOST_NAMED])
    return shown if len(places) <= MOST_NAMED else f"{shown} and {len(places) - MOST_NAMED} more"
