"""Fuzz target: a guest that writes anything to its rings, at any moment.

Invariant: no input may raise anything but GuestError, every view of a chain lies in guest RAM, and
a broken queue stays broken. It holds for the ring in C and for its reference in Python, also while
another process writes to the memory; without that process the two agree on what they see.
"""

from __future__ import annotations

import itertools
import os
import random
import struct
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.errors import GuestError
from vmm.kvm_cffi import GuestMemoryMap, Virtqueue, address_of
from vmm.testing.memory import FakeMemory
from vmm.virtio.chain import Chain
from vmm.virtio.packed import PackedQueue
from vmm.virtio.queue import WRAP, Queue, QueueState, SplitQueue

RAM = 0x1000
LONGEST_S = 60.0
"""How long two processes may take to meet often enough in one ring."""
"""All of it: rings, tables and buffers overlap, and a random address is often in it."""

DESC, DRIVER, DEVICE = 0x000, 0x200, 0x300
SIZES = (1, 2, 3, 4, 7, 8, 16, 32)

Make = Callable[[FakeMemory, QueueState], Queue]


def make_in_c(memory: FakeMemory, state: QueueState) -> Queue:
    return Virtqueue(GuestMemoryMap(memory.regions), state)


def make_in_python(memory: FakeMemory, state: QueueState) -> Queue:
    return PackedQueue(memory, state) if state.is_packed else SplitQueue(memory, state)


def state_from(choice: int) -> QueueState:
    """Any shape of queue; one byte decides."""
    is_packed = bool(choice & 1)
    size = SIZES[choice >> 4 & 7]
    return QueueState.fresh(
        0,
        size if is_packed else 1 << size.bit_length() - 1,
        DESC,
        DRIVER,
        DEVICE,
        is_packed=is_packed,
        has_event_idx=bool(choice & 2),
        has_indirect=bool(choice & 4),
    )


def views_of(memory: FakeMemory, chain: Chain) -> list[tuple[int, int]]:
    """Where in guest memory a chain's views are; fails for one that is not all RAM."""
    ((gpa, size, hva),) = memory.regions
    found = []
    for view in (*chain.readable, *chain.writable):
        start = address_of(view) - hva
        assert start >= 0
        assert start + len(view) <= size
        found.append((gpa + start, len(view)))
    assert chain.readable_bytes + chain.writable_bytes == sum(length for _, length in found)
    return found


def serve(memory: FakeMemory, queue: Queue, budget: int) -> list[object]:
    """One round of a device's work; returns what it saw."""
    seen: list[object] = []
    queue.suppress()
    taken: list[tuple[Chain, bytes]] = []
    while len(taken) < budget and (chain := queue.pop()) is not None:
        seen.append((chain.head, views_of(memory, chain)))
        taken.append((chain, chain.read(32)))
    if taken and budget % 3 == 0:
        queue.unpop(taken.pop()[0])
    for chain, data in reversed(taken):
        queue.push(chain, chain.write(data))
    seen += [queue.signal(), queue.enable(), queue.poll(), queue.save()]
    return seen


class Guest:
    """Turns bytes into what a guest might write: half sense, half nonsense."""

    def __init__(self, memory: FakeMemory, data: bytes) -> None:
        self.memory = memory
        self._data = data
        self._at = 0

    @property
    def is_done(self) -> bool:
        return self._at >= len(self._data)

    def byte(self) -> int:
        value = self._data[self._at] if self._at < len(self._data) else 0
        self._at += 1
        return value

    def act(self, state: QueueState) -> None:
        """Do one thing; ``state`` is where the device is."""
        (self.write_descriptor, self.write_descriptor, self.make_available, self.write_anything)[
            self.byte() % 4
        ](state)

    def write_descriptor(self, state: QueueState) -> None:
        slot = (state.next_avail % WRAP + self.byte() % 4) % state.size
        gpa = (self.byte() | self.byte() << 8) % (RAM + 0x40)
        length = self.byte()
        flags = self.byte() & (7, 4, 3, 3, 3, 2, 2, 0)[length % 8]
        link = self.byte() % (state.size + 1)
        length = 0xFFFF_FFFF if length == 255 else length & ~15 if flags & 4 else length
        if not state.is_packed:
            entry = struct.pack("<QIHH", gpa, length, flags, link)
        else:
            is_this_lap = slot >= state.next_avail % WRAP
            flags |= 0x80 if is_this_lap == bool(state.next_avail & WRAP) else 0x8000
            entry = struct.pack("<QIHH", gpa, length, link, flags)
        self.memory.write(DESC + 16 * slot, entry)

    def make_available(self, state: QueueState) -> None:
        if state.is_packed:
            return
        count = self.byte() % (state.size + 2)
        for n in range(min(count, 4)):
            slot = (state.next_avail + n) % state.size
            head = self.byte() % (state.size + self.byte() % 2)
            self.memory.write(DRIVER + 4 + 2 * slot, head.to_bytes(2, "little"))
        index = (state.next_avail + count) % 0x10000
        self.memory.write(DRIVER + 2, index.to_bytes(2, "little"))

    def write_anything(self, state: QueueState) -> None:
        gpa = (self.byte() | self.byte() << 8) % (DEVICE + 0x40)
        if state.is_packed or not DRIVER <= gpa < DRIVER + 4:
            self.memory.write(gpa, bytes((self.byte(), self.byte() & 0x83)))


def rounds(make: Make, data: bytes) -> Iterator[object]:
    """Let bytes decide what the guest does, and serve it again and again."""
    memory = FakeMemory((0, RAM))
    guest = Guest(memory, data)
    state = state_from(guest.byte())
    queue = make(memory, state)
    while not guest.is_done:
        for _ in range(guest.byte() % 8):
            guest.act(queue.save())
        try:
            yield serve(memory, queue, 1 + guest.byte() % 40)
        except GuestError as error:
            yield str(error)
            with pytest.raises(GuestError):
                queue.pop()
            queue = make(memory, queue.save())
    yield memory.contents()


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=400))
def test_rings_of_any_bytes_behave_the_same_in_c_and_in_python(data: bytes) -> None:
    assert list(rounds(make_in_c, data)) == list(rounds(make_in_python, data))


@pytest.mark.parametrize("seed", range(64))
def test_long_rides_behave_the_same_in_c_and_in_python(seed: int) -> None:
    data = random.Random(seed).randbytes(6000)

    in_c = list(rounds(make_in_c, data))

    assert in_c == list(rounds(make_in_python, data))
    assert any(isinstance(seen, list) and len(seen) > 4 for seen in in_c), "no chain ever came"


def scribble(memory: FakeMemory, stop: FakeMemory, end: float, is_packed: bool) -> None:
    """Be the guest's other processor: write to the rings until told to stop."""
    rng = random.Random(1)
    flags = (0, 1, 2, 4) if not is_packed else (0x80, 0x81, 0x82, 0x84, 0x8000, 0x8001, 0x8002)
    for turn in itertools.count():
        slot = DESC + 16 * rng.randrange(16)
        memory.write(slot, rng.randrange(0, RAM + 64, 16).to_bytes(8, "little"))
        memory.write(slot + 8, rng.choice((0, 16, 32, 100)).to_bytes(4, "little"))
        memory.write(
            slot + 12, rng.choice(flags if not is_packed else (0, 1, 2, 3)).to_bytes(2, "little")
        )
        memory.write(slot + 14, rng.choice(flags).to_bytes(2, "little"))
        if not is_packed:
            used = int.from_bytes(memory.read(DEVICE + 2, 2), "little")
            ahead = used + rng.randrange(17)
            memory.write(DRIVER + 4 + 2 * (turn % 16), rng.randrange(17).to_bytes(2, "little"))
            memory.write(DRIVER + 2, (ahead % 0x10000).to_bytes(2, "little"))
        if stop.read(0, 1) != b"\0" or time.monotonic() > end:
            break


@pytest.mark.parametrize("is_packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("make", [make_in_c, make_in_python], ids=["c", "python"])
def test_memory_that_changes_meanwhile_never_leads_out_of_it(make: Make, is_packed: bool) -> None:
    memory, stop = FakeMemory((0, RAM)), FakeMemory((0, 0x1000))
    state = QueueState.fresh(
        0, 16, DESC, DRIVER, DEVICE, is_packed=is_packed, has_event_idx=True, has_indirect=True
    )
    popped = breaches = turns = 0
    end = time.monotonic() + LONGEST_S
    guest = os.fork()
    if guest == 0:
        try:
            scribble(memory, stop, end, is_packed)
        finally:
            os._exit(0)
    try:
        queue = make(memory, state)
        # The other process has to run in between, however busy the host is.
        while (popped < 300 or breaches < 300) and time.monotonic() < end:
            turns += 1
            os.sched_yield()
            try:
                popped += len(serve(memory, queue, 1 + turns % 20)) - 4
            except GuestError:
                breaches += 1
                queue = make(memory, state)
                memory.write(DEVICE + 2, bytes(2))
    finally:
        stop.write(0, b"\1")
        os.waitpid(guest, 0)

    assert popped > 100, "next to nothing was made available: the test tested next to nothing"
    assert breaches > 100
