"""Where a loaded kernel is entered, and the check that it has the RAM it needs."""

from __future__ import annotations

from typing import Literal, NamedTuple

from vmm.boot import layout
from vmm.boot.layout import MIB
from vmm.boot.payload import PayloadFile
from vmm.boot.ram import BootRam

BootProtocol = Literal["pvh", "bzimage"]


class KernelEntry(NamedTuple):
    """A kernel in RAM: how and where it is entered (guest physical address).

    ``end`` is the first address that the image leaves free, with the room that it unpacks itself
    into. An initramfs has to end at or below ``initramfs_limit``. ``setup_header`` is what a
    bzImage wants to see again in its boot parameters.
    """

    kind: BootProtocol
    address: int
    end: int
    initramfs_limit: int = layout.RAM_ABOVE_HOLE
    setup_header: bytes = b""


def require_ram(memory: BootRam, file: PayloadFile, start: int, end: int, what: str) -> None:
    """Check that an image's addresses are RAM between 1 MiB and the hole below 4 GiB.

    Raises: ConfigError (caller) naming what is needed and what there is.
    """
    if start < layout.HIGH_RAM:
        raise file.refuse(
            f"wants its {what} at {start:#x}, and everything below {layout.HIGH_RAM:#x} is taken "
            f"by tables; link it at 1 MiB or above"
        )
    available = memory.ram[0].end
    if end <= available:
        return
    fix = (
        "link it lower, RAM does not reach higher than this below 4 GiB"
        if available >= layout.HOLE
        else "raise memory.size (--memory size=…)"
    )
    raise file.refuse(
        f"needs RAM up to {end:#x} for its {what}, {-(-end // MIB)} MiB, and the VM has "
        f"{available // MIB} MiB there; {fix}"
    )
