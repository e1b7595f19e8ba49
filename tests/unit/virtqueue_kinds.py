"""The four queues of the tests: split and packed, in C and the reference, each with its driver."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from vmm.kvm_cffi import Virtqueue
from vmm.testing.driver import DESC, Driver, PackedDriver, SplitDriver
from vmm.testing.memory import FakeMemory
from vmm.virtio.packed import PackedQueue
from vmm.virtio.queue import Queue, QueueState, SplitQueue

REGIONS = ((0x1000, 0x10000), (0x11000, 0x1000), (0x10_0000, 0x8000))
"""The second follows the first in the guest's memory and not in the host's."""


@dataclass
class Kind:
    """One of the four queues, and the driver that goes with it."""

    is_packed: bool
    is_c: bool
    memory: FakeMemory

    def driver(
        self,
        size: int = 8,
        *,
        has_event_idx: bool = False,
        has_indirect: bool = True,
        start: int | None = None,
    ) -> Driver:
        return (PackedDriver if self.is_packed else SplitDriver)(
            self.memory,
            size,
            has_event_idx=has_event_idx,
            has_indirect=has_indirect,
            start=start,
        )

    def queue(self, state: QueueState) -> Queue:
        if self.is_c:
            return Virtqueue(self.memory.map(), state)
        return (PackedQueue if self.is_packed else SplitQueue)(self.memory, state)

    def offer(self, state: QueueState, *entries: tuple[int, int, int, int]) -> None:
        """Make a list of raw (address, bytes, flags, next or id) available, the queue's first."""
        for at, (gpa, size, flags, last) in enumerate(entries):
            fields = (last, flags | 0x80) if self.is_packed else (flags, last)
            self.memory.write(state.desc + DESC.size * at, DESC.pack(gpa, size, *fields))
        if not self.is_packed:
            self.memory.write(state.driver, struct.pack("<HHH", 0, 1, 0))


def made(name: str) -> Kind:
    """The kind of that name, such as "packed-c", with a memory of its own."""
    ring, language = name.split("-")
    return Kind(ring == "packed", language == "c", FakeMemory(*REGIONS))


all_kinds = pytest.mark.parametrize(
    "kind", ["split-c", "split-python", "packed-c", "packed-python"], indirect=True
)
split_kinds = pytest.mark.parametrize("kind", ["split-c", "split-python"], indirect=True)
packed_kinds = pytest.mark.parametrize("kind", ["packed-c", "packed-python"], indirect=True)


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> Kind:
    """The kind that the test's decorator asks for."""
    return made(request.param)


def answer_all(queue: Queue, transform: Callable[[bytes], bytes] = bytes) -> int:
    """Complete everything there is with what was read; return how many chains."""
    count = 0
    while (chain := queue.pop()) is not None:
        queue.push(chain, chain.write(transform(chain.read(1 << 16))))
        count += 1
    return count
