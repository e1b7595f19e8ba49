"""``VsockConfig``: sockets between guest and host."""

from typing import Annotated, ClassVar, Final

from pydantic import AfterValidator, Field

from vmm.config.pci import PciDevice
from vmm.config.units import U32, U32_MAX, HostPath

FIRST_CID: Final = 3
LAST_CID: Final = U32_MAX - 1
SPECIAL_CIDS: Final = (0, 1, 2, U32_MAX)
"""The hypervisor, this host itself, the host, and any (vsock(7))."""


def ordinary_cid(cid: int) -> int:
    """Refuse the context identifiers that have a meaning of their own."""
    if cid in SPECIAL_CIDS:
        raise ValueError(f"{cid} is a special VSOCK CID; give one from {FIRST_CID} to {LAST_CID}")
    return cid


class VsockConfig(PciDevice):
    """Sockets between the guest and a Unix socket of the host."""

    FLAG: ClassVar[str] = "--vsock"

    cid: Annotated[
        U32,
        AfterValidator(ordinary_cid),
        Field(json_schema_extra={"minimum": FIRST_CID, "maximum": LAST_CID}),
    ]
    socket: HostPath
