"""``VsockConfig``: sockets between guest and host."""

from typing import Annotated, ClassVar, Final

from pydantic import AfterValidator

from vmm.config.pci import PciDevice
from vmm.config.units import U32, U32_MAX, HostPath

SPECIAL_CIDS: Final = (0, 1, 2, U32_MAX)
"""The hypervisor, this host itself, the host, and any (vsock(7))."""


def ordinary_cid(cid: int) -> int:
    """Refuse the context identifiers that have a meaning of their own."""
    if cid in SPECIAL_CIDS:
        raise ValueError(f"{cid} is a special VSOCK CID; give one from 3 to {U32_MAX - 1}")
    return cid


class VsockConfig(PciDevice):
    """Sockets between the guest and a Unix socket of the host."""

    FLAG: ClassVar[str] = "--vsock"

    cid: Annotated[U32, AfterValidator(ordinary_cid)]
    socket: HostPath
