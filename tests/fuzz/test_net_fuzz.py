"""Fuzz target: a guest that writes anything to the rings of a network, at any moment.

Invariant: no input may raise anything but GuestError, and serving comes to an end. The rings' own
target (test_virtqueue_fuzz.py) shows that what a chain names is guest RAM.
"""

from __future__ import annotations

import os
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.errors import GuestError
from vmm.testing.memory import FakeMemory
from vmm.testing.packets import HEADER, PacketPair

RAM = 0x4000
"""All of it: rings and buffers are close, and a random address is often in it."""

WRITES = st.lists(st.tuples(st.integers(0, RAM - 1), st.binary(min_size=1, max_size=16)))
NEAR_RINGS = st.lists(st.tuples(st.integers(0, 0x400), st.binary(min_size=1, max_size=4)))
LENGTHS = st.lists(
    st.tuples(
        st.integers(0, 31).map(lambda entry: 16 * entry + 8),
        st.integers(0, 40).map(lambda length: length.to_bytes(4, "little")),
    )
)
"""Descriptors that stay what they were, but for their lengths."""


@settings(max_examples=400, deadline=None)
@given(
    rounds=st.lists(st.one_of(WRITES, NEAR_RINGS, LENGTHS), min_size=1, max_size=8),
    is_packed=st.booleans(),
    has_event_idx=st.booleans(),
    has_indirect=st.booleans(),
)
def test_engine_survives_any_guest(
    rounds: list[list[tuple[int, bytes]]], is_packed: bool, has_event_idx: bool, has_indirect: bool
) -> None:
    memory = FakeMemory((0, RAM))
    with PacketPair(
        8,
        is_packed=is_packed,
        has_event_idx=has_event_idx,
        has_indirect=has_indirect,
        memory=memory,
    ) as pair:
        pair.post(50, 50)
        pair.send(b"one", b"two")
        for writes in rounds:
            for at, data in writes:
                memory.write(at, data[: RAM - at])
            for queue in (pair.rx_queue, pair.tx_queue):
                os.eventfd_write(queue.kick_fd, 1)
            with suppress(BlockingIOError):
                pair.wire.send(HEADER + b"in")
            with suppress(GuestError):
                pair.engine.serve()
            with suppress(BlockingIOError):
                while True:
                    pair.wire.recv(1 << 17)
