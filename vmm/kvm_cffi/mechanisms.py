"""The mechanisms: what answers a guest's access without leaving C, or sends it to the loop.

Each is C state with a Python object that owns it. The router keeps a mechanism alive while it is
mapped. Those that hold descriptors are context managers; close them when no vCPU runs any more.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmm.errors import InternalError
from vmm.kvm_cffi._kvm import ffi, lib
from vmm.kvm_cffi.closing import Closing
from vmm.kvm_cffi.event import open_event

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.kvm_cffi._kvm import CData


def allocated(handle: CData) -> CData:
    """Return what C made. Raises: MemoryError when it made nothing."""
    if handle == ffi.NULL:
        raise MemoryError
    return handle


class Mechanism:
    """What every mechanism has: a C handle, and accesses by hand, for tests."""

    def __init__(self, handle: CData) -> None:
        self.handle = ffi.cast("vk_mechanism *", handle)
        """The C object; the owner of its memory is kept by the class that made it."""

    def read(self, offset: int, size: int = 1) -> int | None:
        """Read as a vCPU would: the value, or None where the loop would be asked."""
        value = ffi.new("uint64_t *")
        if not lib.vk_mechanism_read(self.handle, offset, size, value):
            return None
        return int(value[0]) & (1 << 8 * size) - 1

    def write(self, offset: int, value: int, size: int = 1) -> bool:
        """Write as a vCPU would: False where the loop would be asked."""
        return bool(lib.vk_mechanism_write(self.handle, offset, size, value))


class Constant(Mechanism):
    """Reads give one value, cut to the access's size; writes are dropped."""

    def __init__(self, value: int) -> None:
        self._owned = ffi.gc(allocated(lib.vk_constant_new(value)), lib.vk_mechanism_free)
        super().__init__(self._owned)


class AllOnes(Constant):
    """Reads give all ones, writes are dropped: as where nothing is mapped."""

    def __init__(self) -> None:
        super().__init__((1 << 64) - 1)


class Loop(Mechanism):
    """Rung 2: every access fills the vCPU's exit slot and waits for Python's answer."""

    def __init__(self) -> None:
        self._owned = ffi.gc(allocated(lib.vk_loop_new()), lib.vk_mechanism_free)
        super().__init__(self._owned)


class ByteRing(Mechanism, Closing):
    """Collects the bytes the guest writes; reads give ``read_value``.

    ``fd`` becomes readable when bytes arrive in the empty ring: clear it, then ``drain``.
    """

    def __init__(self, read_value: int, capacity: int = 65536) -> None:
        if capacity < 1:
            raise InternalError(f"A byte ring of {capacity} bytes holds nothing; give it 1 or more")
        self.fd = open_event()
        self._capacity = capacity
        made = lib.vk_byte_ring_new(read_value, capacity, self.fd)
        self._ring = ffi.gc(allocated(made), lib.vk_byte_ring_free)
        super().__init__(self._ring)

    def close(self) -> None:
        """Close the descriptor; what is in the ring can still be drained."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            lib.vk_byte_ring_detach(self._ring)
            os.close(fd)

    def drain(self) -> bytes:
        """Take everything there is."""
        room = ffi.new("uint8_t[]", self._capacity)
        count = lib.vk_byte_ring_drain(self._ring, room, self._capacity)
        return bytes(ffi.buffer(room, count))

    @property
    def dropped(self) -> int:
        """How many bytes found the ring full and were lost."""
        return int(lib.vk_byte_ring_dropped(self._ring))


class ConfigAddress(Mechanism):
    """Ports 0xCF8 to 0xCFF: map it at 0xCF8 with size 8.

    The address register and all reads are answered from the shadow of bus 0, laid out as ECAM:
    ``device << 15 | function << 12 | register``. Writes to 0xCFC-0xCFF go to the loop, and
    ``address`` then tells where. The shadow must be 4-byte aligned, outlive this object, and hold
    all ones where no device is.
    """

    def __init__(self, shadow_address: int, shadow_size: int) -> None:
        if shadow_address % 4:
            raise InternalError(f"Shadow pages at {shadow_address:#x} are not 4-byte aligned")
        shadow = ffi.cast("void *", shadow_address)
        made = lib.vk_config_address_new(shadow, shadow_size)
        self._config = ffi.gc(allocated(made), lib.vk_mechanism_free)
        super().__init__(self._config)

    @property
    def address(self) -> int:
        """The address register: enable bit, bus, device, function, register."""
        return int(lib.vk_config_address_get(self._config))

    @address.setter
    def address(self, value: int) -> None:
        lib.vk_config_address_set(self._config, value)


class Shadow(Mechanism):
    """Reads of some parts are answered from memory, which is ``views``; all else goes to the loop.

    A part is an offset and a size in bytes; a read that is not wholly in one goes to the loop. The
    views are zeros at first, and what is written to them is what vCPUs read from then on.
    """

    def __init__(self, parts: Sequence[tuple[int, int]]) -> None:
        self._memory = [ffi.new("uint8_t[]", size) for _, size in parts]
        self.views = tuple(memoryview(ffi.buffer(bytes)) for bytes in self._memory)
        described = ffi.new("struct vk_shadow_part[]", len(parts))
        for part, (offset, size), memory in zip(described, parts, self._memory, strict=True):
            part.offset, part.size, part.bytes = offset, size, memory
        made = lib.vk_shadow_new(described, len(parts))
        self._shadow = ffi.gc(allocated(made), lib.vk_mechanism_free)
        super().__init__(self._shadow)


class PmTimer(Mechanism):
    """The ACPI power-management timer: host monotonic time at 3.579545 MHz, plus ``offset``."""

    def __init__(self, offset: int = 0) -> None:
        made = lib.vk_pm_timer_new(offset & 0xFFFF_FFFF)
        self._timer = ffi.gc(allocated(made), lib.vk_mechanism_free)
        super().__init__(self._timer)

    @property
    def offset(self) -> int:
        """Ticks added to the host's clock, modulo 2**32; set it to restore a counter."""
        return int(lib.vk_pm_timer_get_offset(self._timer))

    @offset.setter
    def offset(self, ticks: int) -> None:
        lib.vk_pm_timer_set_offset(self._timer, ticks & 0xFFFF_FFFF)

    @property
    def ticks(self) -> int:
        """The counter as the guest would read it now."""
        return self.read(0, 4) or 0
