"""What a queue does, in C and in the reference, split and packed: by example, not by comparison."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests.unit.virtqueue_kinds import Kind, all_kinds, answer_all, kind, packed_kinds, split_kinds
from vmm.errors import InternalError
from vmm.testing.driver import DESC, INDIRECT, NEXT, WRITE, SplitDriver, Used
from vmm.testing.memory import FakeMemory
from vmm.virtio.queue import SplitQueue

__all__ = ["kind"]


@all_kinds
def test_pop_of_empty_ring_is_none(kind: Kind) -> None:
    queue = kind.queue(kind.driver().state)

    assert queue.pop() is None
    assert queue.poll() is False


@all_kinds
def test_chain_shows_what_the_driver_wrote(kind: Kind) -> None:
    driver = kind.driver()
    queue = kind.queue(driver.state)
    driver.add([b"abc", b"defgh"], [2, 7])

    assert queue.poll() is True
    chain = queue.pop()

    assert chain is not None
    assert [bytes(piece) for piece in chain.readable] == [b"abc", b"defgh"]
    assert [len(piece) for piece in chain.writable] == [2, 7]
    assert (chain.readable_bytes, chain.writable_bytes) == (8, 9)
    assert (chain.read(4), chain.read(3), chain.read(9), chain.read(1)) == (
        b"abcd",
        b"efg",
        b"h",
        b"",
    )


@all_kinds
def test_answer_reaches_the_driver(kind: Kind) -> None:
    driver = kind.driver()
    queue = kind.queue(driver.state)
    token = driver.add([b"question"], [3, 30])

    chain = queue.pop()
    assert chain is not None
    assert chain.write(b"an") == 2
    assert chain.write(b"swer") == 4
    queue.push(chain, 6)

    assert driver.collect() == [Used(token, 6, b"answer")]
    assert queue.in_flight == 0


@all_kinds
def test_write_beyond_the_room_is_cut(kind: Kind) -> None:
    driver = kind.driver()
    queue = kind.queue(driver.state)
    driver.add([], [4, 2])

    chain = queue.pop()

    assert chain is not None
    assert chain.write(b"1234567") == 6
    assert chain.write(b"8") == 0


@all_kinds
def test_chains_may_be_completed_in_any_order(kind: Kind) -> None:
    driver = kind.driver()
    queue = kind.queue(driver.state)
    tokens = [driver.add([bytes([n])], [1]) for n in range(4)]
    chains = [chain for chain in (queue.pop() for _ in tokens) if chain is not None]

    for at in (2, 0, 3, 1):
        queue.push(chains[at], chains[at].write(chains[at].read(1)))

    assert [(used.token, used.data) for used in driver.collect()] == [
        (tokens[at], bytes([at])) for at in (2, 0, 3, 1)
    ]


@pytest.mark.parametrize("size", [1, 2, 256, 32768])
def test_ring_of_any_size_goes_around_many_times(size: int) -> None:
    for is_packed in (False, True):
        for is_c in (False, True):
            kind = Kind(is_packed, is_c, FakeMemory((0, 4 << 20)))
            start = (0x8000 | (size - 1)) if is_packed else 0xFFFF
            driver = kind.driver(size, start=start)
            queue = kind.queue(driver.state)

            answered = 0
            for turn in range(5):
                driver.add([b"%d" % turn], []) if size == 1 else driver.add([b"%d" % turn], [1])
                answered += answer_all(queue)
                driver.collect()

            assert answered == 5


@packed_kinds
@pytest.mark.parametrize("size", [3, 7, 100])
def test_packed_ring_may_have_any_size(kind: Kind, size: int) -> None:
    driver = kind.driver(size)
    queue = kind.queue(driver.state)

    for _ in range(3 * size):
        driver.add([b"a"], [1])
        assert answer_all(queue) == 1
        assert [used.data for used in driver.collect()] == [b"a"]


@all_kinds
def test_indirect_chain_takes_one_slot(kind: Kind) -> None:
    driver = kind.driver(1)
    queue = kind.queue(driver.state)
    driver.add([b"ab", b"cd"], [2, 2], is_indirect=True)

    assert answer_all(queue, bytes.upper) == 1

    assert [used.data for used in driver.collect()] == [b"ABCD"]


@all_kinds
def test_indirect_chain_may_be_longer_than_the_queue(kind: Kind) -> None:
    driver = kind.driver(1)
    queue = kind.queue(driver.state)
    driver.add([b"x"] * 1000, [1] * 24, is_indirect=True)

    chain = queue.pop()

    assert chain is not None
    assert (len(chain.readable), len(chain.writable)) == (1000, 24)


@split_kinds
def test_split_chain_may_end_in_a_table(kind: Kind) -> None:
    state = kind.driver().state
    kind.memory.write(0x10_0000, DESC.pack(0x9000, 5, WRITE, 0))
    kind.offer(state, (0x8000, 3, NEXT, 1), (0x10_0000, 16, INDIRECT | WRITE, 0))

    chain = kind.queue(state).pop()

    assert chain is not None
    assert (chain.readable_bytes, chain.writable_bytes) == (3, 5)


@packed_kinds
def test_packed_table_has_no_flags_but_the_direction(kind: Kind) -> None:
    state = kind.driver().state
    table = DESC.pack(0x9000, 5, 77, INDIRECT) + DESC.pack(0x9100, 6, 88, WRITE | NEXT | INDIRECT)
    kind.memory.write(0x10_0000, table)
    kind.offer(state, (0x10_0000, 32, INDIRECT, 4))

    chain = kind.queue(state).pop()

    assert chain is not None
    assert (chain.head, chain.readable_bytes, chain.writable_bytes) == (4, 5, 6)


@packed_kinds
def test_packed_buffer_id_is_the_last_descriptors_and_any_number(kind: Kind) -> None:
    state = kind.driver().state
    kind.offer(state, (0x9000, 1, NEXT, 1), (0x9000, 1, 0, 0xFFFF))
    queue = kind.queue(state)

    chain = queue.pop()
    assert chain is not None
    assert chain.head == 0xFFFF
    queue.push(chain, 0)

    assert DESC.unpack(kind.memory.read(state.desc, 16))[1:] == (0, 0xFFFF, 0x8080)


@all_kinds
def test_buffer_across_two_regions_is_two_pieces(kind: Kind) -> None:
    state = kind.driver().state
    kind.memory.write(0x10FF0, bytes(range(32)))
    kind.offer(state, (0x10FF0, 32, 0, 0))

    chain = kind.queue(state).pop()

    assert chain is not None
    assert [len(piece) for piece in chain.readable] == [16, 16]
    assert chain.read(32) == bytes(range(32))


@all_kinds
def test_buffer_without_bytes_has_no_address_and_no_piece(kind: Kind) -> None:
    state = kind.driver().state
    kind.offer(state, ((1 << 64) - 1, 0, NEXT, 1), (0x9000, 4, WRITE, 0))

    chain = kind.queue(state).pop()

    assert chain is not None
    assert chain.readable == ()
    assert chain.writable_bytes == 4


@all_kinds
def test_unpop_gives_the_chain_again(kind: Kind) -> None:
    size = 4
    start = (0x8000 | (size - 1)) if kind.is_packed else 0xFFFF
    driver = kind.driver(size, start=start)
    queue = kind.queue(driver.state)
    driver.add([b"1"], [1])
    driver.add([b"2"], [1])
    first, second = queue.pop(), queue.pop()
    assert first is not None
    assert second is not None

    queue.unpop(second)
    queue.unpop(first)

    assert queue.in_flight == 0
    assert answer_all(queue) == 2
    assert [used.data for used in driver.collect()] == [b"1", b"2"]


@all_kinds
def test_unpop_of_any_but_the_last_chain_is_refused(kind: Kind) -> None:
    driver = kind.driver()
    queue = kind.queue(driver.state)
    driver.add([b"1"], [])
    driver.add([b"2"], [])
    first, second = queue.pop(), queue.pop()
    assert first is not None
    assert second is not None

    with pytest.raises(InternalError, match="is not the last one"):
        queue.unpop(first)

    queue.unpop(second)
    assert queue.in_flight == 1


@all_kinds
def test_push_of_what_is_not_in_flight_is_refused(kind: Kind) -> None:
    driver = kind.driver()
    queue = kind.queue(driver.state)
    driver.add([b"1"], [1])
    chain = queue.pop()
    assert chain is not None
    queue.push(chain, 0)

    with pytest.raises(InternalError, match="in flight"):
        queue.push(chain, 0)
    with pytest.raises(InternalError, match="in flight"):
        queue.unpop(chain)


@all_kinds
def test_saved_queue_goes_on_where_it_was(kind: Kind) -> None:
    driver = kind.driver(2, has_event_idx=True)
    queue = kind.queue(driver.state)
    for _ in range(5):
        driver.add([b"a"], [1])
        answer_all(queue)
        driver.collect()
    driver.add([b"b"], [1])

    restored = kind.queue(queue.save())

    assert restored.signal() is queue.signal()
    assert answer_all(restored) == 1
    assert [used.data for used in driver.collect()] == [b"b"]


@all_kinds
def test_suppressed_driver_does_not_kick_until_enabled(kind: Kind) -> None:
    driver = kind.driver()
    queue = kind.queue(driver.state)
    queue.suppress()
    driver.add([b"1"], [1])
    assert driver.wants_kick() is False

    assert queue.enable() is True
    answer_all(queue)
    assert queue.enable() is False

    driver.add([b"2"], [1])
    assert driver.wants_kick() is True


@all_kinds
def test_driver_with_event_indexes_kicks_once_a_wish(kind: Kind) -> None:
    driver = kind.driver(has_event_idx=True)
    queue = kind.queue(driver.state)
    queue.enable()

    kicks = []
    for _ in range(3):
        driver.add([b"1"], [])
        kicks.append(driver.wants_kick())

    assert kicks == [True, False, False]


@all_kinds
def test_interrupt_is_sent_once_a_batch_if_wanted(kind: Kind) -> None:
    driver = kind.driver()
    queue = kind.queue(driver.state)
    assert queue.signal() is False

    driver.add([b"1"], [1])
    driver.add([b"2"], [1])
    answer_all(queue)

    assert queue.signal() is True
    assert queue.signal() is False


@all_kinds
def test_interrupt_that_the_driver_suppressed_is_not_sent(kind: Kind) -> None:
    driver = kind.driver()
    queue = kind.queue(driver.state)
    driver.suppress()
    driver.add([b"1"], [1])
    answer_all(queue)

    assert queue.signal() is False
    assert driver.enable() is True


def positions(kind: Kind) -> Iterator[int | None]:
    """Starts that make the next few entries wrap, and one that does not."""
    yield None
    yield from (0x8000 | 6, 6) if kind.is_packed else (0xFFFE, 0x7FFE)


@all_kinds
def test_event_index_asks_for_an_interrupt_at_its_position_only(kind: Kind) -> None:
    for start in positions(kind):
        driver = kind.driver(has_event_idx=True, start=start)
        queue = kind.queue(driver.state)
        at = driver.state.next_used
        # The driver wants to hear of the third answer from here.
        third = (at + 2) % 0x10000
        if kind.is_packed:
            third = at + 2 if at % 0x8000 + 2 < 8 else (at ^ 0x8000) + 2 - 8
            kind.memory.write(driver.state.driver, struct.pack("<HH", third, 2))
        else:
            kind.memory.write(driver.state.driver + 4 + 16, third.to_bytes(2, "little"))

        sent = []
        for _ in range(6):
            driver.add([b"1"], [])
            answer_all(queue)
            sent.append(queue.signal())
            driver.collect()

        assert sent == [False, False, True, False, False, False]


@all_kinds
def test_batch_that_passes_the_event_index_interrupts(kind: Kind) -> None:
    for start in positions(kind):
        driver = kind.driver(has_event_idx=True, start=start)
        queue = kind.queue(driver.state)
        driver.enable()

        for _ in range(5):
            driver.add([b"1"], [])
        answer_all(queue)

        assert queue.signal() is True


def test_interrupt_of_the_reference_is_called() -> None:
    memory, calls = FakeMemory(), []
    driver = SplitDriver(memory, 8)
    queue = SplitQueue(memory, driver.state, interrupt=lambda: calls.append("interrupt"))
    driver.add([b"1"], [])

    answer_all(queue)
    queue.signal()

    assert calls == ["interrupt"]
