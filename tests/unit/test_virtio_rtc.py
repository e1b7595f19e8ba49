"""The clock: every request, and those that are none."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator

import pytest
import trio

from vmm.testing.virtio_pci import Bench, driven
from vmm.virtio.rtc import Rtc
from vmm.virtio.spec import Feature, Status

NOW = 1_700_000_000_123_456_789
OK, EOPNOTSUPP, ENODEV, EINVAL = 0, 2, 3, 4
READ, READ_CROSS, CFG, CLOCK_CAP, CROSS_CAP, READ_ALARM = 1, 2, 0x1000, 0x1001, 0x1002, 0x1003


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with driven(Rtc("__rtc", lambda: NOW)) as bench:
        yield bench


def request(kind: int, clock: int | None = None) -> bytes:
    head = struct.pack("<H6x", kind)
    return head if clock is None else head + struct.pack("<H6x", clock)


def head(status: int) -> bytes:
    return bytes((status,)) + bytes(7)


async def answer(bench: Bench, message: bytes, room: int = 64) -> bytes:
    [queue] = await bench.driver.start()
    queue.add([message], [room])
    bench.driver.kick(0)
    await trio.testing.wait_all_tasks_blocked()
    [used] = queue.collect()
    assert used.written == len(used.data)
    return used.data


async def test_clock_has_one_queue_and_no_features_of_its_own(bench: Bench) -> None:
    assert bench.transport.configuration.read(2, 2) == 0x1040 + 17
    rings = Feature.VERSION_1 | Feature.RING_PACKED | Feature.RING_RESET
    assert await bench.driver.offered() == rings
    assert bench.device.queue_sizes == (256,)
    assert bench.device.read_config(0, 4096) == b""


async def test_read_gives_nanoseconds_since_the_epoch(bench: Bench) -> None:
    assert await answer(bench, request(READ, 0)) == head(OK) + struct.pack("<Q", NOW)


async def test_cfg_says_that_there_is_one_clock(bench: Bench) -> None:
    assert await answer(bench, request(CFG)) == head(OK) + bytes((1, 0)) + bytes(6)


async def test_clock_cap_says_utc_that_may_be_smeared(bench: Bench) -> None:
    assert await answer(bench, request(CLOCK_CAP, 0)) == head(OK) + bytes((4, 0, 0)) + bytes(5)


async def test_cross_cap_says_that_there_is_no_cross_timestamp(bench: Bench) -> None:
    assert await answer(bench, request(CROSS_CAP, 0)) == head(OK) + bytes(8)


@pytest.mark.parametrize("kind", [READ, CLOCK_CAP, CROSS_CAP])
@pytest.mark.parametrize("clock", [1, 0xFFFF])
async def test_other_clocks_do_not_exist(bench: Bench, kind: int, clock: int) -> None:
    assert await answer(bench, request(kind, clock)) == head(ENODEV)


@pytest.mark.parametrize("kind", [0, READ_CROSS, READ_ALARM, 0xFFFF])
async def test_other_requests_are_not_supported(bench: Bench, kind: int) -> None:
    assert await answer(bench, request(kind, 0)) == head(EOPNOTSUPP)


@pytest.mark.parametrize("message", [b"\x01", request(READ)[:7], request(READ), bytes(1)])
async def test_request_that_is_too_short_is_invalid(bench: Bench, message: bytes) -> None:
    assert await answer(bench, message) == head(EINVAL)


async def test_answer_that_does_not_fit_is_only_a_status(bench: Bench) -> None:
    assert await answer(bench, request(READ, 0), room=15) == head(EINVAL)


async def test_request_without_room_for_a_status_breaks_the_device(bench: Bench) -> None:
    [queue] = await bench.driver.start()
    queue.add([request(READ, 0)], [7])

    bench.driver.kick(0)
    await bench.interrupt(0)

    assert bench.driver.status & Status.NEEDS_RESET
