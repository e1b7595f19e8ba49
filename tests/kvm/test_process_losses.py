"""What a VMM writes to may fail at any time: it says so where it can, and goes on serving."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.kvm.guests import programs
from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.processes import (
    SECONDS,
    SMALL,
    guest_arguments,
    machine,
    run_to_its_end,
    running,
    short_folder,
)
from tests.kvm.guests.programs import POWER_OFF, RESET_BY, SERIAL_PORT, say
from vmm.testing.console import GuestConsole
from vmm.testing.process import VmmProcess

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

place = short_folder
FULL_DISK = "/dev/full"
TALK = say("here", SERIAL_PORT) + "9: mov $0x3f8, %dx; mov $'x', %al; out %al, %dx; jmp 9b"


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """A terminal: what its user holds, and what the program gets."""
    user, program = os.openpty()
    yield user, program
    for fd in (user, program):
        try:
            os.close(fd)
        except OSError:
            continue  # The test has closed it.


async def check_it_serves(vmm: VmmProcess) -> None:
    await vmm.wait_until_served(SECONDS)
    assert (await vmm.info())["state"] == "Running"
    await vmm.put("vm.pause")
    await vmm.put("vm.resume")
    assert await vmm.stop() == 0
    assert not (vmm.directory / "api.sock").exists()
    assert b"Traceback" not in vmm.errors, vmm.transcript()


async def test_full_disk_for_the_log_is_said_once_and_outlived(place: Path) -> None:
    arguments = guest_arguments(place, TALK)
    async with VmmProcess.start(place, *arguments, "-vv", "--log-file", FULL_DISK, api=True) as vmm:
        await vmm.wait_for("here", SECONDS)
        await check_it_serves(vmm)

    assert vmm.errors.count(b"Writing /dev/full failed") == 1


async def test_full_disk_for_the_serial_file_is_said_once_and_outlived(place: Path) -> None:
    kernel = write_kernel(place, TALK)
    arguments = ("--kernel", str(kernel), *SMALL, "--serial", f"file={FULL_DISK}")
    async with VmmProcess.start(place, *arguments, api=True) as vmm:
        await check_it_serves(vmm)

    assert vmm.errors.count(b"The serial cannot be written: No space left on device") == 1


async def test_full_disk_for_the_events_is_outlived(place: Path) -> None:
    arguments = (*guest_arguments(place, TALK), "--event-monitor", f"path={FULL_DISK}")
    async with VmmProcess.start(place, *arguments, "--api-socket", str(place / "api.sock")) as vmm:
        await vmm.wait_for("here", SECONDS)
        await check_it_serves(vmm)

    assert vmm.errors.count(b"The event monitor loses events") == 1


async def test_reader_of_the_events_that_is_gone_is_outlived(place: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    events = ("--event-monitor", f"fd={writer}")
    arguments = (*guest_arguments(place, TALK), *events, "--api-socket", str(place / "api.sock"))
    async with VmmProcess.start(place, *arguments, pass_fds=(writer,)) as vmm:
        os.close(writer)
        await vmm.wait_for("here", SECONDS)
        await check_it_serves(vmm)


async def test_terminal_that_goes_away_is_outlived(place: Path, terminal: tuple[int, int]) -> None:
    user, program = terminal
    arguments = guest_arguments(place, TALK)
    async with VmmProcess.start(place, *arguments, api=True, terminal=program) as vmm:
        await trio.lowlevel.wait_readable(user)
        os.close(program)
        os.close(user)

        await check_it_serves(vmm)


async def test_reader_of_standard_output_that_goes_away_is_outlived(place: Path) -> None:
    arguments = guest_arguments(place, TALK)
    reader, writer = os.pipe()
    async with VmmProcess.start(place, *arguments, api=True, terminal=writer) as vmm:
        os.close(writer)
        await trio.lowlevel.wait_readable(reader)
        os.close(reader)

        await check_it_serves(vmm)


async def test_error_is_told_by_the_exit_code_when_stderr_is_full(place: Path) -> None:
    command = f'exec "$0" -m vmm --kernel {place}/absent 2>{FULL_DISK}'

    ended = await trio.run_process(["sh", "-c", command, sys.executable], check=False)

    assert ended.returncode == 1


async def test_program_without_standard_streams_runs_its_guest(place: Path) -> None:
    kernel, out = write_kernel(place, say("here", SERIAL_PORT) + POWER_OFF), place / "out"
    options = f"--kernel {kernel} --memory size=64M --console off --serial file={out}"

    ended = await trio.run_process(
        ["sh", "-c", f'exec "$0" -m vmm {options} <&- >&- 2>&-', sys.executable], check=False
    )

    assert ended.returncode == 0
    assert out.read_text() == "here"


async def test_power_off_exits_with_0_and_the_last_words_are_printed(place: Path) -> None:
    source = say("last words", SERIAL_PORT) + POWER_OFF

    ended = await run_to_its_end(*guest_arguments(place, source))

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"last words", b"")


async def test_guest_that_kvm_cannot_run_ends_the_process_and_says_why(place: Path) -> None:
    ended = await run_to_its_end(*guest_arguments(place, programs.EMULATION_FAILURE))

    assert ended.returncode == 0
    assert b"vCPU 0 cannot go on: INTERNAL_ERROR" in ended.stderr
    assert b"Traceback" not in ended.stderr


async def test_reset_of_a_vm_whose_kernel_is_gone_ends_with_1(place: Path) -> None:
    wait_for_key = "mov $0x3fd, %dx; 1: in %dx, %al; test $1, %al; jz 1b;"
    kernel = write_kernel(place, say("here", SERIAL_PORT) + wait_for_key + RESET_BY["i8042"])
    serial = place / "serial.sock"
    arguments = ("--kernel", str(kernel), *SMALL, "--serial", f"socket={serial}")
    async with VmmProcess.start(place, *arguments, api=True) as vmm:
        await vmm.wait_until_served(SECONDS)
        async with GuestConsole.connect(serial) as console:
            await console.wait_for("here", SECONDS)
            os.unlink(kernel)
            await console.type("r")

            assert await vmm.wait(SECONDS) == 1

    assert b"The VM could not reboot: open on " in vmm.errors
    assert not serial.exists()


async def test_power_off_with_no_shutdown_leaves_a_vmm_that_can_boot_again(place: Path) -> None:
    arguments = (*guest_arguments(place, POWER_OFF), "--no-shutdown")
    async with VmmProcess.start(place, *arguments, api=True) as vmm:
        await vmm.wait_until_served(SECONDS)
        await vmm.wait_for_state("Created", SECONDS)

        await vmm.put("vm.boot")
        await vmm.wait_for_state("Created", SECONDS)

        assert vmm.events().count("vm:booted") == 2


async def test_files_it_makes_are_its_users_alone(place: Path) -> None:
    console = place / "console"
    serial = {"mode": "File", "file": str(console)}
    async with running(place) as vmm:
        await vmm.put("vm.create", machine(write_kernel(place, programs.HALT), serial=serial))
        assert stat.S_IMODE(os.stat(console).st_mode) == 0o600
