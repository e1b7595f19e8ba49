"""Chains of any content: each is answered, none changes what it may not, nothing but GuestError.

The first sector of a disk whose format was detected never changes, nor does a read-only disk.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.block_fixture import (
    DISCARD,
    FLUSH,
    GET_ID,
    IN,
    IOERR,
    OK,
    OUT,
    SECTOR,
    UNANSWERED,
    UNSUPP,
    WRITE_ZEROES,
    header,
    running_disk,
    segment,
)

SECTORS = 32
CONTENT = os.urandom(SECTORS * SECTOR)

numbers = st.one_of(
    st.integers(0, SECTORS + 1),
    st.sampled_from([(1 << 64) - 1, 1 << 63, (1 << 55) - 1, 1 << 32]),
    st.integers(0, (1 << 64) - 1),
)
kinds = st.one_of(
    st.sampled_from([IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES]),
    st.integers(0, (1 << 32) - 1),
)
payloads = st.one_of(
    st.binary(max_size=40),
    st.builds(bytes, st.integers(0, 3 * SECTOR)),
    st.builds(segment, numbers, st.integers(0, (1 << 32) - 1), st.integers(0, 3)),
)
requests = st.builds(
    lambda head, cut, payload, cuts, room: (split(head[:cut] + payload, cuts), room),
    st.builds(header, kinds, numbers),
    st.sampled_from([16, 16, 16, 16, 15, 0]),
    payloads,
    st.lists(st.integers(1, 600), max_size=4),
    st.lists(st.one_of(st.sampled_from([1, 20, SECTOR]), st.integers(1, 1100)), max_size=4),
)


def split(whole: bytes, cuts: list[int]) -> list[bytes]:
    """Cut bytes into the pieces of some lengths and the rest; none is empty."""
    pieces = []
    for cut in cuts:
        pieces.append(whole[:cut])
        whole = whole[cut:]
    return [piece for piece in (*pieces, whole) if piece]


async def try_out(
    wanted: list[tuple[list[bytes], list[int]]], *, read_only: bool, wants_ring: bool
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "disk.raw"
        write(path, CONTENT)
        async with running_disk(
            path,
            queue_sizes=(64,),
            read_only=read_only,
            is_detected=True,
            wants_ring=wants_ring,
        ) as disk:
            for readable, room in wanted:
                if not readable and not room:
                    continue
                answer = await disk.driver.ask(readable, room, is_indirect=True)
                if room:
                    assert answer.status in (OK, IOERR, UNSUPP)
                    assert 1 <= answer.written <= sum(room)
                else:
                    assert (answer.status, answer.written) == (UNANSWERED, 0)
            assert disk.driver.queue.in_flight == 0
            assert (await disk.driver.read(0)).data == CONTENT[:SECTOR]
        after = read(path)
        assert after[:SECTOR] == CONTENT[:SECTOR]
        assert len(after) == len(CONTENT)
        assert not read_only or after == CONTENT


def read(path: Path) -> bytes:
    return path.read_bytes()


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@pytest.mark.parametrize("read_only", [False, True], ids=["writable", "read-only"])
@pytest.mark.parametrize("wants_ring", [True, False], ids=["ring", "threads"])
def test_any_chain_is_answered(read_only: bool, wants_ring: bool) -> None:
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(requests, min_size=1, max_size=12))
    def holds(wanted: list[tuple[list[bytes], list[int]]]) -> None:
        async def main() -> None:
            await try_out(wanted, read_only=read_only, wants_ring=wants_ring)

        trio.run(main)

    holds()
