"""Commands to the owner of a real VM that cross each other or come late."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import trio

from tests.kvm.guests import programs
from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.machines import configure, owned
from vmm.errors import HostError, StateError
from vmm.kvm_cffi import ClockData, Vm
from vmm.machine.commands import Boot, Command, Create, Delete, Pause, Resume, ShutdownVmm

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]


async def test_command_behind_the_end_is_refused_and_does_not_wait(tmp_path: Path) -> None:
    config = configure(write_kernel(tmp_path, programs.SPIN))
    refused: list[tuple[Command, str]] = []

    async def submit(command: Command) -> None:
        try:
            await held.do(command)
        except StateError as error:
            refused.append((command, str(error)))

    async with owned() as held, trio.open_nursery() as nursery:
        await held.do(Create(config))
        for command in (Boot(), ShutdownVmm(), Pause(), ShutdownVmm()):
            nursery.start_soon(submit, command)
            await trio.lowlevel.checkpoint()

    assert {type(command) for command, _ in refused} == {Boot, Pause}
    assert all("ending" in reason for _, reason in refused)


async def test_command_after_the_end_is_refused_at_once(tmp_path: Path) -> None:
    async with owned() as held:
        await held.do(ShutdownVmm())
        await held.wait_until_ended()

        with pytest.raises(StateError, match="ending"):
            await held.do(Create(configure(tmp_path / "kernel")))
        await held.do(ShutdownVmm())


async def test_end_asked_for_while_a_vm_boots_cuts_that_off(tmp_path: Path) -> None:
    config = configure(
        write_kernel(tmp_path, programs.SPIN), memory={"size": 256 << 20, "prefault": True}
    )

    async def boot() -> None:
        with pytest.raises(StateError, match="ending"):
            await held.do(Boot())

    async with owned() as held, trio.open_nursery() as nursery:
        await held.do(Create(config))
        nursery.start_soon(boot)
        await held.events.wait_for("booting")

        held.owner.request_end()
        await held.wait_until_ended()

    assert held.owner.is_ending
    assert held.events.names[-2:] == ["booting", "deleted"]


async def test_delete_of_a_guest_that_resets_for_ever_wins(tmp_path: Path) -> None:
    config = configure(write_kernel(tmp_path, programs.RESET_BY["acpi"]))
    async with owned(config) as held:
        await held.events.wait_for("rebooted")

        await held.do(Delete())

        assert held.events.names[-2:] == ["shutdown", "deleted"]


async def test_pause_that_fails_on_the_host_leaves_the_vm_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(vm: Vm) -> ClockData:
        raise HostError("KVM_GET_CLOCK", errno.EIO)

    async with owned(configure(write_kernel(tmp_path, programs.HALT))) as held:
        with monkeypatch.context() as broken:
            broken.setattr(Vm, "get_clock", fail)
            with pytest.raises(HostError):
                await held.owner.submit(Pause())
        assert held.owner.info().state == "Running"

        await held.do(Pause(), Resume())
