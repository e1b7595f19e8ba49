"""``FwCfgConfig``: what the guest finds in QEMU's firmware configuration device."""

from typing import Annotated, ClassVar, Final

from vmm.config.model import ConfigModel
from vmm.config.tokens import SPECIAL, dequote, split, unbracket
from vmm.config.units import Array, HostPath, Text
from vmm.config.values import Cli, Syntax

MOST_NAME_BYTES: Final = 55
"""Of an item's name: the guest's directory of items has room for so many, and a zero."""

BETWEEN: Final = ":"
"""What stands between items."""


class FwCfgItem(ConfigModel):
    """A named item: the content of a file of the host, or a text."""

    name: Text
    file: HostPath | None = None
    string: Text | None = None


class _Items:
    """``[name=opt/a,file=/a:name=opt/b,string=b]``."""

    def parse(self, raw: str) -> list[dict[str, str]]:
        inner = unbracket(raw)
        return [self._item(piece) for piece in split(inner, BETWEEN)] if inner.strip() else []

    def _item(self, text: str) -> dict[str, str]:
        pieces = [piece.strip().partition("=") for piece in split(text)]
        item = {key: dequote(value) for key, _, value in pieces}
        if len(pieces) != 2 or item.keys() not in ({"name", "file"}, {"name", "string"}):
            raise ValueError(
                "give each item as name=<name>,file=<path> or name=<name>,string=<text>"
            )
        return item

    def format(self, value: object) -> str:
        assert isinstance(value, tuple)
        return f"[{BETWEEN.join(self._written(item) for item in value)}]"

    def _written(self, item: FwCfgItem) -> str:
        return ",".join(
            f"{name}={_quoted(text)}"
            for name in type(item).model_fields
            if (text := getattr(item, name)) is not None
        )


def _quoted(text: str) -> str:
    if text and text == text.strip() and (SPECIAL | {BETWEEN}).isdisjoint(text):
        return text
    return '"' + text.replace('"', '""') + '"'


def _items(_: type) -> Syntax:
    return _Items()


class FwCfgConfig(ConfigModel):
    """What firmware and the guest's kernel are told by QEMU's firmware configuration device."""

    FLAG: ClassVar[str] = "--fw-cfg-config"

    e820: bool = True
    kernel: bool = True
    cmdline: bool = True
    initramfs: bool = True
    acpi_table: bool = True
    items: Annotated[Array[FwCfgItem] | None, Cli(values=_items)] = None
