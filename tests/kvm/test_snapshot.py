"""Machines that are written to a directory and go on from it as others."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.kvm.guests import programs
from tests.kvm.guests.image import RESULTS, write_kernel
from tests.kvm.guests.machines import DEADLINE_S, Recorder, Running, Wishes, configure, running
from tests.kvm.guests.virtio import AVAIL, BAR, BUFFER, DESC, USED, move_bar, set_up
from vmm.config.requests import MemoryRestoreMode, RestoreConfig
from vmm.config.vm import VmConfig
from vmm.errors import HostError, StateError
from vmm.kvm_cffi import Vm
from vmm.kvm_cffi.pager import Pager
from vmm.machine.consoles import Consoles
from vmm.machine.memory import GuestMemory
from vmm.machine.vm import open_machine
from vmm.snapshot.restore import Snapshot
from vmm.snapshot.state import MachineState
from vmm.virtio.pci_transport import NOTIFY

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

PROGRAM = f"""
    mov $0x5afec0de, %ebx
    1: incl {RESULTS}
    mov {RESULTS}, %eax
    cmp $0x5afec0de, %ebx
    jne 2f
    {programs.say(".")}
    jmp 1b
    2: {programs.say("lost")}
    hlt
"""
"""Counts in memory, and tells so as long as a register keeps its value."""


@asynccontextmanager
async def restored(folder: Path, **options: object) -> AsyncIterator[Running]:
    """A machine from a snapshot, without an owner; it stands."""
    request = RestoreConfig.model_validate({"source_url": f"file://{folder}", **options})
    debug, wishes = Recorder(), Wishes()
    snapshot = Snapshot(request)
    consoles = Consoles(Recorder(), debug, Recorder())
    async with open_machine(snapshot.config, consoles, wishes, source=snapshot) as machine:
        yield Running(machine, debug, wishes)


async def save(vm: Running, config: VmConfig, folder: Path) -> MachineState:
    """Pause a machine and write it to a new directory."""
    await trio.Path(folder).mkdir()
    await vm.machine.pause()
    await vm.machine.snapshot(str(folder), vm.machine.described_in(config))
    return vm.machine.save()


async def test_restored_guest_goes_on_with_its_registers_and_memory(tmp_path: Path) -> None:
    config = configure(write_kernel(tmp_path, PROGRAM))
    async with running(config) as vm:
        await vm.debug.wait_for(b"...")
        await save(vm, config, tmp_path / "snapshot")
        count = vm.machine.memory.read(RESULTS, 4)

    async with restored(tmp_path / "snapshot") as vm:
        assert vm.machine.memory.read(RESULTS, 4) == count
        assert vm.debug.output == b""
        await vm.machine.resume()
        await vm.debug.wait_for(b"...")
        await vm.machine.pause()

        assert int.from_bytes(vm.machine.memory.read(RESULTS, 4), "little") > int.from_bytes(
            count, "little"
        )
        assert b"lost" not in vm.debug.output


@pytest.mark.parametrize("memory", [{}, {"shared": True}], ids=["private", "shared"])
async def test_guest_goes_on_at_once_while_its_memory_is_read_on_demand(
    memory: dict[str, object], tmp_path: Path
) -> None:
    config = configure(write_kernel(tmp_path, PROGRAM), memory={"size": 64 << 20, **memory})
    async with running(config) as vm:
        await vm.debug.wait_for(b"...")
        await vm.machine.pause()
        noise = os.urandom(16 << 20)
        vm.machine.memory.write(32 << 20, noise)
        await trio.Path(tmp_path / "snapshot").mkdir()
        await vm.machine.snapshot(str(tmp_path / "snapshot"), vm.machine.described_in(config))

    async with restored(tmp_path / "snapshot", memory_restore_mode="OnDemand") as vm:
        await vm.machine.resume()
        await vm.debug.wait_for(b"...")
        assert vm.machine.memory.read(32 << 20, 16 << 20) == noise
        with trio.fail_after(DEADLINE_S):
            await vm.machine.until_filled()
        await vm.machine.pause()
        assert vm.machine.memory.read(32 << 20, 16 << 20) == noise
        assert vm.machine.memory.read(48 << 20, 16 << 20) == bytes(16 << 20)
        assert b"lost" not in vm.debug.output


ASKING = f"""
    {move_bar(1)}
    {set_up()}
    movl ${BUFFER:#x}, {DESC:#x}
    movl $64, {DESC + 8:#x}
    movw $2, {DESC + 12:#x}
1:  incw {AVAIL + 2:#x}
    movw $0, {BAR + NOTIFY:#x}
2:  mov {AVAIL + 2:#x}, %ax
    cmp %ax, {USED + 2:#x}
    jne 2b
    {programs.say(".")}
    jmp 1b
"""
"""Asks the entropy device, whose BAR it has moved, again and again, and tells of each answer."""


async def test_queue_and_moved_bar_go_on_in_another_machine(tmp_path: Path) -> None:
    config = configure(write_kernel(tmp_path, ASKING))
    async with running(config) as vm:
        await vm.debug.wait_for(b"...")
        saved = await save(vm, config, tmp_path / "snapshot")
        tree = vm.machine.device_tree

    async with restored(tmp_path / "snapshot") as vm:
        assert vm.machine.device_tree == tree
        again = vm.machine.save()
        assert again.devices == saved.devices
        assert again.board["__ioapic"] == saved.board["__ioapic"]
        await vm.machine.resume()
        await vm.debug.wait_for(b"...")


async def test_machine_whose_memory_is_not_all_there_is_not_saved(tmp_path: Path) -> None:
    config = configure(write_kernel(tmp_path, PROGRAM))
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    async with running(config) as vm:
        await vm.machine.pause()
        with path.open("rb") as file, Pager(file.fileno(), 4096) as pager:
            vm.machine.memory.pager = pager
            with pytest.raises(StateError, match="on-demand memory restore is still in progress"):
                vm.machine.save()
            vm.machine.memory.pager = None
        vm.machine.save()


async def test_lost_file_ends_a_machine_that_reads_on_demand(tmp_path: Path) -> None:
    config = configure(write_kernel(tmp_path, PROGRAM))
    async with running(config) as vm:
        await vm.machine.pause()
        vm.machine.memory.write(32 << 20, os.urandom(16 << 20))
        await trio.Path(tmp_path / "snapshot").mkdir()
        await vm.machine.snapshot(str(tmp_path / "snapshot"), vm.machine.described_in(config))

    lost = Snapshot(
        RestoreConfig(
            source_url=f"file://{tmp_path}/snapshot",
            memory_restore_mode=MemoryRestoreMode.ONDEMAND,
        )
    )
    provide = lost.provide

    async def lose(memory: GuestMemory, vm: Vm) -> MachineState:
        state = await provide(memory, vm)
        assert memory.pager is not None
        memory.pager.close()
        path = tmp_path / "snapshot" / "memory-ranges"
        with path.open("r+b") as file:
            pager = Pager(file.fileno(), 64 << 20)
            number = pager.add(memory.regions[0].hva, 64 << 20, 4096, 0)
            pager.mark(number, 0, 64 << 20)
            file.truncate(4096)
            memory.hold(pager)
            pager.start()
        memory.pager = pager
        return state

    lost.provide = lose  # type: ignore[method-assign]
    consoles = Consoles(Recorder(), Recorder(), Recorder())
    with pytest.RaisesGroup(HostError, flatten_subgroups=True):
        async with open_machine(lost.config, consoles, Wishes(), source=lost) as machine:
            await machine.resume()
            await trio.sleep_forever()
