"""SIGTERM and SIGINT end the process in order, whatever it is doing, and leave no file behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio

from tests.kvm.guests import programs
from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.processes import (
    SECONDS,
    check_left_in_order,
    guest_arguments,
    machine,
    running,
    short_folder,
)
from tests.kvm.guests.programs import RESET_BY, SERIAL_PORT, say
from vmm.testing.process import VmmProcess

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

place = short_folder

GUESTS = {
    "spins": programs.SPIN,
    "halts": programs.HALT,
    "asks the loop": programs.ASK_THE_LOOP,
    "resets for ever": RESET_BY["i8042"],
    "prints for ever": f"mov ${SERIAL_PORT}, %dx; 9: out %al, %dx; jmp 9b",
}
REQUESTS = {
    "nothing": (),
    "created": ("vm.create",),
    "paused": ("vm.create", "vm.boot", "vm.pause"),
    "shut down": ("vm.create", "vm.boot", "vm.shutdown"),
}


@pytest.mark.parametrize("guest", GUESTS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_while_the_guest_runs_ends_in_order(
    place: Path, guest: str, number: signal.Signals
) -> None:
    source = say("here", SERIAL_PORT) + GUESTS[guest]
    async with VmmProcess.start(place, *guest_arguments(place, source), api=True) as vmm:
        await vmm.wait_for("here", SECONDS)

        vmm.process.send_signal(number)

        assert await vmm.wait(SECONDS) == 0
        check_left_in_order(vmm)


@pytest.mark.parametrize("state", REQUESTS)
async def test_signal_in_each_state_ends_in_order(place: Path, state: str) -> None:
    bodies = {"vm.create": machine(write_kernel(place, programs.SPIN))}
    async with running(place) as vmm:
        for request in REQUESTS[state]:
            await vmm.put(request, bodies.get(request))

        vmm.process.send_signal(signal.SIGTERM)

        assert await vmm.wait(SECONDS) == 0
        check_left_in_order(vmm)


async def test_signals_one_after_the_other_until_the_end_change_nothing(place: Path) -> None:
    source = say("here", SERIAL_PORT) + programs.ASK_THE_LOOP
    async with VmmProcess.start(place, *guest_arguments(place, source), api=True) as vmm:
        await vmm.wait_for("here", SECONDS)

        with trio.fail_after(SECONDS):
            while vmm.process.poll() is None:
                for number in (signal.SIGTERM, signal.SIGINT):
                    vmm.process.send_signal(number)
                await trio.sleep(0.005)  # An operator's impatience; a flood would harm trio itself.

        assert vmm.process.returncode == 0, vmm.transcript()
        check_left_in_order(vmm)


async def test_signal_as_soon_as_the_socket_is_there_ends_in_order(place: Path) -> None:
    arguments = guest_arguments(place, programs.SPIN)
    async with VmmProcess.start(place, *arguments, api=True) as vmm:
        with trio.fail_after(SECONDS):
            while not os.path.exists(place / "api.sock"):  # noqa: ASYNC240
                await trio.lowlevel.checkpoint()

        vmm.process.send_signal(signal.SIGTERM)

        assert await vmm.wait(SECONDS) == 0
        check_left_in_order(vmm)


async def test_signal_while_a_client_waits_for_nothing_ends_at_once(place: Path) -> None:
    async with running(place) as vmm, await trio.open_unix_socket(str(place / "api.sock")) as idle:
        await idle.send_all(b"PUT /api/v1/vm.create HTTP/1.1\r\n")

        vmm.process.send_signal(signal.SIGTERM)

        assert await vmm.wait(SECONDS) == 0
        check_left_in_order(vmm)


async def test_hang_up_of_the_terminal_is_outlived(place: Path) -> None:
    async with running(place) as vmm:
        vmm.process.send_signal(signal.SIGHUP)

        assert (await vmm.api("GET", "vmm.ping")).status == 200
