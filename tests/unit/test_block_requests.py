"""Requests of a disk's driver, honest and not, over a real file."""

from __future__ import annotations

import os
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

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
    Disk,
    header,
    running_disk,
    segment,
)
from vmm.errors import GuestError

SIZE = 1 << 20
SECTORS = SIZE // SECTOR
PATTERN = bytes(range(256)) * 16


@pytest.fixture(params=["ring", "threads"])
def wants_ring(request: pytest.FixtureRequest) -> bool:
    """Both ways to do the I/O."""
    return bool(request.param == "ring")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image whose every sector says which one it is."""
    path = tmp_path / "disk.raw"
    path.write_bytes(b"".join(sector(at) for at in range(SECTORS)))
    return path


def content(image: Path) -> bytes:
    return image.read_bytes()


def sector(at: int) -> bytes:
    return struct.pack("<I", at) * (SECTOR // 4)


async def test_write_is_read_back_and_is_in_the_image(image: Path, wants_ring: bool) -> None:
    async with running_disk(image, wants_ring=wants_ring) as disk:
        written = await disk.driver.write(7, PATTERN)
        flushed = await disk.driver.flush()
        read = await disk.driver.read(6, 10)

    assert written == (OK, 1, b"")
    assert flushed == (OK, 1, b"")
    assert read == (OK, 10 * SECTOR + 1, sector(6) + PATTERN + sector(15))
    assert content(image)[7 * SECTOR : 15 * SECTOR] == PATTERN


@pytest.mark.parametrize("is_packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("has_event_idx", [False, True], ids=["flags", "event index"])
@pytest.mark.parametrize("depth", [1, 5, 64])
async def test_any_depth_and_ring_format_gives_every_answer(
    image: Path, depth: int, is_packed: bool, has_event_idx: bool
) -> None:
    async with running_disk(
        image, queue_sizes=(64,), is_packed=is_packed, has_event_idx=has_event_idx
    ) as disk:
        for start in range(0, 256, depth):
            wanted = range(start, min(start + depth, 256))
            tokens = [
                disk.driver.send([header(IN, at)], [SECTOR, 1], is_indirect=True) for at in wanted
            ]
            disk.driver.kick()
            for at, token in zip(wanted, tokens, strict=True):
                assert await disk.driver.answer(token) == (OK, SECTOR + 1, sector(at))
        assert disk.device.counters["read_ops"] == 256
        assert disk.driver.queue.in_flight == 0


async def test_queues_are_served_together(image: Path, wants_ring: bool) -> None:
    async with running_disk(image, queue_sizes=(16, 16, 16), wants_ring=wants_ring) as disk:
        tokens = [driver.send([header(IN, 9)], [SECTOR, 1]) for driver in disk.drivers]
        for driver in disk.drivers:
            driver.kick()
        for driver, token in zip(disk.drivers, tokens, strict=True):
            assert (await driver.answer(token)).data == sector(9)


async def test_header_and_data_may_be_cut_anywhere(image: Path, wants_ring: bool) -> None:
    whole = header(OUT, 3) + PATTERN
    cuts = (1, 7, 15, 17, 600, 601)
    pieces = [whole[a:b] for a, b in zip((0, *cuts), (*cuts, len(whole)), strict=True)]
    async with running_disk(image, wants_ring=wants_ring) as disk:
        written = await disk.driver.ask(pieces, is_indirect=True)
        rooms = [1, 2, 509, 511, 1, 1024, 2048, 1]
        read = await disk.driver.ask([b"\0" * 8, struct.pack("<Q", 3)], rooms, is_indirect=True)

    assert written.status == OK
    assert (read.status, read.written) == (OK, len(PATTERN) + 1)
    assert read.data == PATTERN


async def test_status_may_share_the_last_buffer_of_data(image: Path) -> None:
    async with running_disk(image) as disk:
        read = await disk.driver.ask([header(IN, 5)], [SECTOR + 1])

    assert read == (OK, SECTOR + 1, sector(5))


async def test_request_of_a_thousand_buffers_is_served(image: Path, wants_ring: bool) -> None:
    async with running_disk(image, wants_ring=wants_ring) as disk:
        read = await disk.driver.ask([header(IN, 0)], [SECTOR] * 1000 + [1], is_indirect=True)

    assert read.status == OK
    assert read.data == b"".join(map(sector, range(1000)))


async def test_long_request_takes_several_operations(tmp_path: Path, wants_ring: bool) -> None:
    path = tmp_path / "long.raw"
    content = os.urandom(6 << 20)
    path.write_bytes(content)
    async with running_disk(path, memory_bytes=32 << 20, wants_ring=wants_ring) as disk:
        read = await disk.driver.ask([header(IN, 0)], [5 << 20, 1 << 20, 1])

    assert read.status == OK
    assert read.data == content


async def test_id_is_the_serial_filled_up(image: Path) -> None:
    async with running_disk(image, serial="system") as disk:
        answer = await disk.driver.ask([header(GET_ID, 0)], [20, 1])
        short = await disk.driver.ask([header(GET_ID, 0)], [4, 1])

    assert answer == (OK, 21, b"system".ljust(20, b"\0"))
    assert short == (OK, 5, b"syst")


async def test_id_without_a_serial_comes_from_the_host_and_stays(image: Path) -> None:
    ids = []
    for _ in range(2):
        async with running_disk(image) as disk:
            ids.append((await disk.driver.ask([header(GET_ID, 0)], [20, 1])).data)

    assert ids[0] == ids[1]
    assert ids[0].strip(b"\0")


@pytest.mark.parametrize(("kind", "flags"), [(DISCARD, 0), (WRITE_ZEROES, 0), (WRITE_ZEROES, 1)])
async def test_ranges_read_as_zeros_afterwards(
    image: Path, kind: int, flags: int, wants_ring: bool
) -> None:
    async with running_disk(image, wants_ring=wants_ring) as disk:
        answer = await disk.driver.ask([header(kind, 0), segment(16, 8, flags)])
        read = await disk.driver.read(15, 10)

    assert answer == (OK, 1, b"")
    assert read.data == sector(15) + bytes(8 * SECTOR) + sector(24)
    assert os.stat(image).st_size == SIZE


async def test_discard_gives_room_back_to_the_host(image: Path) -> None:
    before = os.stat(image).st_blocks
    async with running_disk(image) as disk:
        await disk.driver.ask([header(DISCARD, 0), segment(0, SECTORS)])

    assert os.stat(image).st_blocks < before


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ([header(IN, SECTORS)], IOERR),
        ([header(IN, (1 << 64) - 1)], IOERR),
        ([header(IN, 1 << 55)], IOERR),
        ([header(OUT, SECTORS - 1), bytes(2 * SECTOR)], IOERR),
        ([header(OUT, (1 << 64) - 1), bytes(2 * SECTOR)], IOERR),
        ([header(OUT, 0), bytes(SECTOR - 1)], IOERR),
        ([header(OUT, 0), bytes(SECTOR), b"x"], IOERR),
        ([b""], IOERR),
        ([b"\0" * 15], IOERR),
        ([header(2, 0)], UNSUPP),
        ([header(7, 0)], UNSUPP),
        ([header(14, 0)], UNSUPP),
        ([header(0xFFFF_FFFF, 0)], UNSUPP),
        ([header(1 << 31, 0)], UNSUPP),
        ([header(DISCARD, 0)], IOERR),
        ([header(DISCARD, 0), segment(0, 1)[:15]], IOERR),
        ([header(DISCARD, 0), segment(0, 1) * 2], IOERR),
        ([header(DISCARD, 0), segment(0, 1, flags=1)], UNSUPP),
        ([header(WRITE_ZEROES, 0), segment(0, 1, flags=2)], UNSUPP),
        ([header(WRITE_ZEROES, 0), segment(SECTORS, 1)], IOERR),
        ([header(WRITE_ZEROES, 0), segment((1 << 64) - 1, 2)], IOERR),
        ([header(DISCARD, 0), segment(1, 0xFFFF_FFFF)], IOERR),
    ],
)
async def test_request_that_cannot_be_is_refused_and_changes_nothing(
    image: Path, request_: list[bytes], status: int
) -> None:
    before = content(image)
    room = [SECTOR, 1] if request_[0][:4] == bytes(4) else [1]
    async with running_disk(image) as disk:
        answer = await disk.driver.ask([part for part in request_ if part], room)
        after = await disk.driver.read(1)

    assert (answer.status, answer.written) == (status, 1)
    assert after == (OK, SECTOR + 1, sector(1))
    assert content(image) == before


@pytest.mark.parametrize("odd", [1, 511, 513])
async def test_read_of_a_part_of_a_sector_is_refused(image: Path, odd: int) -> None:
    async with running_disk(image) as disk:
        answer = await disk.driver.ask([header(IN, 0)], [odd, 1])

    assert answer == (IOERR, 1, answer.data)


@pytest.mark.parametrize("kind", [IN, OUT, WRITE_ZEROES, DISCARD])
async def test_request_for_nothing_succeeds(image: Path, kind: int) -> None:
    payload = [] if kind in (IN, OUT) else [segment(SECTORS, 0)]
    async with running_disk(image) as disk:
        answer = await disk.driver.ask([header(kind, SECTORS), *payload])

    assert answer == (OK, 1, b"")


async def test_request_without_room_for_a_status_is_given_back_unserved(image: Path) -> None:
    before = content(image)
    async with running_disk(image) as disk:
        answer = await disk.driver.ask([header(OUT, 0), PATTERN], [])
        after = await disk.driver.read(1)

    assert (answer.status, answer.written) == (UNANSWERED, 0)
    assert after.status == OK
    assert content(image) == before


async def break_the_ring(image: Path) -> None:
    async with running_disk(image) as disk:
        token = disk.driver.send([header(IN, 0)], [SECTOR, 1])
        # The descriptor of the header, moved to where there is no RAM.
        disk.driver.memory.write(disk.driver.ring.state.desc, struct.pack("<Q", 1 << 40))
        disk.driver.kick()
        await disk.driver.answer(token)


async def test_chain_outside_ram_breaks_the_queue(image: Path) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await break_the_ring(image)

    assert caught.group_contains(GuestError, match="not RAM", depth=None)


@pytest.mark.parametrize("kind", [OUT, WRITE_ZEROES, DISCARD])
async def test_read_only_disk_refuses_changes_and_is_flushed(image: Path, kind: int) -> None:
    before = content(image)
    payload = bytes(SECTOR) if kind == OUT else segment(4, 1)
    async with running_disk(image, read_only=True) as disk:
        refused = await disk.driver.ask([header(kind, 4), payload])
        read = await disk.driver.read(4)
        flushed = await disk.driver.flush()

    assert (refused.status, read.data, flushed.status) == (IOERR, sector(4), OK)
    assert content(image) == before


async def test_detected_raw_disk_refuses_changes_of_its_first_sector_only(image: Path) -> None:
    async with running_disk(image, is_detected=True) as disk:
        refused = [
            await disk.driver.write(0, PATTERN),
            await disk.driver.ask([header(WRITE_ZEROES, 0), segment(0, 2)]),
            await disk.driver.ask([header(DISCARD, 0), segment(0, 2)]),
        ]
        taken = await disk.driver.write(1, bytes(SECTOR))
        read = await disk.driver.read(0, 2)

    assert [answer.status for answer in refused] == [IOERR] * 3
    assert taken.status == OK
    assert read.data == sector(0) + bytes(SECTOR)


async def test_disk_that_is_not_sparse_has_no_discard(image: Path) -> None:
    async with running_disk(image, sparse=False) as disk:
        discarded = await disk.driver.ask([header(DISCARD, 0), segment(4, 1)])
        zeroed = await disk.driver.ask([header(WRITE_ZEROES, 0), segment(5, 1)])

    assert (discarded.status, zeroed.status) == (UNSUPP, OK)


@pytest.mark.parametrize(("sparse", "keeps"), [(True, False), (False, True)])
async def test_zeroing_that_may_unmap_keeps_the_room_of_a_disk_that_is_not_sparse(
    image: Path, sparse: bool, keeps: bool
) -> None:
    before = os.stat(image).st_blocks
    async with running_disk(image, sparse=sparse) as disk:
        answer = await disk.driver.ask([header(WRITE_ZEROES, 0), segment(0, SECTORS, 1)])

    assert answer.status == OK
    assert content(image) == bytes(SIZE)
    assert (os.stat(image).st_blocks >= before) == keeps


async def test_direct_disk_serves_buffers_that_are_not_aligned(
    image: Path, wants_ring: bool
) -> None:
    whole = header(OUT, 2) + PATTERN * 20
    async with running_disk(image, direct=True, wants_ring=wants_ring) as disk:
        # The data begins 16 bytes into a buffer, and is more than one bounce buffer holds.
        written = await disk.driver.ask([whole])
        tokens = [disk.driver.send([header(IN, 2)], [len(whole) - 16 + 1]) for _ in range(4)]
        tokens += [
            disk.driver.send([header(IN, at)], [7, SECTOR - 7, 1], is_indirect=True)
            for at in range(200, 240)
        ]
        disk.driver.kick()
        reads = [await disk.driver.answer(token) for token in tokens]

    assert written.status == OK
    assert all(read.data == whole[16:] for read in reads[:4])
    assert [read.data for read in reads[4:]] == [sector(at) for at in range(200, 240)]
    assert content(image)[2 * SECTOR :].startswith(whole[16:])


async def test_image_that_shrank_behind_the_disk_gives_errors_and_the_rest(
    image: Path, wants_ring: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_disk(image, wants_ring=wants_ring) as disk:
        os.truncate(image, SIZE // 2)
        lost = await disk.driver.read(SECTORS - 1)
        across = await disk.driver.read(SECTORS // 2 - 1, 2)
        kept = await disk.driver.read(0)

    assert (lost.status, across.status) == (IOERR, IOERR)
    assert kept.data == sector(0)
    assert "Input/output error" in caplog.text


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """Have the host refuse to make files longer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_host_that_refuses_a_write_gives_an_error_and_the_disk_lives(
    image: Path, wants_ring: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_disk(image, wants_ring=wants_ring) as disk:
        with file_size_limit(SIZE // 2):
            refused = await disk.driver.write(SECTORS - 8, bytes(8 * SECTOR))
            again = await disk.driver.write(SECTORS - 8, bytes(8 * SECTOR))
        taken = await disk.driver.write(SECTORS - 8, bytes(8 * SECTOR))
        counters = disk.device.counters

    assert (refused.status, again.status, taken.status) == (IOERR, IOERR, OK)
    assert (counters["write_ops"], counters["write_bytes"]) == (1, 8 * SECTOR)
    assert "File too large" in caplog.text


async def flushes(disk: Disk) -> list[int]:
    """Writes and a range, each of which is to be stable."""
    requests = (
        [header(OUT, 1), PATTERN],
        [header(WRITE_ZEROES, 0), segment(32, 1)],
        [header(FLUSH, 0)],
    )
    return [(await disk.driver.ask(request)).status for request in requests]


@pytest.mark.parametrize("writeback", [0, 1])
async def test_written_through_disk_answers_as_a_cached_one(
    image: Path, writeback: int, wants_ring: bool
) -> None:
    async with running_disk(image, wants_ring=wants_ring) as disk:
        disk.device.write_config(32, bytes([writeback]))

        assert await flushes(disk) == [OK, OK, OK]
        assert content(image)[SECTOR : SECTOR + len(PATTERN)] == PATTERN
