"""``SerialConfig``, ``ConsoleConfig``, ``DebugConsoleConfig``: where the guest's consoles lead."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated, ClassVar, Final

from vmm.config.model import ConfigModel
from vmm.config.pci import PciDevice
from vmm.config.units import U16, Choice, HostPath
from vmm.config.values import Cli, hex_port
from vmm.errors import ConfigError

DEBUG_PORT: Final = 0xE9


class ConsoleMode(StrEnum):
    """What a console is connected to."""

    OFF = "Off"
    PTY = "Pty"
    TTY = "Tty"
    FILE = "File"
    SOCKET = "Socket"
    NULL = "Null"


_BARE: Final = {
    "off": ConsoleMode.OFF,
    "pty": ConsoleMode.PTY,
    "tty": ConsoleMode.TTY,
    "null": ConsoleMode.NULL,
}
_IMPLIED: Final = {"file": ConsoleMode.FILE, "socket": ConsoleMode.SOCKET}


class ModeKeys:
    """A mode by its bare name, or implied by ``file=`` or ``socket=``, which are fields too."""

    keys: Mapping[str, bool] = dict.fromkeys(_BARE, False)

    def __init__(self, _: type) -> None:
        pass

    def read(self, given: Mapping[str, str]) -> object:
        for key, mode in (_BARE | _IMPLIED).items():
            if key in given:
                return mode
        raise ConfigError("The mode is missing; give off, null, pty, tty or file=path")

    def write(self, value: object) -> Iterator[str]:
        for key, mode in _BARE.items():
            if mode is value:
                yield key


class SerialConfig(ConfigModel):
    """The first serial port."""

    FLAG: ClassVar[str] = "--serial"

    mode: Annotated[Choice[ConsoleMode], Cli(keys=ModeKeys)]
    file: HostPath | None = None
    socket: HostPath | None = None


class ConsoleConfig(PciDevice):
    """The virtio console."""

    FLAG: ClassVar[str] = "--console"

    mode: Annotated[Choice[ConsoleMode], Cli(keys=ModeKeys)]
    file: HostPath | None = None
    socket: HostPath | None = None


class DebugConsoleConfig(ConfigModel):
    """The port that early firmware writes to."""

    FLAG: ClassVar[str] = "--debug-console"

    mode: Annotated[Choice[ConsoleMode], Cli(keys=ModeKeys)]
    file: HostPath | None = None
    iobase: Annotated[U16 | None, Cli(values=hex_port)] = DEBUG_PORT
