"""Address spaces of devices behind the IOMMU, in C: the queues of such a device translate by them.

Everything here, and every queue that uses it, belongs to the thread of the loop.
"""

from __future__ import annotations

import errno
from enum import IntFlag
from typing import TYPE_CHECKING, NamedTuple

from vmm.kvm_cffi._kvm import ffi, lib
from vmm.kvm_cffi.mechanisms import allocated

if TYPE_CHECKING:
    from vmm.kvm_cffi._kvm import CData

STEP = 256
"""Mappings that are removed in one call, before others have their turn."""


class Access(IntFlag):
    """What a device may do with memory."""

    READ = lib.VK_ACCESS_READ
    WRITE = lib.VK_ACCESS_WRITE


class Mapping(NamedTuple):
    """A device's addresses ``first`` to ``last``, both included: the guest's from ``gpa`` on."""

    first: int
    last: int
    gpa: int
    access: int


class Fault(NamedTuple):
    """An access that was not allowed; ``has_domain``: its device was in a domain."""

    address: int
    access: Access
    has_domain: bool


class IommuDomain:
    """One address space: mappings that do not overlap."""

    def __init__(self) -> None:
        self.handle: CData = ffi.gc(allocated(lib.vk_domain_new()), lib.vk_domain_free)
        """The C object, ``vk_domain *``."""
        self.count = 0
        """How many mappings there are."""

    def map(self, mapping: Mapping) -> bool:
        """Add a mapping, none of whose ranges wraps; False when a part of it is there already."""
        result = lib.vk_domain_map(self.handle, ffi.new("struct vk_mapping *", mapping))
        if result == -errno.ENOMEM:
            raise MemoryError
        self.count += result == 0
        return bool(result == 0)

    def unmap(self, first: int, last: int, most: int = STEP) -> int | None:
        """Remove mappings that lie in a range, ``most`` at a time, and say how many those were.

        None, and nothing is removed, when one reaches beyond the range.
        """
        removed: int = lib.vk_domain_unmap(self.handle, first, last, most)
        if removed < 0:
            return None
        self.count -= removed
        return removed

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        """All of them, ascending."""
        listed = ffi.new("struct vk_mapping[]", self.count)
        lib.vk_domain_list(self.handle, listed, self.count)
        return tuple(Mapping(each.first, each.last, each.gpa, each.access) for each in listed)


class IommuEndpoint:
    """A device as the IOMMU knows it: its queues translate by the domain that it is in.

    At first it is in none, and its addresses are the guest's own.
    """

    def __init__(self) -> None:
        self.handle: CData = ffi.gc(allocated(lib.vk_endpoint_new()), lib.vk_endpoint_free)
        """The C object, ``vk_endpoint *``."""
        self._domain: IommuDomain | None = None
        self.leave(bypasses=True)

    def enter(self, domain: IommuDomain) -> None:
        """Be in a domain."""
        lib.vk_endpoint_place(self.handle, domain.handle, 0)
        self._domain = domain  # The one before may be gone from here on.

    def leave(self, *, bypasses: bool) -> None:
        """Be in no domain: have all of the guest's memory, or nothing."""
        lib.vk_endpoint_place(self.handle, ffi.NULL, bypasses)
        self._domain = None

    def forget(self) -> None:
        """Translate the rings again: the domain has lost a mapping."""
        lib.vk_endpoint_forget(self.handle)

    def translate(self, address: int, size: int, access: Access) -> tuple[int, int] | None:
        """Where an address leads for the guest, and how many of ``size`` bytes are there together.

        None when the device has no such access to the first of them, which is a fault.
        """
        at = ffi.new("uint64_t *", address)
        found: int = lib.vk_endpoint_translate(self.handle, at, size, access)
        return (at[0], found) if found else None

    def take_fault(self) -> Fault | None:
        """The first fault since this was asked last."""
        fault = ffi.new("struct vk_fault *")
        if not lib.vk_endpoint_take_fault(self.handle, fault):
            return None
        return Fault(fault.address, Access(fault.access), bool(fault.has_domain))
