"""The base of every object of the API document.

One class an object gives JSON, the command line, the served document, ``vm.info`` and the
``config.json`` of a snapshot. Models are frozen; integers keep the widths of the original; unknown
fields are dropped, and ``vmm.config.document`` says which. Building the validators is left to the
first use, as most objects are not part of most configurations.
"""

from collections.abc import Mapping
from enum import Enum
from importlib import import_module
from typing import Any, ClassVar, Union

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema


class ConfigModel(BaseModel):
    """An object of the API document."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", defer_build=True)

    FLAG: ClassVar[str] = ""
    """The command line option that gives this object; empty if there is none."""

    SPELLINGS: ClassVar[Mapping[str, str]] = {}
    """Other JSON names of fields, and the fields they mean."""

    def shows(self, name: str, value: object) -> bool:
        """Tell whether a field appears in JSON; unset options do not."""
        return value is not None

    def to_json(self) -> dict[str, object]:
        """Give what ``vm.info`` shows and ``config.json`` holds, as plain data."""
        return {
            name: plain(value)
            for name in type(self).model_fields
            if self.shows(name, value := getattr(self, name))
        }


class LaterModel:
    """Stands for a model in another's annotation, and declares it when it is first needed.

    To declare a model takes longer than to build the device that it describes. ``flag`` is the
    model's own.
    """

    def __init__(self, module: str, name: str, flag: str) -> None:
        self._module = module
        self._name = name
        self.flag = flag

    @property
    def model(self) -> type[ConfigModel]:
        """The model itself."""
        model: type[ConfigModel] = getattr(import_module(f"vmm.config.{self._module}"), self._name)
        return model

    def __or__(self, other: Any) -> Any:  # noqa: ANN401  an annotation
        return Union[self, other]  # noqa: UP007  the operator is this very method

    def __get_pydantic_core_schema__(
        self,
        source: Any,  # noqa: ANN401  pydantic's own signature
        handler: GetCoreSchemaHandler,
    ) -> CoreSchema:
        return handler.generate_schema(self.model)


def plain(value: object) -> object:
    """Turn a field's value into what JSON can write."""
    if isinstance(value, ConfigModel):
        return value.to_json()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [plain(each) for each in value]
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    return value


def join_spellings(model: type[ConfigModel], given: object, *, may_repeat: bool = False) -> object:
    """Put what came under another spelling under the field's own name.

    ``may_repeat`` takes both spellings as long as they agree, as in a configuration that
    ``vm.info`` showed. Raises: ValueError (caller).
    """
    if not isinstance(given, Mapping) or model.SPELLINGS.keys().isdisjoint(given):
        return given
    joined = {name: value for name, value in given.items() if name not in model.SPELLINGS}
    for spelling, name in model.SPELLINGS.items():
        if spelling not in given:
            continue
        if name in joined and not (may_repeat and joined[name] == given[spelling]):
            raise ValueError(f"duplicate field `{name}`: {spelling} means the same; give one")
        joined[name] = given[spelling]
    return joined
