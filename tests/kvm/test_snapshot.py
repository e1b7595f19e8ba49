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
from vmm.config.requests import RestoreConfig
from vmm.config.vm import VmConfig
from vmm.machine.consoles import Consoles
from vmm.machine.vm import open_machine
from vmm.snapshot.restore import Snapshot
from vmm.snapshot.state import MachineState

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
            await vm.machine.filled.wait()
        await vm.machine.pause()
        assert vm.machine.memory.read(32 << 20, 16 << 20) == noise
        assert vm.machine.memory.read(48 << 20, 16 << 20) == bytes(16 << 20)
        assert b"lost" not in vm.debug.output
