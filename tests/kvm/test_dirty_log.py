"""What changes in a machine's RAM, by its guest and by its devices, is in the dirty log."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.kvm.guests import programs
from tests.kvm.guests.image import RESULTS, write_kernel
from tests.kvm.guests.machines import Running, configure, running
from tests.unit.test_write_record import pages_of
from vmm.boot.layout import RamRange
from vmm.kvm_cffi import PageSet
from vmm.machine.dirty import _keep

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

PAGE = 4096


async def write_again(vm: Running) -> None:
    """Wait until the guest has written: it does before each full stop, so between two for sure."""
    for _ in range(2):
        await vm.debug.wait_for(b".", after=len(vm.debug.output))


async def test_pages_that_the_guest_writes_are_in_the_log_until_it_stands(tmp_path: Path) -> None:
    kernel = write_kernel(tmp_path, programs.COUNT_AND_TELL)
    async with running(configure(kernel)) as vm:
        machine = vm.machine
        with machine.watch_ram() as log:
            first = log.collect()
            await write_again(vm)
            second = log.collect()
            await write_again(vm)
            third = log.collect()
            await machine.pause()
            log.collect()
            machine.memory.write(5 * PAGE - 1, b"ab")
            machine.memory.discard(0x38_0000, 2 * PAGE)
            last = log.collect()
            await machine.resume()

        assert sum(len(each) for each in first) == machine.memory.size // PAGE
        assert pages_of(second) == pages_of(third) == {RESULTS}
        assert pages_of(last) == {4 * PAGE, 5 * PAGE, 0x38_0000, 0x38_1000}
        await vm.debug.wait_for(b".", after=len(vm.debug.output))


async def test_log_can_be_opened_again_and_begins_with_all(tmp_path: Path) -> None:
    kernel = write_kernel(tmp_path, programs.COUNT_AND_TELL)
    async with running(configure(kernel)) as vm:
        machine = vm.machine
        for _ in range(3):
            with machine.watch_ram() as log:
                first = await trio.to_thread.run_sync(log.collect)

                assert sum(len(each) for each in first) == machine.memory.size // PAGE


def test_page_of_a_block_that_is_not_plugged_is_kept_for_later() -> None:
    pages = PageSet(0, 16)
    pages.fill()

    rest = _keep(pages, [RamRange(8 * PAGE, 8 * PAGE)])

    assert pages_of([pages]) == {PAGE * page for page in range(8, 16)}
    assert pages_of([rest]) == {PAGE * page for page in range(8)}
