"""How a guest can break a ring, and what is said of it: in C and in the reference."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from tests.unit.virtqueue_kinds import Kind, all_kinds, kind, packed_kinds, split_kinds
from vmm.errors import GuestError
from vmm.testing.driver import DESC, INDIRECT, NEXT, WRITE
from vmm.testing.memory import FakeMemory
from vmm.virtio.queue import QueueState

__all__ = ["kind"]


@all_kinds
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "its size is 0"),
        ({"size": 32769}, "its size is 32769"),
        ({"desc": 0x1008}, "0x1008 is not aligned"),
        ({"driver": 0x2001}, "0x2001 is not aligned"),
        ({"device": 0x3002}, "0x3002 is not aligned"),
        ({"desc": 0x10FF0}, "0x10ff0 does not lie in RAM"),
        ({"driver": 0x20_0000}, "0x200000 does not lie in RAM"),
        ({"device": (1 << 64) - 4}, "0xfffffffffffffffc does not lie in RAM"),
        ({"next_avail": 0x1_0000}, "0x10000, outside the ring"),
    ],
)
def test_ring_that_cannot_be_used_is_refused(
    kind: Kind, change: dict[str, int], message: str
) -> None:
    state = kind.driver().state._replace(**change)  # type: ignore[arg-type]

    with pytest.raises(GuestError, match=message):
        kind.queue(state)


@split_kinds
def test_split_ring_of_odd_size_is_refused(kind: Kind) -> None:
    with pytest.raises(GuestError, match="its size is 6"):
        kind.queue(kind.driver().state._replace(size=6))


@packed_kinds
def test_packed_position_beyond_the_ring_is_refused(kind: Kind) -> None:
    with pytest.raises(GuestError, match="0x8008, outside the ring"):
        kind.queue(kind.driver().state._replace(next_used=0x8008))


Entries = tuple[tuple[int, int, int, int], ...]


@all_kinds
@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (((0xFFF, 1, 0, 0),), "address 0xfff, which is not RAM"),
        (((0x11FFF, 2, 0, 0),), "address 0x12000, which is not RAM"),
        ((((1 << 64) - 1, 2, 0, 0),), "address 0xffffffffffffffff, which is not RAM"),
        (((0x9000, 1, WRITE | NEXT, 1), (0x9100, 1, 0, 0)), "0x9100 follows a writable"),
        (((0x9000, 0, INDIRECT, 0),), "table has 0 bytes"),
        (((0x9000, 24, INDIRECT, 0),), "table has 24 bytes"),
        (((0x11FF0, 32, INDIRECT, 0),), "address 0x11ff0, which is not RAM"),
        (((0x9000, 16, INDIRECT | NEXT, 1), (0x9000, 1, 0, 0)), "0x9000 is linked with"),
    ],
)
def test_chain_that_breaks_the_rules_breaks_the_queue(
    kind: Kind, entries: Entries, message: str
) -> None:
    state = kind.driver().state
    queue = kind.queue(state)
    kind.offer(state, *entries)

    with pytest.raises(GuestError, match=message):
        queue.pop()

    for step in (queue.pop, queue.signal, queue.suppress, queue.enable):
        with pytest.raises(GuestError, match=message):
            step()
    assert queue.poll() is True


@all_kinds
def test_chain_of_too_many_bytes_is_refused(kind: Kind) -> None:
    """Four gigabytes of which all are RAM, by the same megabyte again and again."""
    memory = FakeMemory((0, 64 << 20))
    kind = replace(kind, memory=memory)
    state = kind.driver().state
    table = 0x10_0000
    for at in range(65):
        last = (0, 0) if kind.is_packed else (NEXT if at < 64 else 0, at + 1)
        memory.write(table + 16 * at, DESC.pack(0, 64 << 20, *last))
    kind.offer(state, (table, 16 * 64, INDIRECT, 0))

    with pytest.raises(GuestError, match="4294967296 bytes"):
        kind.queue(state).pop()


@all_kinds
def test_indirect_table_not_negotiated_is_refused(kind: Kind) -> None:
    state = kind.driver(has_indirect=False).state
    kind.offer(state, (0x9000, 16, INDIRECT, 0))

    with pytest.raises(GuestError, match="0x9000 was not negotiated"):
        kind.queue(state).pop()


@all_kinds
def test_chain_of_more_than_1024_descriptors_is_refused(kind: Kind) -> None:
    state = kind.driver().state
    for at in range(1025):
        last = (0, 0) if kind.is_packed else (NEXT, at + 1)
        kind.memory.write(0x10_0000 + 16 * at, DESC.pack(0x9000, 0, *last))
    kind.offer(state, (0x10_0000, 16 * 1025, INDIRECT, 0))

    with pytest.raises(GuestError, match="more than 1024 descriptors"):
        kind.queue(state).pop()


def offer_straddling_buffers(kind: Kind, state: QueueState, count: int) -> None:
    """A table of buffers that begin in one region and end in the next: two pieces each."""
    for at in range(count):
        is_last = at == count - 1
        last = (0, 0) if kind.is_packed else (0 if is_last else NEXT, at + 1)
        kind.memory.write(0x10_0000 + 16 * at, DESC.pack(0x10FFF, 2, *last))
    kind.offer(state, (0x10_0000, 16 * count, INDIRECT, 0))


@all_kinds
def test_chain_of_1024_pieces_is_taken(kind: Kind) -> None:
    state = kind.driver().state
    offer_straddling_buffers(kind, state, 512)

    chain = kind.queue(state).pop()

    assert chain is not None
    assert len(chain.readable) == 1024


@all_kinds
def test_chain_of_more_than_1024_pieces_is_refused(kind: Kind) -> None:
    state = kind.driver().state
    offer_straddling_buffers(kind, state, 513)

    with pytest.raises(GuestError, match="more than 1024 descriptors or pieces"):
        kind.queue(state).pop()


@split_kinds
def test_split_loop_ends(kind: Kind) -> None:
    state = kind.driver().state
    kind.offer(state, (0x9000, 1, NEXT, 1), (0x9000, 1, NEXT, 0))

    with pytest.raises(GuestError, match="more than 1024 descriptors"):
        kind.queue(state).pop()


@split_kinds
def test_split_loop_in_a_table_ends(kind: Kind) -> None:
    state = kind.driver().state
    kind.memory.write(0x10_0000, DESC.pack(0x9000, 0, NEXT, 0))
    kind.offer(state, (0x10_0000, 16, INDIRECT, 0))

    with pytest.raises(GuestError, match="more than 1024 descriptors"):
        kind.queue(state).pop()


@packed_kinds
def test_packed_list_over_the_whole_ring_and_on_is_refused(kind: Kind) -> None:
    state = kind.driver(2).state
    kind.offer(state, (0x9000, 1, NEXT, 0), (0x9000, 1, NEXT, 0))

    with pytest.raises(GuestError, match="3 descriptors are in flight in a ring of 2"):
        kind.queue(state).pop()


@split_kinds
def test_split_table_in_a_table_is_refused(kind: Kind) -> None:
    state = kind.driver().state
    kind.memory.write(0x10_0000, DESC.pack(0x10_0000, 16, INDIRECT, 0))
    kind.offer(state, (0x10_0000, 16, INDIRECT, 0))

    with pytest.raises(GuestError, match="0x100000 is named in another one"):
        kind.queue(state).pop()


@split_kinds
@pytest.mark.parametrize("head", [8, 0xFFFF])
def test_split_head_beyond_the_table_is_refused(kind: Kind, head: int) -> None:
    state = kind.driver().state
    kind.memory.write(state.driver, struct.pack("<HHH", 0, 1, head))

    with pytest.raises(GuestError, match=f"chain {head} is not below the ring's size 8"):
        kind.queue(state).pop()


@split_kinds
def test_split_link_beyond_the_table_is_refused(kind: Kind) -> None:
    state = kind.driver().state
    kind.offer(state, (0x9000, 1, NEXT, 8))

    with pytest.raises(GuestError, match="descriptor 8, beyond its table"):
        kind.queue(state).pop()


@split_kinds
def test_split_index_that_jumps_is_refused(kind: Kind) -> None:
    state = kind.driver().state
    queue = kind.queue(state)
    kind.memory.write(state.driver, struct.pack("<HH", 0, 9))

    with pytest.raises(GuestError, match="jumps to 9, more than its 8 entries on"):
        queue.pop()


@all_kinds
def test_head_that_is_in_flight_is_refused(kind: Kind) -> None:
    state = kind.driver().state
    queue = kind.queue(state)
    for at in range(2):
        last = (3, 0x80) if kind.is_packed else (0, 0)
        kind.memory.write(state.desc + 16 * at, DESC.pack(0x9000, 1, *last))
    if not kind.is_packed:
        kind.memory.write(state.driver, struct.pack("<HHHH", 0, 2, 0, 0))
    chain = queue.pop()
    assert chain is not None

    with pytest.raises(GuestError, match=f"chain {chain.head} is made available while it is in"):
        queue.pop()
