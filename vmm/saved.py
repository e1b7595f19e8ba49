"""The base of what a snapshot keeps of each part of a machine: versioned models, one a part.

A state is written as JSON with the number of its version. One of an older version is brought up to
date where ``UPGRADES`` says how; one of a version that this program does not know is refused by
name. Declaring a model takes time that a start does not have: whoever saves imports them then.
"""

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vmm.errors import ConfigError

S = TypeVar("S", bound="SavedState")

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
"""Makes the fields of a version out of those of the version before it."""

Bytes = Annotated[bytes, Field(repr=False)]
"""Bytes, in JSON two hexadecimal digits each."""


class SavedState(BaseModel):
    """The state of one part of a machine."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        defer_build=True,
        ser_json_bytes="hex",
        val_json_bytes="hex",
    )

    VERSION: ClassVar[int] = 1
    UPGRADES: ClassVar[Mapping[int, Upgrade]] = {}
    """How a state of the version of the key becomes one of the next."""

    def to_json(self) -> str:
        """Write the state, its version first."""
        content = self.model_dump_json()
        return f'{{"version":{self.VERSION}{"," if content != "{}" else ""}{content[1:]}'

    @classmethod
    def from_json(cls: type[S], text: str, part: str) -> S:
        """Read a state of this version or of one before it.

        ``part`` names what it is the state of. Raises: ConfigError (caller).
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"The state of {part} is not JSON: {error}") from None
        if not isinstance(content, dict) or type(content.get("version")) is not int:
            raise ConfigError(f"The state of {part} does not say which version it has")
        version = content.pop("version")
        while version != cls.VERSION:
            if version not in cls.UPGRADES:
                raise ConfigError(
                    f"The state of {part} has version {version}, and this program reads "
                    f"{cls._readable()}; restore it with the program that wrote it"
                )
            try:
                content, version = cls.UPGRADES[version](content), version + 1
            except (KeyError, TypeError, ValueError) as error:
                raise ConfigError(
                    f"The state of {part} is none of its version {version}: {error!r}"
                ) from None
        try:
            return cls.model_validate_json(json.dumps(content))
        except ValidationError as error:
            raise ConfigError(*_problems(error, part)) from None

    @classmethod
    def _readable(cls) -> str:
        """The versions that can be read."""
        first = cls.VERSION
        while first - 1 in cls.UPGRADES:
            first -= 1
        return f"version {first}" if first == cls.VERSION else f"versions {first} to {cls.VERSION}"


def _problems(error: ValidationError, part: str) -> list[str]:
    return [
        f"The state of {part} has a bad {'.'.join(map(str, each['loc'])) or 'content'}: "
        f"{each['msg']}"
        for each in error.errors(include_input=False, include_url=False)
    ]
