"""Core files of real machines, read back by gdb."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import trio

from tests.kvm.guests import programs
from tests.kvm.guests.image import RESULTS, write_kernel
from tests.kvm.guests.machines import configure, running
from vmm.errors import HostError

pytestmark = pytest.mark.kvm

MARK = 0x5AFEC0DE
PROGRAM = f"movl ${MARK}, {RESULTS}; mov ${MARK}, %ebx; 8: {programs.say('.')} jmp 8b"
"""Leaves a mark in memory and in a register, and tells for ever that it runs."""


@pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is missing; install it")
@pytest.mark.parametrize("is_running", [True, False], ids=["running", "paused"])
async def test_core_of_a_guest_is_read_by_a_debugger(tmp_path: Path, is_running: bool) -> None:
    core = tmp_path / "core"
    async with running(configure(write_kernel(tmp_path, PROGRAM))) as vm:
        await vm.debug.wait_for(b".")
        if not is_running:
            await vm.machine.pause()
        await vm.machine.dump_core(str(core), is_running=is_running)
        if not is_running:
            await vm.machine.resume()
        await vm.debug.wait_for(b".", after=len(vm.debug.output))

    commands = ("set arch i386:x86-64", f"core {core}", "p/x $rbx", f"x/wx {RESULTS:#x}")
    options = [word for command in commands for word in ("-ex", command)]
    read = await trio.run_process(
        ["gdb", "-batch", "-nx", *options], capture_stdout=True, capture_stderr=True
    )
    assert read.stdout.count(b"0x5afec0de") == 2


async def test_core_that_cannot_be_written_leaves_the_guest_running(tmp_path: Path) -> None:
    async with running(configure(write_kernel(tmp_path, PROGRAM))) as vm:
        await vm.debug.wait_for(b".")

        with pytest.raises(HostError, match="name a file that is not there yet"):
            await vm.machine.dump_core(str(tmp_path / "none" / "core"), is_running=True)

        await vm.debug.wait_for(b".", after=len(vm.debug.output))
    assert "core" not in os.listdir(tmp_path)
