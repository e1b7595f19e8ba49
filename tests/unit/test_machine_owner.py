"""The VM owner: states, commands, and what a guest may ask for, with a machine made of events."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.unit.owner_fixture import CONFIG, Bench, running
from vmm.config.disk import DiskConfig
from vmm.config.requests import VmResize
from vmm.errors import HostError, NotCreatedError, StateError
from vmm.machine.commands import (
    AddDevice,
    Boot,
    Command,
    Create,
    Delete,
    Nmi,
    Pause,
    PowerButton,
    Reboot,
    RemoveDevice,
    Resize,
    ResizeDisk,
    Resume,
    Shutdown,
    ShutdownVmm,
    Snapshot,
)


async def test_create_and_boot_make_one_running_machine() -> None:
    async with running() as bench:
        await bench.do(Create(CONFIG))
        assert bench.owner.info().state == "Created"

        await bench.do(Boot())

        assert bench.owner.info().state == "Running"
        assert bench.owner.info().device_tree is not None
        assert bench.events.names == ["booting", "booted"]


@pytest.mark.parametrize(
    "command",
    [
        *(Boot(), Pause(), Resume(), Shutdown(), Reboot(), PowerButton(), Nmi()),
        *(ResizeDisk("a", 1), AddDevice("disks", DiskConfig(path="/a")), RemoveDevice("a")),
    ],
)
async def test_command_without_a_vm_says_not_created(command: Command) -> None:
    async with running() as bench:
        with pytest.raises(NotCreatedError):
            await bench.do(command)
        with pytest.raises(NotCreatedError):
            bench.owner.info()


@pytest.mark.parametrize(
    "command",
    [Pause(), Resume(), Shutdown(), Reboot(), ResizeDisk("a", 1), PowerButton(), Nmi()],
)
async def test_command_on_a_created_vm_says_not_running(command: Command) -> None:
    async with running() as bench:
        await bench.do(Create(CONFIG))

        with pytest.raises(StateError, match="VM is not running"):
            await bench.do(command)


@pytest.mark.parametrize(
    ("before", "command", "text"),
    [
        ([], Create(CONFIG), "already created"),
        ([Boot()], Boot(), "already created"),
        ([Boot()], Resume(), "Running to Running"),
        ([Boot(), Pause()], Pause(), "Paused to Paused"),
    ],
)
async def test_command_in_the_wrong_state_is_refused_and_changes_nothing(
    before: list[Command], command: Command, text: str
) -> None:
    async with running() as bench:
        await bench.do(Create(CONFIG), *before)
        state = bench.owner.info().state

        with pytest.raises(StateError, match=text):
            await bench.do(command)

        assert bench.owner.info().state == state


async def test_pause_and_resume_move_between_the_two_states() -> None:
    async with running() as bench:
        await bench.do(Create(CONFIG), Boot(), Pause())
        assert bench.owner.info().state == "Paused"

        await bench.do(Resume())

        assert bench.owner.info().state == "Running"
        assert bench.machine.calls == ["pause", "resume"]


async def test_shutdown_keeps_the_configuration_and_boot_opens_consoles_again() -> None:
    async with running() as bench:
        await bench.do(Create(CONFIG), Boot(), Shutdown())
        assert (bench.open_now, bench.consoles_now) == (0, 0)
        assert bench.owner.info().state == "Created"

        await bench.do(Boot())

        assert bench.consoles_opened == 2


async def test_delete_of_a_running_vm_stops_it_first() -> None:
    async with running() as bench:
        await bench.do(Create(CONFIG), Boot(), Delete())

        assert bench.open_now == 0
        assert bench.events.names[-2:] == ["shutdown", "deleted"]
        await bench.do(Delete())


async def test_reboot_builds_a_new_machine_on_the_same_consoles() -> None:
    async with running() as bench:
        await bench.do(Create(CONFIG), Boot(), Reboot())

        assert len(bench.machines) == 2
        assert bench.consoles_opened == 1
        assert bench.events.names[-2:] == ["rebooting", "rebooted"]


async def test_reads_while_a_vm_reboots_see_it_running() -> None:
    async with running() as bench:
        await bench.do(Create(CONFIG), Boot())
        seen: list[str] = []
        bench.while_opening = lambda: seen.append(bench.owner.info().state)

        await bench.do(Reboot())

        assert seen == ["Running"]


async def test_failed_reboot_leaves_a_created_vm() -> None:
    async with running() as bench:
        await bench.do(Create(CONFIG), Boot())
        bench.boot_error = HostError("open", 13, path="/dev/kvm")

        with pytest.raises(HostError):
            await bench.do(Reboot())

        assert bench.owner.info().state == "Created"
        assert (bench.open_now, bench.consoles_now) == (0, 0)


async def test_failed_boot_leaves_a_created_vm_that_can_boot_later() -> None:
    async with running() as bench:
        bench.boot_error = HostError("open", 13, path="/dev/kvm")
        await bench.do(Create(CONFIG))
        with pytest.raises(HostError):
            await bench.do(Boot())
        bench.boot_error = None

        await bench.do(Boot())

        assert bench.owner.info().state == "Running"


async def test_guest_reset_reboots_once_however_often_it_asks() -> None:
    async with running() as bench:
        await bench.do(Create(CONFIG), Boot())

        for _ in range(5):
            bench.machine.lifecycle.request_reset()
        await bench.do(Pause())

        assert len(bench.machines) == 2


async def test_guest_power_off_ends_the_vmm() -> None:
    async with running() as bench:
        await bench.do(Create(CONFIG), Boot())

        bench.machine.lifecycle.request_shutdown()
        await bench.ended.wait()

        assert bench.open_now == 0


async def test_guest_power_off_with_no_shutdown_keeps_the_vmm() -> None:
    async with running(no_shutdown=True) as bench:
        await bench.do(Create(CONFIG), Boot())

        bench.machine.lifecycle.request_shutdown()
        with pytest.raises(StateError):
            await bench.do(PowerButton())

        assert bench.owner.info().state == "Created"
        assert not bench.ended.is_set()


async def test_machine_that_fails_ends_the_vmm_with_nothing_left() -> None:
    async with running() as bench:
        await bench.do(Create(CONFIG), Boot())

        bench.machine.break_down.set()
        await bench.ended.wait()

        assert bench.open_now == 0
        assert bench.events.names[-1] == "deleted"


async def test_pause_of_a_machine_that_fails_meanwhile_is_refused() -> None:
    async with running() as bench:
        await bench.do(Create(CONFIG), Boot())
        bench.machine.pause_hangs = True
        bench.machine.break_down.set()

        with pytest.raises(StateError, match="not running"):
            await bench.do(Pause())
        await bench.ended.wait()


async def test_caller_that_is_cancelled_does_not_cancel_the_command() -> None:
    async with running() as bench:
        with trio.CancelScope() as impatient:
            impatient.cancel()
            await bench.do(Create(CONFIG))

        await bench.do(Boot())

        assert bench.owner.info().state == "Running"


async def test_reset_wish_of_a_machine_that_is_gone_is_ignored() -> None:
    async with running() as bench:
        await bench.do(Create(CONFIG), Boot())
        old = bench.machine
        await bench.do(Reboot())

        old.lifecycle.request_reset()
        await bench.do(Pause())

        assert len(bench.machines) == 2


async def test_shutdown_of_the_vmm_deletes_and_ends() -> None:
    async with running() as bench:
        await bench.do(Create(CONFIG), Boot(), ShutdownVmm())
        await bench.ended.wait()

        assert bench.events.names[-2:] == ["shutdown", "deleted"]


@pytest.mark.parametrize("command", [Boot(), Reboot(), Snapshot("file:///s")])
async def test_end_of_the_vmm_cuts_off_what_takes_long(command: Command) -> None:
    async with running() as bench, trio.open_nursery() as nursery:
        await bench.do(Create(CONFIG))
        if not isinstance(command, Boot):
            await bench.do(Boot())
        if isinstance(command, Snapshot):
            await bench.do(Pause())
            bench.machine.add_hangs = True
        bench.boot_hangs = True
        nursery.start_soon(is_refused, bench, command, "The VMM is ending")
        await wait_all_tasks_blocked()
        begun = list(bench.events.names)

        bench.owner.request_end()
        await bench.ended.wait()

        assert bench.events.names[: len(begun)] == begun
        assert begun[-1] in ("booting", "rebooting", "snapshotting")
        assert not {"booted", "rebooted", "snapshotted"} & set(bench.events.names[len(begun) :])
        assert bench.open_now == 0


@pytest.mark.parametrize(
    ("command", "call"),
    [
        (Pause(), "pause"),
        (Resize(VmResize(desired_ram=1 << 30)), f"grow by {512 << 20}"),
        (AddDevice("disks", DiskConfig(path="/d")), "add to disks"),
    ],
    ids=["pause", "resize", "add"],
)
async def test_end_of_the_vmm_cuts_off_what_waits_for_the_host(command: Command, call: str) -> None:
    async with running() as bench, trio.open_nursery() as nursery:
        await bench.do(Create(CONFIG), Boot())
        bench.machine.pause_hangs = bench.machine.add_hangs = True
        nursery.start_soon(is_refused, bench, command, "The VMM is ending")
        await wait_all_tasks_blocked()
        assert bench.machine.calls == [call]

        bench.owner.request_end()
        with trio.fail_after(5):
            await bench.ended.wait()

        assert bench.open_now == 0


async def test_end_of_the_vmm_cuts_off_the_reset_of_a_guest() -> None:
    async with running() as bench:
        await bench.do(Create(CONFIG), Boot())
        bench.boot_hangs = True
        bench.machine.lifecycle.request_reset()
        await wait_all_tasks_blocked()
        assert bench.events.names[-1] == "rebooting"

        bench.owner.request_end()
        with trio.fail_after(5):
            await bench.ended.wait()

        assert bench.open_now == 0
        assert not bench.owner.has_failed


async def test_end_of_the_vmm_cuts_off_what_waits_before_it() -> None:
    async with running() as bench, trio.open_nursery() as nursery:
        await bench.do(Create(CONFIG))
        bench.boot_hangs = True
        for _ in range(2):
            nursery.start_soon(is_refused, bench, Boot(), "The VMM is ending")
        await wait_all_tasks_blocked()

        await bench.do(ShutdownVmm())
        await bench.ended.wait()


async def is_refused(bench: Bench, command: Command, reason: str) -> None:
    with pytest.raises(StateError, match=reason):
        await bench.do(command)


@pytest.mark.parametrize("steps", range(1, 6))
async def test_cancel_after_any_step_leaves_nothing_open(steps: int) -> None:
    sequence: list[Command] = [Create(CONFIG), Boot(), Pause(), Resume(), Reboot()]
    async with running() as bench:
        await bench.do(*sequence[:steps])


async def test_resize_disk_reaches_the_machine() -> None:
    async with running() as bench:
        await bench.do(Create(CONFIG), Boot(), ResizeDisk("root", 512))

        assert bench.machine.calls == ["resize root to 512"]
