"""``LandlockConfig``: what this process may reach beyond its own configuration's files."""

from typing import ClassVar

from vmm.config.model import ConfigModel
from vmm.config.units import HostPath, Text


class LandlockConfig(ConfigModel):
    """A path that stays reachable under Landlock; ``access`` is r, w or rw."""

    FLAG: ClassVar[str] = "--landlock-rules"

    path: HostPath
    access: Text
