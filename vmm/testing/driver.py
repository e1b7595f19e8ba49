"""The driver's side of a virtqueue, for tests of devices: it makes requests and collects answers.

    memory = FakeMemory()
    driver = SplitDriver(memory, 8)
    queue = Virtqueue(memory.map(), driver.state)      # or SplitQueue(memory, driver.state)

    driver.add([b"question"], [512])
    chain = queue.pop()
    queue.push(chain, chain.write(b"answer to " + chain.read(64)))

    [used] = driver.collect()
    assert used.data == b"answer to question"

A driver here keeps the specification's rules. For a guest that does not, write what you like to
the addresses in ``driver.state`` with ``memory.write``.

Source: VIRTIO 1.2, sections 2.6 to 2.8.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vmm.errors import InternalError
from vmm.virtio.queue import WRAP, QueueState

if TYPE_CHECKING:
    from vmm.testing.memory import FakeMemory

DESC = struct.Struct("<QIHH")
NEXT = 0x1
WRITE = 0x2
INDIRECT = 0x4
AVAIL = 1 << 7
USED = 1 << 15

EVENTS_ENABLED = 0
EVENTS_DISABLED = 1
EVENTS_AT_POSITION = 2


class Buffer(NamedTuple):
    """One descriptor's worth: where, how many bytes, and who writes it."""

    gpa: int
    size: int
    is_writable: bool


class Used(NamedTuple):
    """A request that the device has completed.

    ``token`` is what ``add`` gave, ``written`` what the device says, ``data`` the first that many
    bytes of the room that it had.
    """

    token: int
    written: int
    data: bytes


@dataclass
class Request:
    """A request under way: its buffers, its indirect table if it has one, its ring slots."""

    token: int
    buffers: list[Buffer]
    table: Buffer | None
    slots: list[int]


class Driver(ABC):
    """What the drivers of both formats do; ``state`` is what to make the device's queue of.

    ``size`` counts descriptors. Interrupts are wanted at first, as after a real driver's set-up.
    ``start`` is a position in the ring to begin at, as if the requests before it were done.
    """

    def __init__(
        self,
        memory: FakeMemory,
        size: int,
        index: int,
        has_event_idx: bool,
        has_indirect: bool,
        start: int | None,
    ) -> None:
        self.memory = memory
        self.size = size
        self.has_event_idx = has_event_idx
        driver_bytes, device_bytes = self._part_bytes()
        state = QueueState.fresh(
            index,
            size,
            self._zeroed(DESC.size * size),
            self._zeroed(driver_bytes),
            self._zeroed(device_bytes),
            is_packed=self.is_packed,
            has_event_idx=has_event_idx,
            has_indirect=has_indirect,
        )
        self.state = state if start is None else state.moved_to(start, start, 0)
        self._requests: dict[int, Request] = {}
        self._next_token = 0
        self._unkicked = 0

    is_packed: bool

    def add(
        self,
        readable: Sequence[bytes] = (),
        writable: Sequence[int] = (),
        *,
        is_indirect: bool = False,
    ) -> int:
        """Make a request available: bytes for the device to read, sizes of rooms to write to.

        Returns a token that its answer carries. Raises: InternalError when the ring is full.
        """
        buffers = [self._filled(data) for data in readable]
        buffers += [Buffer(self.memory.allocate(size), size, True) for size in writable]
        if not buffers:
            raise InternalError("A request needs a buffer at least; give it bytes or room")
        table = self._make_table(buffers) if is_indirect else None
        needed = 1 if table else len(buffers)
        if needed > self.free:
            raise InternalError(f"{needed} descriptors are more than the {self.free} free ones")
        self._next_token += 1
        request = Request(self._next_token, buffers, table, [])
        if table:
            self._publish(request, [(table, INDIRECT)])
        else:
            self._publish(request, [(each, WRITE * each.is_writable) for each in buffers])
        return request.token

    def collect(self) -> list[Used]:
        """Take what the device has completed since the last call."""
        found = []
        while (completed := self._next_completed()) is not None:
            request, written = completed
            room = b"".join(
                self.memory.read(each.gpa, each.size)
                for each in request.buffers
                if each.is_writable
            )
            for buffer in (*request.buffers, *([request.table] if request.table else [])):
                self.memory.release(buffer.gpa, buffer.size)
            found.append(Used(request.token, written, room[:written]))
        return found

    @property
    @abstractmethod
    def free(self) -> int:
        """How many descriptors are free."""

    @abstractmethod
    def wants_kick(self) -> bool:
        """Whether the device wants a kick for what was added since this was asked last."""

    @abstractmethod
    def suppress(self) -> None:
        """Ask the device not to interrupt."""

    @abstractmethod
    def enable(self) -> bool:
        """Ask the device to interrupt for the next answer; True when there is one already."""

    @abstractmethod
    def _part_bytes(self) -> tuple[int, int]:
        """The bytes of the driver's and of the device's part."""

    @abstractmethod
    def _publish(self, request: Request, descriptors: Sequence[tuple[Buffer, int]]) -> None:
        """Put a list of buffers with their flags into the ring."""

    @abstractmethod
    def _next_completed(self) -> tuple[Request, int] | None:
        """Take the next used entry; free its slots."""

    def _zeroed(self, size: int) -> int:
        gpa = self.memory.allocate(size)
        self.memory.write(gpa, bytes(size))
        return gpa

    def _filled(self, data: bytes) -> Buffer:
        gpa = self.memory.allocate(len(data))
        self.memory.write(gpa, data)
        return Buffer(gpa, len(data), False)

    def _make_table(self, buffers: Sequence[Buffer]) -> Buffer:
        size = DESC.size * len(buffers)
        table = Buffer(self.memory.allocate(size), size, False)
        for at, buffer in enumerate(buffers):
            entry = self._entry(buffer, at, is_last=at == len(buffers) - 1)
            self.memory.write(table.gpa + DESC.size * at, entry)
        return table

    @abstractmethod
    def _entry(self, buffer: Buffer, at: int, *, is_last: bool) -> bytes:
        """Entry ``at`` of an indirect table."""

    def _u16(self, gpa: int) -> int:
        return int.from_bytes(self.memory.read(gpa, 2), "little")

    def _set_u16(self, gpa: int, value: int) -> None:
        self.memory.write(gpa, value.to_bytes(2, "little"))


class SplitDriver(Driver):
    """The driver of a split ring; ``size`` must be a power of two."""

    is_packed = False

    def __init__(
        self,
        memory: FakeMemory,
        size: int,
        *,
        index: int = 0,
        has_event_idx: bool = False,
        has_indirect: bool = False,
        start: int | None = None,
    ) -> None:
        super().__init__(memory, size, index, has_event_idx, has_indirect, start)
        self._free = list(range(size))
        self._avail = self._used = self.state.next_avail
        self._set_u16(self.state.driver + 2, self._avail)
        self._set_u16(self.state.device + 2, self._used)
        self.enable()

    @property
    def free(self) -> int:
        """How many descriptors are free."""
        return len(self._free)

    def _part_bytes(self) -> tuple[int, int]:
        return 6 + 2 * self.size, 6 + 8 * self.size

    def _entry(self, buffer: Buffer, at: int, *, is_last: bool) -> bytes:
        flags = WRITE * buffer.is_writable | (0 if is_last else NEXT)
        return DESC.pack(buffer.gpa, buffer.size, flags, 0 if is_last else at + 1)

    def _publish(self, request: Request, descriptors: Sequence[tuple[Buffer, int]]) -> None:
        request.slots = [self._free.pop(0) for _ in descriptors]
        following = [*request.slots[1:], None]
        for slot, link, (buffer, flags) in zip(request.slots, following, descriptors, strict=True):
            flags |= 0 if link is None else NEXT
            entry = DESC.pack(buffer.gpa, buffer.size, flags, link or 0)
            self.memory.write(self.state.desc + DESC.size * slot, entry)
        head = request.slots[0]
        self._requests[head] = request
        self._set_u16(self.state.driver + 4 + 2 * (self._avail % self.size), head)
        self._avail = (self._avail + 1) % 0x10000
        self._unkicked += 1
        self._set_u16(self.state.driver + 2, self._avail)

    def _next_completed(self) -> tuple[Request, int] | None:
        if self._u16(self.state.device + 2) == self._used:
            return None
        entry = self.memory.read(self.state.device + 4 + 8 * (self._used % self.size), 8)
        head, written = struct.unpack("<II", entry)
        self._used = (self._used + 1) % 0x10000
        request = self._requests.pop(head)
        self._free += request.slots
        return request, written

    def wants_kick(self) -> bool:
        """Whether the device wants a kick for what was added since this was asked last."""
        added, self._unkicked = self._unkicked, 0
        if not added:
            return False
        if not self.has_event_idx:
            return not self._u16(self.state.device) & 1
        event = self._u16(self.state.device + 4 + 8 * self.size)
        return (self._avail - event - 1) % 0x10000 < added

    def suppress(self) -> None:
        """Ask the device not to interrupt."""
        if self.has_event_idx:
            # The position before: the device comes there again after 65535 answers.
            self._set_u16(self.state.driver + 4 + 2 * self.size, (self._used - 1) % 0x10000)
        else:
            self._set_u16(self.state.driver, 1)

    def enable(self) -> bool:
        """Ask the device to interrupt for the next answer; True when there is one already."""
        if self.has_event_idx:
            self._set_u16(self.state.driver + 4 + 2 * self.size, self._used)
        else:
            self._set_u16(self.state.driver, 0)
        return self._u16(self.state.device + 2) != self._used


class PackedDriver(Driver):
    """The driver of a packed ring, of any size."""

    is_packed = True

    def __init__(
        self,
        memory: FakeMemory,
        size: int,
        *,
        index: int = 0,
        has_event_idx: bool = False,
        has_indirect: bool = False,
        start: int | None = None,
    ) -> None:
        super().__init__(memory, size, index, has_event_idx, has_indirect, start)
        self._ids = list(range(size))
        self._free = size
        self._avail = self._used = self.state.next_avail
        # From here on the ring shows the lap before, used up; at a fresh start that is all zeros.
        used = 0 if self._avail & WRAP else AVAIL | USED
        for slot in range(size):
            lap = used if slot >= self._avail % WRAP else used ^ (AVAIL | USED)
            self.memory.write(self.state.desc + DESC.size * slot, DESC.pack(0, 0, 0, lap))

    @property
    def free(self) -> int:
        """How many descriptors are free."""
        return self._free

    def _part_bytes(self) -> tuple[int, int]:
        return 4, 4

    def _entry(self, buffer: Buffer, at: int, *, is_last: bool) -> bytes:
        return DESC.pack(buffer.gpa, buffer.size, 0, WRITE * buffer.is_writable)

    def _moved(self, position: int, slots: int) -> int:
        offset = position % WRAP + slots
        if offset < self.size:
            return position + slots
        return (offset - self.size) | (position & WRAP ^ WRAP)

    def _publish(self, request: Request, descriptors: Sequence[tuple[Buffer, int]]) -> None:
        buffer_id = self._ids.pop(0)
        self._requests[buffer_id] = request
        entries = []
        for at, (buffer, flags) in enumerate(descriptors):
            flags |= NEXT if at < len(descriptors) - 1 else 0
            flags |= AVAIL if self._avail & WRAP else USED
            slot = self._avail % WRAP
            entries.append((slot, DESC.pack(buffer.gpa, buffer.size, buffer_id, flags)))
            request.slots.append(slot)
            self._avail = self._moved(self._avail, 1)
        # The first one last: the device then sees the whole list or nothing.
        for slot, entry in reversed(entries):
            self.memory.write(self.state.desc + DESC.size * slot, entry)
        self._free -= len(descriptors)
        self._unkicked += len(descriptors)

    def _next_completed(self) -> tuple[Request, int] | None:
        at = self.state.desc + DESC.size * (self._used % WRAP)
        _, written, buffer_id, flags = DESC.unpack(self.memory.read(at, DESC.size))
        wrap = bool(self._used & WRAP)
        if bool(flags & USED) != wrap or bool(flags & AVAIL) != wrap:
            return None
        request = self._requests.pop(buffer_id)
        self._used = self._moved(self._used, len(request.slots))
        self._free += len(request.slots)
        self._ids.append(buffer_id)
        return request, written if flags & WRITE else 0

    def _has_completed(self) -> bool:
        flags = self._u16(self.state.desc + DESC.size * (self._used % WRAP) + 14)
        wrap = bool(self._used & WRAP)
        return bool(flags & USED) == wrap and bool(flags & AVAIL) == wrap

    def wants_kick(self) -> bool:
        """Whether the device wants a kick for what was added since this was asked last."""
        added, self._unkicked = self._unkicked, 0
        if not added:
            return False
        event, flags = struct.unpack("<HH", self.memory.read(self.state.device, 4))
        if flags != EVENTS_AT_POSITION:
            return bool(flags == EVENTS_ENABLED)
        distance: int = self._avail % WRAP - event % WRAP
        if (event ^ self._avail) & WRAP:
            distance += self.size
        return added > self.size or 0 < distance <= added

    def suppress(self) -> None:
        """Ask the device not to interrupt."""
        self._set_u16(self.state.driver + 2, EVENTS_DISABLED)

    def enable(self) -> bool:
        """Ask the device to interrupt for the next answer; True when there is one already."""
        if self.has_event_idx:
            self._set_u16(self.state.driver, self._used)
            self._set_u16(self.state.driver + 2, EVENTS_AT_POSITION)
        else:
            self._set_u16(self.state.driver + 2, EVENTS_ENABLED)
        return self._has_completed()
