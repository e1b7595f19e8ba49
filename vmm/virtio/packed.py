"""The device's side of a packed virtqueue in Python: the reference for the one in C.

One ring of descriptors that the driver makes available and the device overwrites when it has used
them. Whose a descriptor is, its two ownership bits say, whose meaning flips when the ring wraps.

Source: VIRTIO 1.2, section 2.8.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vmm.virtio.chain import DESC, DESC_INDIRECT, DESC_NEXT, DESC_WRITE
from vmm.virtio.queue import SIZE_MAX, U16, WRAP, Ring

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.virtio.chain import ChainBuilder, RingMemory, ViewChain
    from vmm.virtio.queue import QueueState

DESC_AVAIL = 1 << 7
DESC_USED = 1 << 15
DESC_FLAGS = 14
USED = struct.Struct("<IH")
"""What a used descriptor says from byte 8 on: bytes written, buffer id; then its flags."""

EVENT = struct.Struct("<HH")
"""Event suppression: a position, then what it is for."""

EVENT_FLAGS = 2
EVENTS_ENABLED = 0
EVENTS_DISABLED = 1
EVENTS_AT_POSITION = 2
EVENT_FLAGS_MASK = 3


class PackedQueue(Ring):
    """A packed ring; positions are offsets below its size, each with a wrap counter."""

    def __init__(
        self,
        memory: RingMemory,
        state: QueueState,
        *,
        kick_fd: int = -1,
        interrupt: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(memory, state, kick_fd=kick_fd, interrupt=interrupt)
        if not 0 < state.size <= SIZE_MAX:
            raise self._broken(
                f"its size is {state.size}; it must be from 1 to {SIZE_MAX}, and a power of two if "
                "split"
            )
        self._desc = self._part(state.desc, DESC.size * state.size, 16)
        self._driver = self._part(state.driver, EVENT.size, 4)
        self._device = self._part(state.device, EVENT.size, 4)
        for position in (state.next_avail, state.next_used):
            if position > 0xFFFF or position % WRAP >= state.size:
                raise self._broken(f"its position is saved as {position:#x}, outside the ring")

    def _moved(self, position: int, slots: int) -> int:
        """A position so many slots on, or back if negative; at most once around the ring."""
        offset = position % WRAP + slots
        wrap = position & WRAP
        if 0 <= offset < self.size:
            return offset | wrap
        return offset % self.size | (wrap ^ WRAP)

    def _is_available(self, flags: int) -> bool:
        wrap = bool(self._next_avail & WRAP)
        return bool(flags & DESC_AVAIL) == wrap and bool(flags & DESC_USED) != wrap

    def _next_flags(self) -> int:
        at = DESC.size * (self._next_avail % WRAP)
        flags: int = U16.unpack_from(self._desc, at + DESC_FLAGS)[0]
        return flags

    def _take(self) -> tuple[ViewChain, int] | None:
        flags = self._next_flags()
        if not self._is_available(flags):
            return None
        builder = self._builder()
        head, slots = self._walk(builder, flags)
        self._check_head(head)
        self._next_avail = self._moved(self._next_avail, slots)
        return builder.finish(head), slots

    def _walk(self, builder: ChainBuilder, flags: int) -> tuple[int, int]:
        """Follow a list through the ring; return its buffer id and its slots.

        ``flags`` are the first descriptor's, which are not read again.
        """
        at = self._next_avail
        gpa, length, buffer_id, _ = DESC.unpack_from(self._desc, DESC.size * (at % WRAP))
        slots = 0
        while True:
            slots += 1
            if self.in_flight + slots > self.size:
                raise self._broken(
                    f"{self.in_flight + slots} descriptors are in flight in a ring of {self.size}"
                )
            if flags & DESC_INDIRECT:
                if slots != 1 or flags & DESC_NEXT:
                    raise self._broken(f"the indirect table at {gpa:#x} is linked with others")
                self._walk_table(builder, gpa, length)
                return buffer_id, slots
            builder.add(gpa, length, is_writable=bool(flags & DESC_WRITE))
            if not flags & DESC_NEXT:
                return buffer_id, slots
            at = self._moved(at, 1)
            gpa, length, buffer_id, flags = DESC.unpack_from(self._desc, DESC.size * (at % WRAP))

    def _walk_table(self, builder: ChainBuilder, gpa: int, size: int) -> None:
        """Add a whole table. Only the direction of its descriptors means something."""
        table = builder.table(gpa, size)
        for at in range(0, size, DESC.size):
            entry_gpa, length, _, flags = DESC.unpack_from(table, at)
            builder.add(entry_gpa, length, is_writable=bool(flags & DESC_WRITE))

    def _give_back(self, slots: int) -> None:
        self._next_avail = self._moved(self._next_avail, -slots)

    def _put(self, head: int, written: int, slots: int) -> None:
        flags = DESC_AVAIL | DESC_USED if self._next_used & WRAP else 0
        if written:
            flags |= DESC_WRITE
        at = DESC.size * (self._next_used % WRAP)
        USED.pack_into(self._desc, at + 8, written, head)
        U16.pack_into(self._desc, at + DESC_FLAGS, flags)
        self._next_used = self._moved(self._next_used, slots)

    def _has_more(self) -> bool:
        return self._is_available(self._next_flags())

    def _is_interrupt_wanted(self, unsignalled: int) -> bool:
        flags = U16.unpack_from(self._driver, EVENT_FLAGS)[0] & EVENT_FLAGS_MASK
        if flags == EVENTS_DISABLED:
            return False
        if flags != EVENTS_AT_POSITION or not self._state.has_event_idx:
            return True
        if unsignalled > self.size:
            return True
        # In this lap if its wrap counter is the device's own, else in the one before.
        event: int = U16.unpack_from(self._driver, 0)[0]
        distance = self._next_used % WRAP - event % WRAP
        if (event ^ self._next_used) & WRAP:
            distance += self.size
        return 0 < distance <= unsignalled

    def _tell_suppressed(self) -> None:
        U16.pack_into(self._device, EVENT_FLAGS, EVENTS_DISABLED)

    def _tell_enabled(self) -> None:
        if self._state.has_event_idx:
            U16.pack_into(self._device, 0, self._next_avail)
            U16.pack_into(self._device, EVENT_FLAGS, EVENTS_AT_POSITION)
        else:
            U16.pack_into(self._device, EVENT_FLAGS, EVENTS_ENABLED)
