"""Small devices on a real machine, put to work by guests that poll.

Stock kernels have no driver for the watchdog and the clock: these guests do.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.machines import (
    DEADLINE_S,
    RAM_BYTES,
    Events,
    SharedRam,
    configure,
    file_memory,
    owned,
    running,
)
from tests.kvm.guests.programs import HALT, POWER_OFF, say
from tests.kvm.guests.virtio import (
    BAR,
    BUFFER,
    descriptor,
    move_bar,
    set_up,
    submit_and_poll,
)
from vmm.config.vm import VmConfig
from vmm.virtio.pci_transport import DEVICE

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

DEVICE_SLOT = 2
"""The entropy device comes first."""
REQUEST = 0x21_4000
GIVEN = 0x30_0000
NEXT, WRITE = 1, 2
READ_CLOCK = 1
PAGE = 4096


@pytest.fixture
def ram(tmp_path: Path) -> Iterator[SharedRam]:
    shared = SharedRam(tmp_path)
    yield shared
    shared.close()


def machine(tmp_path: Path, ram: SharedRam, program: str, **sections: object) -> VmConfig:
    kernel = write_kernel(tmp_path, program)
    return configure(kernel, memory=file_memory(ram.path), **sections)


async def test_clock_tells_the_guest_the_host_s_time(tmp_path: Path, ram: SharedRam) -> None:
    program = f"""
        {move_bar(DEVICE_SLOT)}{set_up()}
        movw ${READ_CLOCK}, {REQUEST:#x}
        {descriptor(0, REQUEST, 16, NEXT, 1)}{descriptor(1, BUFFER, 16, WRITE)}
        {submit_and_poll()}{say(".")}{HALT}
    """
    before = time.time_ns()

    async with running(machine(tmp_path, ram, program, rtc={})) as vm:
        await vm.debug.wait_for(b".")

    assert ram.word(BUFFER) == 0
    assert before <= ram.word(BUFFER + 8) | ram.word(BUFFER + 12) << 32 <= time.time_ns()


async def test_guest_that_pings_the_watchdog_once_is_reset(
    tmp_path: Path, ram: SharedRam, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmm.virtio.watchdog.TIMEOUT_S", 0.2)
    program = f"""
        {move_bar(DEVICE_SLOT)}{set_up()}
        {descriptor(0, BUFFER, 1, WRITE)}
        {submit_and_poll()}{say(".")}{HALT}
    """

    async with running(machine(tmp_path, ram, program, watchdog=True)) as vm:
        await vm.debug.wait_for(b".")
        assert ram.word(BUFFER) == 1
        with trio.fail_after(DEADLINE_S):
            await vm.wishes.reset.wait()


async def test_watchdog_waits_while_the_machine_is_paused(
    tmp_path: Path, ram: SharedRam, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmm.virtio.watchdog.TIMEOUT_S", 0.5)
    program = f"""
        {move_bar(DEVICE_SLOT)}{set_up()}
        {descriptor(0, BUFFER, 1, WRITE)}
        {submit_and_poll()}{say(".")}{HALT}
    """

    async with running(machine(tmp_path, ram, program, watchdog=True)) as vm:
        await vm.debug.wait_for(b".")
        await vm.machine.pause()
        with trio.move_on_after(0.8) as patience:
            await vm.wishes.reset.wait()
        assert patience.cancelled_caught
        await vm.machine.resume()
        with trio.fail_after(DEADLINE_S):
            await vm.wishes.reset.wait()


async def test_page_in_the_balloon_is_given_to_the_host(tmp_path: Path, ram: SharedRam) -> None:
    program = f"""
        movl $0x12345678, {GIVEN:#x}
        movl $0x12345678, {GIVEN + PAGE:#x}
        {move_bar(DEVICE_SLOT)}{set_up()}
        movl ${GIVEN // PAGE}, {REQUEST:#x}
        {descriptor(0, REQUEST, 4, 0)}
        {submit_and_poll()}
        movl $1, {BAR + DEVICE + 4:#x}
        mov {GIVEN:#x}, %eax
        mov %eax, {BUFFER:#x}
        {say(".")}{HALT}
    """

    async with running(machine(tmp_path, ram, program, balloon={"size": PAGE})) as vm:
        assert vm.machine.memory_actual_size == RAM_BYTES
        await vm.debug.wait_for(b".")
        assert vm.machine.memory_actual_size == RAM_BYTES - PAGE

    assert ram.word(BUFFER) == 0
    assert ram.word(GIVEN + PAGE) == 0x1234_5678


async def test_panic_that_the_guest_reports_is_an_event(tmp_path: Path, ram: SharedRam) -> None:
    program = f"""
        mov ${0x8000_0000 | DEVICE_SLOT << 11 | 0x10:#x}, %eax; mov $0xcf8, %dx; out %eax, %dx
        mov $0xcfc, %dx; in %dx, %eax
        and $0xfffffff0, %eax
        mov (%eax), %bl; mov %bl, {BUFFER:#x}
        movb $1, (%eax)
        {say(".")}{HALT}
    """
    events = Events()

    async with running(machine(tmp_path, ram, program, pvpanic=True), events) as vm:
        await vm.debug.wait_for(b".")
        node = vm.machine.device_tree["__pvpanic"]

    assert ram.word(BUFFER) == 3
    assert events.names == ["panic"]
    assert node["pci_bdf"] == f"0000:00:{DEVICE_SLOT:02x}.0"


async def test_console_prints_what_a_guest_without_a_driver_cries(tmp_path: Path) -> None:
    printed = tmp_path / "printed"
    cries = "".join(f"movl ${byte}, {BAR + DEVICE + 8:#x};" for byte in b"Oops")
    program = f"{move_bar(1)}{cries}{POWER_OFF}"
    console = {"mode": "File", "file": str(printed)}

    async with owned(configure(write_kernel(tmp_path, program), console=console)) as vmm:
        await vmm.wait_until_ended()

    assert printed.read_bytes() == b"Oops"
