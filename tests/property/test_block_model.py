"""A disk and a bytearray agree on every sequence of reads, writes and ranges.

Requests that are in flight together touch different sectors, as a driver's do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.block_fixture import (
    DISCARD,
    FLUSH,
    IN,
    OK,
    OUT,
    SECTOR,
    WRITE_ZEROES,
    Answer,
    BlockDriver,
    header,
    running_disk,
    segment,
)

SECTORS = 64


class Step(NamedTuple):
    """One request; ``cut`` is how many bytes its first buffer of data has, at most."""

    kind: int
    sector: int
    sectors: int
    fill: int
    cut: int


steps = st.builds(
    Step,
    st.sampled_from([IN, OUT, OUT, FLUSH, DISCARD, WRITE_ZEROES]),
    st.integers(0, SECTORS - 1),
    st.integers(1, 12),
    st.integers(1, 255),
    st.sampled_from([1, 100, SECTOR, 4096, 1 << 20]),
)
batches = st.lists(st.lists(steps, min_size=1, max_size=8), min_size=1, max_size=12)


def apart(batch: list[Step]) -> Iterator[Step]:
    """The steps of a batch that touch no sector of an earlier one."""
    taken: set[int] = set()
    for step in batch:
        clipped = step._replace(sectors=min(step.sectors, SECTORS - step.sector))
        touched = set(range(clipped.sector, clipped.sector + clipped.sectors))
        if clipped.kind == FLUSH or not touched & taken:
            taken |= touched
            yield clipped


def send(driver: BlockDriver, step: Step) -> int:
    """Make a step's request."""
    size = step.sectors * SECTOR
    first = min(step.cut, size)
    sizes = [part for part in (first, size - first) if part]
    match step.kind:
        case kind if kind == IN:
            return driver.send([header(IN, step.sector)], [*sizes, 1], is_indirect=True)
        case kind if kind == OUT:
            data = [bytes([step.fill]) * part for part in sizes]
            return driver.send([header(OUT, step.sector), *data], is_indirect=True)
        case kind if kind == FLUSH:
            return driver.send([header(FLUSH, 0)])
        case kind:
            return driver.send([header(kind, 0), segment(step.sector, step.sectors)])


def apply(model: bytearray, step: Step, answer: Answer) -> None:
    """Do a step to the model, and compare."""
    assert answer.status == OK
    span = slice(step.sector * SECTOR, (step.sector + step.sectors) * SECTOR)
    size = step.sectors * SECTOR
    if step.kind == IN:
        assert answer.data == model[span]
        assert answer.written == size + 1
    elif step.kind == OUT:
        model[span] = bytes([step.fill]) * size
    elif step.kind != FLUSH:
        model[span] = bytes(size)


async def compare(
    wanted: list[list[Step]], *, wants_ring: bool, direct: bool, is_packed: bool
) -> None:
    model = bytearray(SECTORS * SECTOR)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "disk.raw"
        async with running_disk(
            path,
            size=len(model),
            queue_sizes=(32,),
            wants_ring=wants_ring,
            direct=direct,
            is_packed=is_packed,
        ) as disk:
            for batch in wanted:
                sent = [(step, send(disk.driver, step)) for step in apart(batch)]
                disk.driver.kick()
                for step, token in sent:
                    apply(model, step, await disk.driver.answer(token))
            assert disk.driver.queue.in_flight == 0
        assert content(path) == model


def content(path: Path) -> bytes:
    return path.read_bytes()


@pytest.mark.parametrize("is_packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
@pytest.mark.parametrize("wants_ring", [True, False], ids=["ring", "threads"])
def test_disk_is_a_bytearray(wants_ring: bool, direct: bool, is_packed: bool) -> None:
    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(batches)
    def holds(wanted: list[list[Step]]) -> None:
        async def main() -> None:
            await compare(wanted, wants_ring=wants_ring, direct=direct, is_packed=is_packed)

        trio.run(main)

    holds()
