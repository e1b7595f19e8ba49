"""The exit router: which mechanism answers which ports and guest-physical addresses."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from vmm.errors import InternalError
from vmm.kvm_cffi._kvm import ffi, lib
from vmm.kvm_cffi.mechanisms import allocated

if TYPE_CHECKING:
    from vmm.kvm_cffi.mechanisms import Mechanism


class ExitRouter:
    """The two address spaces of one VM. What nobody claims reads as all ones and drops writes.

    Ranges may be mapped and unmapped while vCPUs run. When an unmap returns, no vCPU is inside the
    mechanism any more. An access belongs to the range where its first byte lies.
    """

    def __init__(self) -> None:
        self.handle = ffi.gc(allocated(lib.vk_router_new()), lib.vk_router_free)
        self._mapped: dict[tuple[str, int], Mechanism] = {}

    def map_pio(self, base: int, size: int, mechanism: Mechanism) -> None:
        """Claim ports. Raises: InternalError when one is claimed or beyond 0xFFFF."""
        result = lib.vk_router_map_pio(self.handle, base, size, mechanism.handle)
        _check("Port", base, size, result)
        self._mapped["pio", base] = mechanism

    def unmap_pio(self, base: int, size: int) -> None:
        """Give ports back. Raises: InternalError when exactly this range is not mapped."""
        _check("Port", base, size, lib.vk_router_unmap_pio(self.handle, base, size))
        del self._mapped["pio", base]

    def map_mmio(self, base: int, size: int, mechanism: Mechanism) -> None:
        """Claim guest-physical addresses. Raises: InternalError when one is claimed."""
        result = lib.vk_router_map_mmio(self.handle, base, size, mechanism.handle)
        _check("MMIO", base, size, result)
        self._mapped["mmio", base] = mechanism

    def unmap_mmio(self, base: int, size: int) -> None:
        """Give addresses back. Raises: InternalError when exactly this range is not mapped."""
        _check("MMIO", base, size, lib.vk_router_unmap_mmio(self.handle, base, size))
        del self._mapped["mmio", base]


REASONS = {
    errno.EEXIST: "overlaps a mapped one; unmap that first",
    errno.ENOENT: "is not mapped; unmap exactly what was mapped",
    errno.ERANGE: "does not fit the address space; give it a size of 1 or more within it",
}


def _check(space: str, base: int, size: int, result: int) -> None:
    if result < 0:
        reason = REASONS.get(-result, os.strerror(-result))
        raise InternalError(f"{space} range {base:#x}+{size:#x} {reason}")
