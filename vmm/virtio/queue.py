"""The device's side of a virtqueue: what every queue can do, and the split ring in Python.

``vmm.kvm_cffi.Virtqueue`` does the same in C and is what a running guest needs: between telling the
driver a wish and looking at the ring once more there must be a full memory barrier, and Python has
none. The rings here are the reference it is tested against, and serve tests without a guest.

Nothing here trusts the guest: what is checked is what is used, every value is read once. A guest
that breaks the ring's rules gets GuestError from then on, until the device is reset.

Source: VIRTIO 1.2, sections 2.6 and 2.7.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple, Protocol

from vmm.errors import GuestError, InternalError
from vmm.virtio.chain import DESC, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, ChainBuilder

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.virtio.chain import Chain, RingMemory, ViewChain

WRAP = 1 << 15
"""In a packed position: the wrap counter, beside an offset of 15 bits."""


class QueueState(NamedTuple):
    """What a queue is made of, and what a snapshot keeps of it.

    ``desc``, ``driver`` and ``device`` are guest addresses of the ring's parts. ``next_avail`` and
    ``next_used`` are positions: free-running for a split ring, an offset with the wrap counter in
    bit 15 for a packed one. ``unsignalled`` counts ring slots used since the last decision on an
    interrupt. Chains in flight are not in it: finish them, or give them back, before saving.
    """

    index: int  # type: ignore[assignment]  # the queue's number, over tuple.index
    size: int
    desc: int
    driver: int
    device: int
    is_packed: bool
    has_event_idx: bool
    has_indirect: bool
    next_avail: int
    next_used: int
    unsignalled: int

    @classmethod
    def fresh(
        cls,
        index: int,
        size: int,
        desc: int,
        driver: int,
        device: int,
        *,
        is_packed: bool = False,
        has_event_idx: bool = False,
        has_indirect: bool = False,
    ) -> QueueState:
        """Describe a queue as a driver sets it up: nothing made available, nothing used."""
        start = WRAP if is_packed else 0
        features = (is_packed, has_event_idx, has_indirect)
        return cls(index, size, desc, driver, device, *features, start, start, 0)

    def moved_to(self, next_avail: int, next_used: int, unsignalled: int) -> QueueState:
        """The same queue at another position."""
        return self._replace(next_avail=next_avail, next_used=next_used, unsignalled=unsignalled)


class Queue(Protocol):
    """A virtqueue as a device sees it. One task owns it.

    A round of work: clear the kick, ``suppress``, ``pop`` until None, ``push``, ``signal`` once,
    ``enable``; when that says True there is more: pop again before waiting for ``kick_fd``. Every
    method but ``save`` raises GuestError (guest) when the guest broke the ring.
    """

    @property
    def index(self) -> int:
        """Which of the device's queues it is."""

    @property
    def size(self) -> int:
        """How many descriptors the ring holds."""

    @property
    def kick_fd(self) -> int:
        """The eventfd that the driver's kicks arrive on."""

    @property
    def in_flight(self) -> int:
        """How many ring slots hold chains that were popped and not pushed yet."""

    def pop(self) -> Chain | None:
        """Take the next chain, None when there is none."""

    def unpop(self, chain: Chain) -> None:
        """Give the chain popped last back, unread; several in reverse order."""

    def push(self, chain: Chain, written: int) -> None:
        """Complete a chain, ``written`` bytes of which were written."""

    def poll(self) -> bool:
        """Whether ``pop`` has something to give; costs little."""

    def suppress(self) -> None:
        """Ask the driver not to kick."""

    def enable(self) -> bool:
        """Ask the driver to kick for the next chain; True when there is one already."""

    def signal(self) -> bool:
        """Interrupt the driver if it wants that for what was pushed since the last call."""

    def save(self) -> QueueState:
        """Return what a queue can be made of that goes on here."""


SIZE_MAX = 32768
"""Ring slots, of either format."""

UNSIGNALLED_MAX = 1 << 16
"""Counting further makes no difference: the driver wants to hear of so many."""

U16 = struct.Struct("<H")
"""Read and written in one piece where the host is little-endian, as C would."""


class Ring(ABC):
    """What both formats share: chains in flight, breaches, interrupts.

    ``interrupt`` is called where the driver wants an interrupt.
    Raises: GuestError (guest) when the ring cannot be used as it is set up.
    """

    def __init__(
        self,
        memory: RingMemory,
        state: QueueState,
        *,
        kick_fd: int = -1,
        interrupt: Callable[[], None] | None = None,
    ) -> None:
        self.index = state.index
        self.size = state.size
        self.kick_fd = kick_fd
        self.in_flight = 0
        self._memory = memory
        self._state = state
        self._interrupt = interrupt
        self._breach: str | None = None
        self._flights: dict[int, tuple[int, int]] = {}
        self._next_avail = state.next_avail
        self._next_used = state.next_used
        self._unsignalled = min(state.unsignalled, UNSIGNALLED_MAX)

    def _broken(self, how: str) -> GuestError:
        """Break the queue for good; return the error to raise."""
        if self._breach is None:
            self._breach = f"Queue {self.index} is broken: {how}"
        return GuestError(self._breach)

    def _check(self) -> None:
        if self._breach is not None:
            raise GuestError(self._breach)

    def _part(self, gpa: int, size: int, alignment: int) -> memoryview:
        """Locate a part of the ring, ``size`` bytes long."""
        if gpa % alignment:
            raise self._broken(f"the part of the ring at {gpa:#x} is not aligned as it must be")
        part = self._memory.leading(gpa, size)
        if part is None or len(part) < size:
            raise self._broken(f"the part of the ring at {gpa:#x} does not lie in RAM")
        return part

    def _builder(self) -> ChainBuilder:
        has_indirect = self._state.has_indirect
        return ChainBuilder(self._memory, self._broken, has_indirect=has_indirect)

    def _check_head(self, head: int) -> None:
        """A head that is in flight would let the guest have one request completed twice."""
        if head in self._flights:
            raise self._broken(f"chain {head} is made available while it is in flight")

    def _flight(self, head: int) -> tuple[int, int]:
        """The slots of a chain in flight, and where the device was after it."""
        flight = self._flights.get(head)
        if flight is None:
            raise InternalError(f"Queue {self.index} has no chain {head} in flight; push it once")
        return flight

    def _land(self, head: int) -> None:
        self.in_flight -= self._flights.pop(head)[0]

    def pop(self) -> ViewChain | None:
        """Take the next chain, None when there is none."""
        self._check()
        taken = self._take()
        if taken is None:
            return None
        chain, slots = taken
        self._flights[chain.head] = slots, self._next_avail
        self.in_flight += slots
        return chain

    def unpop(self, chain: Chain) -> None:
        """Give the chain popped last back, unread; several in reverse order."""
        self._check()
        slots, position = self._flight(chain.head)
        if position != self._next_avail:
            raise InternalError(
                f"Queue {self.index}: chain {chain.head} is not the last one; give back that first"
            )
        self._land(chain.head)
        self._give_back(slots)

    def push(self, chain: Chain, written: int) -> None:
        """Complete a chain, ``written`` bytes of which were written."""
        self._check()
        slots, _ = self._flight(chain.head)
        self._land(chain.head)
        self._put(chain.head, written, slots)
        self._unsignalled = min(self._unsignalled + slots, UNSIGNALLED_MAX)

    def signal(self) -> bool:
        """Interrupt the driver if it wants that for what was pushed since the last call."""
        self._check()
        unsignalled, self._unsignalled = self._unsignalled, 0
        if unsignalled == 0 or not self._is_interrupt_wanted(unsignalled):
            return False
        if self._interrupt is not None:
            self._interrupt()
        return True

    def poll(self) -> bool:
        """Whether ``pop`` has something to give, if only an error; costs little."""
        return self._breach is not None or self._has_more()

    def suppress(self) -> None:
        """Ask the driver not to kick."""
        self._check()
        self._tell_suppressed()

    def enable(self) -> bool:
        """Ask the driver to kick for the next chain; True when there is one already."""
        self._check()
        self._tell_enabled()
        return self._has_more()

    def save(self) -> QueueState:
        """Return what a queue can be made of that goes on here."""
        return self._state.moved_to(self._next_avail, self._next_used, self._unsignalled)

    @abstractmethod
    def _take(self) -> tuple[ViewChain, int] | None:
        """Take the next chain and the ring slots it occupies."""

    @abstractmethod
    def _give_back(self, slots: int) -> None: ...

    @abstractmethod
    def _put(self, head: int, written: int, slots: int) -> None: ...

    @abstractmethod
    def _has_more(self) -> bool: ...

    @abstractmethod
    def _is_interrupt_wanted(self, unsignalled: int) -> bool: ...

    @abstractmethod
    def _tell_suppressed(self) -> None: ...

    @abstractmethod
    def _tell_enabled(self) -> None: ...


AVAIL_NO_INTERRUPT = 0x1
USED_NO_NOTIFY = 0x1
FLAGS = 0
INDEX = 2
ENTRIES = 4
"""Both rings of a split queue: flags, index, entries, then the other side's event index."""

USED = struct.Struct("<II")


class SplitQueue(Ring):
    """A table of descriptors, a ring of heads made available, a ring of heads used."""

    def __init__(
        self,
        memory: RingMemory,
        state: QueueState,
        *,
        kick_fd: int = -1,
        interrupt: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(memory, state, kick_fd=kick_fd, interrupt=interrupt)
        size = state.size
        if not 0 < size <= SIZE_MAX or size & (size - 1):
            raise self._broken(
                f"its size is {size}; it must be from 1 to {SIZE_MAX}, and a power of two if split"
            )
        event = 2 if state.has_event_idx else 0
        self._desc = self._part(state.desc, DESC.size * size, 16)
        self._avail = self._part(state.driver, ENTRIES + 2 * size + event, 2)
        self._used = self._part(state.device, ENTRIES + USED.size * size + event, 4)
        for position in (state.next_avail, state.next_used):
            if position > 0xFFFF:
                raise self._broken(f"its position is saved as {position:#x}, outside the ring")
        self._avail_seen = state.next_avail

    def _avail_index(self) -> int:
        index: int = U16.unpack_from(self._avail, INDEX)[0]
        return index

    def _take(self) -> tuple[ViewChain, int] | None:
        if self._avail_seen == self._next_avail:
            # The index is read when all that it announced before has been taken.
            index = self._avail_index()
            if (index - self._next_avail) % 0x10000 > self.size:
                raise self._broken(
                    f"the driver's index jumps to {index}, more than its {self.size} entries on"
                )
            self._avail_seen = index
            if index == self._next_avail:
                return None
        slot = self._next_avail % self.size
        head: int = U16.unpack_from(self._avail, ENTRIES + 2 * slot)[0]
        if head >= self.size:
            raise self._broken(f"chain {head} is not below the ring's size {self.size}")
        self._check_head(head)
        chain = self._walk(head)
        self._next_avail = (self._next_avail + 1) % 0x10000
        return chain, 1

    def _walk(self, head: int) -> ViewChain:
        builder = self._builder()
        table, entries = self._desc, self.size
        is_indirect = False
        at = head
        while True:
            if at >= entries:
                raise self._broken(f"a chain goes on at descriptor {at}, beyond its table")
            gpa, length, flags, following = DESC.unpack_from(table, DESC.size * at)
            if flags & DESC_INDIRECT:
                if is_indirect:
                    raise self._broken(f"the indirect table at {gpa:#x} is named in another one")
                if flags & DESC_NEXT:
                    raise self._broken(f"the indirect table at {gpa:#x} is linked with others")
                table, entries = builder.table(gpa, length), length // DESC.size
                is_indirect = True
                at = 0
                continue
            builder.add(gpa, length, is_writable=bool(flags & DESC_WRITE))
            if not flags & DESC_NEXT:
                return builder.finish(head)
            at = following

    def _give_back(self, slots: int) -> None:
        self._next_avail = (self._next_avail - slots) % 0x10000

    def _put(self, head: int, written: int, slots: int) -> None:
        slot = self._next_used % self.size
        USED.pack_into(self._used, ENTRIES + USED.size * slot, head, written)
        self._next_used = (self._next_used + slots) % 0x10000
        U16.pack_into(self._used, INDEX, self._next_used)

    def _has_more(self) -> bool:
        if self._avail_seen != self._next_avail:
            return True
        return self._avail_index() != self._next_avail

    def _is_interrupt_wanted(self, unsignalled: int) -> bool:
        if not self._state.has_event_idx:
            return not U16.unpack_from(self._avail, FLAGS)[0] & AVAIL_NO_INTERRUPT
        # It names the position whose filling it wants to hear of: one of the last few?
        event: int = U16.unpack_from(self._avail, ENTRIES + 2 * self.size)[0]
        return (self._next_used - event - 1) % 0x10000 < unsignalled

    def _tell_suppressed(self) -> None:
        # With event indexes the driver kicks once for the position it was told, then no more.
        if not self._state.has_event_idx:
            U16.pack_into(self._used, FLAGS, USED_NO_NOTIFY)

    def _tell_enabled(self) -> None:
        if self._state.has_event_idx:
            U16.pack_into(self._used, ENTRIES + USED.size * self.size, self._next_avail)
        else:
            U16.pack_into(self._used, FLAGS, 0)
