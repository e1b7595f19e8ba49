"""Persistent memory: where it is, flushes, what a driver may get wrong, and the end of a device."""

from __future__ import annotations

import errno
import struct
import threading
from collections.abc import AsyncIterator, Callable

import pytest
import trio

from vmm.errors import ConfigError
from vmm.testing.driver import Driver
from vmm.testing.virtio_pci import Bench, driven
from vmm.virtio import pmem
from vmm.virtio.pmem import Pmem
from vmm.virtio.spec import Feature, Status

MIB = 1 << 20
START, SIZE = 0x7F_FFC0_0000, 4 * MIB
FLUSH = struct.pack("<I", 0)
OK, EIO = struct.pack("<I", 0), struct.pack("<I", 1)


class File:
    """Counts its flushes; each may be made to wait, and to fail."""

    def __init__(self) -> None:
        self.flushes = 0
        self.error: OSError | None = None
        self.may_end = threading.Event()
        self.may_end.set()
        self.begun = threading.Event()

    def flush(self) -> None:
        self.begun.set()
        self.may_end.wait()
        self.flushes += 1
        if self.error is not None:
            raise self.error


@pytest.fixture
def file() -> File:
    return File()


@pytest.fixture
async def bench(file: File) -> AsyncIterator[Bench]:
    async with driven(Pmem("_pmem0", START, SIZE, file.flush)) as bench:
        try:
            yield bench
        finally:
            file.may_end.set()


async def answers(bench: Bench, queue: Driver, count: int) -> list[bytes]:
    """Kick, and collect so many answers."""
    found: list[bytes] = []
    bench.driver.kick(0)
    while len(found) < count:
        await bench.interrupt(1)
        found += [used.data for used in queue.collect()]
    return found


async def begun(file: File) -> None:
    """Wait until a thread flushes."""
    await trio.to_thread.run_sync(file.begun.wait)


async def test_pmem_has_one_queue_no_features_and_shows_its_place(bench: Bench) -> None:
    assert bench.transport.configuration.read(2, 2) == 0x1040 + 27
    rings = Feature.VERSION_1 | Feature.RING_PACKED | Feature.RING_RESET
    assert await bench.driver.offered() == rings
    assert len(bench.device.queue_sizes) == 1
    assert bench.device.read_config(0, 4096) == struct.pack("<QQ", START, SIZE)
    assert bench.device.resources == ({"MmioAddressRange": {"base": START, "size": SIZE}},)


async def test_flush_is_answered_after_the_file_was_flushed(bench: Bench, file: File) -> None:
    [queue] = await bench.driver.start()
    queue.add([FLUSH], [4])

    assert await answers(bench, queue, 1) == [OK]
    assert file.flushes == 1
    assert bench.device.counters == {"flushes": 1, "flush_errors": 0}


async def test_flushes_that_wait_together_share_one(bench: Bench, file: File) -> None:
    [queue] = await bench.driver.start()
    file.may_end.clear()
    queue.add([FLUSH], [4])
    bench.driver.kick(0)
    await begun(file)
    for _ in range(20):
        queue.add([FLUSH], [4])
    file.may_end.set()

    assert await answers(bench, queue, 21) == [OK] * 21
    assert file.flushes == 2


async def test_flush_that_fails_is_answered_with_an_error_and_the_device_goes_on(
    bench: Bench, file: File
) -> None:
    [queue] = await bench.driver.start()
    file.error = OSError(errno.ENOSPC, "No space left on device")
    queue.add([FLUSH], [4])
    assert await answers(bench, queue, 1) == [EIO]
    file.error = None
    queue.add([FLUSH], [4])

    assert await answers(bench, queue, 1) == [OK]
    assert bench.device.counters == {"flushes": 2, "flush_errors": 1}


@pytest.mark.parametrize("request_", [b"", b"\0\0\0", struct.pack("<I", 1), b"\xff" * 4])
async def test_request_of_another_kind_is_an_error_and_flushes_nothing(
    bench: Bench, file: File, request_: bytes
) -> None:
    [queue] = await bench.driver.start()
    queue.add([request_] if request_ else [], [4])

    assert await answers(bench, queue, 1) == [EIO]
    assert file.flushes == 0


@pytest.mark.parametrize("room", [[], [3]])
async def test_request_without_room_for_the_answer_breaks_the_device(
    bench: Bench, room: list[int]
) -> None:
    [queue] = await bench.driver.start()
    queue.add([FLUSH], room)

    bench.driver.kick(0)
    await bench.interrupt(0)

    assert bench.driver.status & Status.NEEDS_RESET


async def test_device_that_discards_writes_answers_without_a_file() -> None:
    async with driven(Pmem("_pmem0", START, SIZE, None)) as bench:
        [queue] = await bench.driver.start()
        queue.add([FLUSH], [4])

        assert await answers(bench, queue, 1) == [OK]


async def test_pause_waits_for_a_flush_and_it_is_done_again_after(bench: Bench, file: File) -> None:
    [queue] = await bench.driver.start()
    file.may_end.clear()
    queue.add([FLUSH], [4])
    bench.driver.kick(0)
    await begun(file)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.transport.sleep)
        await trio.testing.wait_all_tasks_blocked()
        assert file.flushes == 0
        file.may_end.set()
    assert file.flushes == 1
    assert not queue.collect()

    bench.transport.wake()
    await bench.interrupt(1)
    assert [used.data for used in queue.collect()] == [OK]


async def test_flush_that_never_ends_does_not_hold_the_end_up_for_ever(
    bench: Bench, file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pmem, "DRAIN_SECONDS", 0.01)
    [queue] = await bench.driver.start()
    file.may_end.clear()
    queue.add([FLUSH], [4])
    bench.driver.kick(0)
    await begun(file)

    with trio.fail_after(5):
        await bench.transport.sleep()

    assert not queue.collect()
    file.may_end.set()


def test_load_takes_the_same_memory_and_no_other() -> None:
    def make(start: int = START, size: int = SIZE) -> Pmem:
        return Pmem("_pmem0", start, size, None)

    make().load(make().save())
    others: list[Callable[[], Pmem]] = [lambda: make(start=0), lambda: make(size=2 * MIB)]
    for other in others:
        with pytest.raises(ConfigError, match=r"_pmem0 has (start|size) .* and it is"):
            other().load(make().save())
    with pytest.raises(ConfigError, match="None"):
        make().load({})
