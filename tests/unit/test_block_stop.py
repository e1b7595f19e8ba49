"""Stopping a disk: what is in flight ends, nothing is lost, and the driver goes on later."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import trio

from tests.unit.block_fixture import (
    IN,
    OK,
    SECTOR,
    BlockDriver,
    block_device,
    drivers_of,
    header,
    make_image,
    serving,
)
from vmm.errors import HostError
from vmm.kvm_cffi.block import BlockEngine, DiskAbility, DiskHandle
from vmm.virtio.block_service import DRAIN_SECONDS, serve_disk

SIZE = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of zeros."""
    path = tmp_path / "disk.raw"
    make_image(path, SIZE)
    return path


class HeldEngine(BlockEngine):
    """An engine whose storage answers when it is told to."""

    release: threading.Event
    performed = 0

    def perform(self, request: int) -> int:
        self.release.wait(30)
        self.performed += 1
        return super().perform(request)


@pytest.mark.parametrize("wants_ring", [True, False], ids=["ring", "threads"])
@pytest.mark.parametrize("depth", [1, 40])
async def test_stopped_disk_has_answered_what_it_took_and_goes_on_when_started_again(
    image: Path, wants_ring: bool, depth: int
) -> None:
    with (
        block_device(image, direct=True, wants_ring=wants_ring) as device,
        drivers_of(device) as drivers,
    ):
        (driver,) = drivers
        for _ in range(10):
            tokens = [driver.send([header(IN, 0)], [SECTOR, 1]) for _ in range(depth)]
            async with serving(device, drivers):
                driver.kick()
                await trio.lowlevel.checkpoint()
            assert driver.queue.in_flight == 0

            async with serving(device, drivers):
                for token in tokens:
                    assert (await driver.answer(token)).status == OK


async def test_stop_waits_for_storage_and_completes_what_it_took(image: Path) -> None:
    with block_device(image) as device, drivers_of(device) as drivers:
        engine, handle = held_engine(image, drivers[0])
        with engine:
            tokens = [drivers[0].send([header(IN, at)], [SECTOR, 1]) for at in range(20)]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_disk, engine, lambda: None)
                await trio.testing.wait_all_tasks_blocked()
                assert engine.in_flight == 20
                nursery.cancel_scope.cancel()
                nursery.start_soon(release_later, engine)

            assert engine.in_flight == 0
            assert engine.performed == 20
            assert drivers[0].queue.in_flight == 0
            drivers[0].collect()
            assert [(await drivers[0].answer(token)).status for token in tokens] == [OK] * 20
            assert handle.count().reads.ops == 20


async def test_storage_that_never_answers_ends_the_stop_after_its_deadline(
    image: Path, autojump_clock: trio.testing.MockClock
) -> None:
    with block_device(image) as device, drivers_of(device) as drivers:
        engine, _ = held_engine(image, drivers[0])
        with engine:
            drivers[0].send([header(IN, 0)], [SECTOR, 1])
            start = trio.current_time()
            with pytest.raises(ExceptionGroup) as caught:
                await serve_and_cancel(engine)
            seconds = trio.current_time() - start
        engine.release.set()

    assert caught.group_contains(HostError, match="storage has not answered", depth=None)
    assert seconds == pytest.approx(DRAIN_SECONDS)


def held_engine(image: Path, driver: BlockDriver) -> tuple[HeldEngine, DiskHandle]:
    """An engine of its own over an image, whose requests wait until ``release`` is set."""
    fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    abilities = DiskAbility.WRITE
    disk = DiskHandle(fd, SIZE // SECTOR, abilities, alignment=1, serial=b"")
    engine = HeldEngine(disk, [driver.queue])
    engine.release = threading.Event()
    return engine, disk


async def serve_and_cancel(engine: HeldEngine) -> None:
    """Serve until nothing moves, then stop."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_disk, engine, lambda: None)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def release_later(engine: HeldEngine) -> None:
    """Let the storage answer once everybody waits for it."""
    with trio.CancelScope(shield=True):
        await trio.testing.wait_all_tasks_blocked()
        engine.release.set()
