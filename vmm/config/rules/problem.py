"""One broken rule, and how its place is written."""

from typing import NamedTuple

from vmm.config.model import ConfigModel
from vmm.config.values import key_of


class Problem(NamedTuple):
    """A sentence about a broken rule; ``is_duplicate`` if a name is taken already."""

    text: str
    is_duplicate: bool = False


def at(path: str, model: ConfigModel | type[ConfigModel], field: str) -> str:
    """Write a field's place in JSON and on the command line: ``disks[0].path (--disk path=)``."""
    kind = model if isinstance(model, type) else type(model)
    return f"{path}.{field} ({kind.FLAG} {key_of(kind, field)}=)"
