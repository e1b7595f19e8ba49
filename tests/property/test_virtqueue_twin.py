"""The ring in C and its reference in Python agree on everything that can be observed.

Both see the same driver, well-behaved or hostile, in a memory of their own; after every step the
two memories, and all that the two queues said, are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vmm.errors import GuestError
from vmm.kvm_cffi import Virtqueue, address_of
from vmm.testing.driver import (
    AVAIL,
    DESC,
    INDIRECT,
    NEXT,
    USED,
    WRITE,
    Driver,
    PackedDriver,
    SplitDriver,
)
from vmm.testing.memory import FakeMemory
from vmm.virtio.chain import Chain
from vmm.virtio.packed import PackedQueue
from vmm.virtio.queue import WRAP, Queue, QueueState, SplitQueue

T = TypeVar("T")

REGIONS = ((0x1000, 0x8000), (0x9000, 0x1000), (0x10_0000, 0x1000))
"""The second follows the first in the guest's memory and not in the host's."""

TABLE = 0x10_0000
"""Where a hostile driver has its indirect tables; the middle of the page is its buffers."""

RAM = st.one_of(st.integers(0x8F00, 0x90FF), st.integers(0x10_0800, 0x10_0F00))
NO_RAM = st.sampled_from((0, 0xFFF, 0xA000, 0x10_1000, (1 << 64) - 8))
U16 = st.one_of(st.integers(0, 9), st.sampled_from((0x7FFF, 0x8000, 0xFFFF)))


def mostly(usual: st.SearchStrategy[T], rare: st.SearchStrategy[T]) -> st.SearchStrategy[T]:
    """Draw the rare one in one case of forty."""
    return st.integers(0, 39).flatmap(lambda n: rare if n == 29 else usual)


class Hostile(NamedTuple):
    """A descriptor of a hostile driver; ``flags`` and ``link`` are there instead of proper ones."""

    gpa: int
    length: int
    is_writable: bool
    flags: int | None
    link: int | None


HOSTILE = st.builds(
    Hostile,
    gpa=mostly(RAM, NO_RAM),
    length=mostly(st.integers(0, 0x80), st.sampled_from((0x1001, 0xFFFF_FFFF))),
    is_writable=st.booleans(),
    flags=mostly(st.none(), st.integers(0, 7)),
    link=mostly(st.none(), U16),
)
OFFERS = st.lists(HOSTILE, min_size=1, max_size=4).flatmap(
    lambda offer: mostly(st.just(sorted(offer, key=lambda each: each.is_writable)), st.just(offer))
)


class Side:
    """One queue on one memory with one driver, and what it says in comparable form."""

    def __init__(self, make: Callable[[FakeMemory, QueueState], Queue], driver: Driver) -> None:
        self.memory = driver.memory
        self.driver = driver
        self._make = make
        self.queue = make(self.memory, driver.state)
        self.in_flight: list[Chain] = []

    def guest_addresses(self, views: tuple[memoryview, ...]) -> list[tuple[int, int]]:
        found = []
        for view in views:
            at = address_of(view)
            (gpa,) = (
                gpa + at - hva
                for gpa, size, hva in self.memory.regions
                if hva <= at and at + len(view) <= hva + size
            )
            found.append((gpa, len(view)))
        return found

    def pop(self) -> tuple[object, ...] | None:
        chain = self.queue.pop()
        if chain is None:
            return None
        self.in_flight.append(chain)
        return (
            chain.head,
            chain.readable_bytes,
            chain.writable_bytes,
            self.guest_addresses(chain.readable),
            self.guest_addresses(chain.writable),
            chain.read(64),
            chain.read(64),
        )

    def push(self, at: int, data: bytes, claimed: int | None) -> int:
        chain = self.in_flight.pop(at % len(self.in_flight))
        room = chain.write(data[:40]) + chain.write(data[40:])
        self.queue.push(chain, room if claimed is None else claimed)
        return room

    def unpop(self) -> None:
        self.queue.unpop(self.in_flight.pop())

    def restart(self) -> QueueState:
        """As a snapshot does, or a driver that resets its device and goes on where it was."""
        saved = self.queue.save()
        self.in_flight.clear()
        self.queue = self._make(self.memory, saved)
        return saved


def outcome(step: Callable[[], T]) -> T | GuestError:
    """What a step gives, or the guest's error."""
    try:
        return step()
    except GuestError as error:
        return error


def two_sides(
    is_packed: bool, size: int, has_event_idx: bool, has_indirect: bool, start: int | None
) -> tuple[Side, Side]:
    """The same queue in C and in Python."""

    def driver() -> Driver:
        return (PackedDriver if is_packed else SplitDriver)(
            FakeMemory(*REGIONS),
            size,
            has_event_idx=has_event_idx,
            has_indirect=has_indirect,
            start=start,
        )

    def in_c(memory: FakeMemory, state: QueueState) -> Queue:
        return Virtqueue(memory.map(), state)

    return Side(in_c, driver()), Side(PackedQueue if is_packed else SplitQueue, driver())


class Rings(RuleBasedStateMachine):
    """The machine that hypothesis steers."""

    @initialize(
        is_hostile=st.booleans(),
        is_packed=st.booleans(),
        size_log=st.integers(0, 3),
        odd=st.integers(0, 1),
        has_event_idx=st.booleans(),
        has_indirect=st.sampled_from((True, True, False)),
        start=st.one_of(st.none(), st.sampled_from((0xFFFE, 0xFFFF, 0x7FFF, 0x8000))),
    )
    def begin(
        self,
        is_hostile: bool,
        is_packed: bool,
        size_log: int,
        odd: int,
        has_event_idx: bool,
        has_indirect: bool,
        start: int | None,
    ) -> None:
        size = (1 << size_log) + (odd if is_packed else 0)
        if is_packed and start is not None:
            start = start & WRAP | (size - 1)
        self.is_hostile = is_hostile
        self.in_c, self.in_python = two_sides(is_packed, size, has_event_idx, has_indirect, start)
        self.popped_last = 0

    def both(self, step: Callable[[Side], T]) -> T | None:
        """Take a step on both sides; what they give is the same."""
        in_c = outcome(lambda: step(self.in_c))
        in_python = outcome(lambda: step(self.in_python))
        if not isinstance(in_c, GuestError):
            assert in_c == in_python
            return in_c
        assert repr(in_c) == repr(in_python)
        assert self.is_hostile, "a driver that keeps the rules broke the ring"
        # Broken for good; the next step finds the device reset.
        assert repr(outcome(self.in_c.queue.pop)) == repr(outcome(self.in_python.queue.pop))
        self.popped_last = 0
        self.in_c.restart()
        self.in_python.restart()
        return None

    def write(self, gpa: int, data: bytes) -> None:
        self.in_c.memory.write(gpa, data)
        self.in_python.memory.write(gpa, data)

    @precondition(lambda self: not self.is_hostile)
    @rule(
        readable=st.lists(st.binary(min_size=1, max_size=40), max_size=3),
        writable=st.lists(st.integers(1, 40), max_size=3),
        is_indirect=st.booleans(),
    )
    def add(self, readable: list[bytes], writable: list[int], is_indirect: bool) -> None:
        driver = self.in_c.driver
        is_indirect = is_indirect and driver.state.has_indirect
        needed = 1 if is_indirect else len(readable) + len(writable)
        if readable + writable and needed <= driver.free:
            self.both(lambda side: side.driver.add(readable, writable, is_indirect=is_indirect))

    @precondition(lambda self: self.is_hostile)
    @rule(offer=OFFERS, table_size=mostly(st.none(), st.sampled_from((0, 24, 1024 * 16 + 16))))
    def offer_table(self, offer: list[Hostile], table_size: int | None) -> None:
        """Make one descriptor available that names an indirect table."""
        size = DESC.size * len(offer) if table_size is None else table_size
        is_packed = self.in_c.driver.is_packed
        for at, entry in enumerate(self.entries(offer, list(range(1, len(offer) + 1)), 0)):
            self.write(TABLE + DESC.size * at, entry[:14] + bytes(2) if is_packed else entry)
        self.write_list([Hostile(TABLE, size, False, INDIRECT, None)])
        self.pop()

    @precondition(lambda self: self.is_hostile)
    @rule(offer=OFFERS, pops=st.booleans())
    def offer(self, offer: list[Hostile], pops: bool) -> None:
        """Make a list available where the device looks next, wherever that is."""
        self.write_list(offer)
        if pops:
            self.pop()

    def write_list(self, offer: list[Hostile]) -> None:
        state = self.in_c.queue.save()
        size = state.size
        at = state.next_avail % WRAP % size if state.is_packed else state.next_avail % size
        slots = [(at + n) % size for n in range(len(offer))]
        following = [*slots[1:], 0]
        mark = 0
        if state.is_packed:
            mark = AVAIL if state.next_avail & WRAP else USED
        for slot, entry in zip(slots, self.entries(offer, following, mark), strict=True):
            if state.is_packed and slot < at:
                flags = int.from_bytes(entry[14:], "little") ^ AVAIL ^ USED
                entry = entry[:14] + flags.to_bytes(2, "little")
            self.write(state.desc + DESC.size * slot, entry)
        if not state.is_packed:
            self.write(state.driver + 4 + 2 * at, at.to_bytes(2, "little"))
            available = (state.next_avail + 1) % 0x10000
            self.write(state.driver + 2, available.to_bytes(2, "little"))

    def entries(self, offer: list[Hostile], following: list[int], mark: int) -> list[bytes]:
        """Descriptors linked one to the next, but where they say otherwise."""
        is_packed = self.in_c.driver.is_packed
        made = []
        for n, (each, link) in enumerate(zip(offer, following, strict=True)):
            flags = WRITE * each.is_writable | (NEXT if n < len(offer) - 1 else 0)
            flags = (flags if each.flags is None else each.flags) | mark
            link = (n if is_packed else link) if each.link is None else each.link
            last = (link, flags) if is_packed else (flags, link)
            made.append(DESC.pack(each.gpa, each.length, *last))
        return made

    @precondition(lambda self: self.is_hostile)
    @rule(value=U16, part=st.sampled_from(("desc", "driver", "device")), at=st.integers(0, 24))
    def scribble(self, value: int, part: str, at: int) -> None:
        self.write(getattr(self.in_c.driver.state, part) + 2 * at, value.to_bytes(2, "little"))

    @rule()
    def pop(self) -> None:
        if self.both(Side.pop) is not None:
            self.popped_last += 1

    @precondition(lambda self: self.in_c.in_flight)
    @rule(at=st.integers(0, 9), data=st.binary(max_size=64), claimed=st.none() | st.integers(0, 9))
    def push(self, at: int, data: bytes, claimed: int | None) -> None:
        self.popped_last = 0
        self.both(lambda side: side.push(at, data, claimed))

    @precondition(lambda self: self.popped_last > 0)
    @rule()
    def unpop(self) -> None:
        self.popped_last -= 1
        self.both(Side.unpop)

    @rule(enables=st.booleans())
    def finish_round(self, enables: bool) -> None:
        self.both(lambda side: side.queue.signal())
        self.both(lambda side: side.queue.enable() if enables else side.queue.suppress())
        self.both(lambda side: side.queue.poll())

    @rule(enables=st.booleans())
    def turn_to_driver(self, enables: bool) -> None:
        if not self.is_hostile:
            self.both(lambda side: side.driver.collect())
        self.both(lambda side: side.driver.wants_kick())
        self.both(lambda side: side.driver.enable() if enables else side.driver.suppress())

    @precondition(lambda self: not self.in_c.in_flight)
    @rule()
    def save_and_restore(self) -> None:
        self.popped_last = 0
        self.both(Side.restart)

    @invariant()
    def agree(self) -> None:
        assert self.in_c.memory.contents() == self.in_python.memory.contents()
        assert self.in_c.queue.save() == self.in_python.queue.save()
        assert self.in_c.queue.in_flight == self.in_python.queue.in_flight


Rings.TestCase.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
TestRings = Rings.TestCase
