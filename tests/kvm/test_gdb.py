"""gdb itself debugs a guest: it stops, looks, steps, changes and lets go.

Not every nested KVM has debug registers that see accesses: watched memory is in
tests/guest/test_gdb.py.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.kvm.guests.image import ENTRY, RESULTS, STACK, write_kernel
from tests.kvm.guests.moving import Host, host, move
from tests.kvm.guests.processes import SECONDS, SMALL, running, short_folder
from tests.kvm.guests.programs import say, take_interrupt
from vmm.gdb.packets import encode
from vmm.testing.process import VmmProcess

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.usefixtures("kvm"),
    pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is missing; install it"),
]

place = short_folder

PROGRAM = f"""
    nop
    mov $0x1234, %eax
    mov %eax, {RESULTS:#x}
1:  incl {RESULTS + 4:#x}
    mov $0xe9, %dx
    mov $0x2e, %al
    out %al, %dx
    jmp 1b
"""
"""Leaves a mark, then counts and says a dot, for ever."""

NOP, MOV_MARK, STORE = ENTRY, ENTRY + 1, ENTRY + 6
LOOP = STORE + 5


async def debug(socket: Path, *commands: str) -> str:
    """Run gdb with some commands, and give what it printed."""
    words = [word for command in commands for word in ("-ex", command)]
    with trio.fail_after(SECONDS):
        done = await trio.run_process(
            ["gdb", "-batch", "-nx", "-ex", f"target remote {socket}", *words],
            stdin=subprocess.DEVNULL,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    return (done.stdout + done.stderr).decode()


def debugged(place: Path, program: str = PROGRAM, cpus: int = 1) -> tuple[str, ...]:
    return (
        *("--kernel", str(write_kernel(place, program)), *SMALL, "--cpus", f"boot={cpus}"),
        *("--debug-console", "tty,iobase=0xe9", "--gdb", f"path={place / 'gdb'}"),
    )


async def test_guest_waits_for_the_debugger_which_steps_looks_and_lets_go(place: Path) -> None:
    async with running(place, *debugged(place)) as vmm:
        await vmm.wait_for_state("Running", SECONDS)
        assert not vmm.output

        text = await debug(
            place / "gdb",
            "p/x $rip",
            "stepi",
            "p/x $rip",
            "stepi",
            "p/x $rax",
            "set $rax = 0x5678",
            "stepi",
            f"x/wx {RESULTS:#x}",
            f"set {{int}}{RESULTS:#x} = 0x77",
            f"x/wx {RESULTS:#x}",
            "p $cr0 & 1",
            "info threads",
            "detach",
        )

        for words in (f"$1 = {NOP:#x}", f"$2 = {MOV_MARK:#x}", "$3 = 0x1234", "$4 = 1"):
            assert words in text, text
        assert "0x00005678" in text
        assert "0x00000077" in text
        assert "vCPU 0" in text
        await vmm.wait_for("..", SECONDS)


@pytest.mark.parametrize("command", ["break", "hbreak"])
async def test_breakpoint_stops_at_an_instruction_each_time_it_is_reached(
    place: Path, command: str
) -> None:
    async with running(place, *debugged(place)) as vmm:
        text = await debug(
            place / "gdb",
            f"{command} *{LOOP:#x}",
            "continue",
            "p/x $rip",
            f"p *(int*){RESULTS + 4:#x}",
            "continue",
            "continue",
            f"p *(int*){RESULTS + 4:#x}",
            "delete",
            "detach",
        )

        assert f"$1 = {LOOP:#x}" in text, text
        assert "$2 = 0" in text
        assert "$3 = 2" in text
        await vmm.wait_for("..", SECONDS)


async def test_more_breakpoints_than_debug_registers_are_not_seen_in_memory(place: Path) -> None:
    beyond = [LOOP + at for at in (0x100, 0x108, 0x110, 0x118, 0x120)]
    async with running(place, *debugged(place)) as vmm:
        text = await debug(
            place / "gdb",
            f"set {{int}}{beyond[-1]:#x} = 0x11223344",
            *(f"break *{each:#x}" for each in (LOOP, *beyond)),
            "continue",
            "p/x $rip",
            f"x/wx {beyond[-1]:#x}",
            "continue",
            f"p *(int*){RESULTS + 4:#x}",
            "delete",
            "detach",
        )

        assert f"$1 = {LOOP:#x}" in text, text
        assert "0x11223344" in text
        assert "$2 = 1" in text
        await vmm.wait_for("..", SECONDS)


async def test_running_guest_is_interrupted_and_goes_on_when_the_connection_breaks(
    place: Path,
) -> None:
    async with running(place, *debugged(place)) as vmm:
        await debug(place / "gdb", "detach")
        at = await vmm.wait_for("..", SECONDS)

        async with await trio.open_unix_socket(str(place / "gdb")) as stream:
            await stream.send_all(encode(b"?"))
            assert await reply(stream) == b"T05thread:1;"
            await stream.send_all(encode(b"vCont;c"))
            at = await vmm.wait_for("..", SECONDS, after=len(vmm.output))
            await stream.send_all(b"\x03")
            assert await reply(stream) == b"T02thread:1;"
            with trio.fail_after(SECONDS):
                # What was said before is still on its way.
                await trio.testing.wait_all_tasks_blocked(0.1)
                stood = len(vmm.output)
                await vmm.api("GET", "vm.info")
                await trio.testing.wait_all_tasks_blocked(0.1)
            assert len(vmm.output) == stood

        assert await vmm.wait_for("..", SECONDS, after=len(vmm.output)) > at


async def test_pause_and_debugger_each_hold_the_guest(place: Path) -> None:
    async with running(place, *debugged(place)) as vmm:
        await vmm.wait_for_state("Running", SECONDS)
        await vmm.put("vm.pause")
        await debug(place / "gdb", "detach")
        assert not vmm.output

        await vmm.put("vm.resume")
        await vmm.wait_for("..", SECONDS)


async def test_machine_that_ends_or_reboots_ends_the_session_and_the_next_one_waits(
    place: Path,
) -> None:
    async with running(place, *debugged(place)) as vmm:
        async with await trio.open_unix_socket(str(place / "gdb")) as stream:
            await stream.send_all(encode(b"c"))
            await vmm.wait_for("..", SECONDS)
            await vmm.put("vm.reboot")
            assert await reply(stream) == b"W00"
        count = len(vmm.output)

        text = await debug(place / "gdb", "p/x $rip", "detach")
        assert f"$1 = {NOP:#x}" in text, text
        await vmm.wait_for("..", SECONDS, after=count)
        assert await vmm.stop() == 0
    assert not (place / "gdb").exists()


async def test_kill_powers_the_vm_off(place: Path) -> None:
    async with running(place, *debugged(place)) as vmm:
        await debug(place / "gdb", "kill")

        assert await vmm.wait(SECONDS) == 0


async def reply(stream: trio.SocketStream) -> bytes:
    """The next packet; gdb may leave out the acknowledgement."""
    data = b""
    with trio.fail_after(SECONDS):
        while b"#" not in data or len(data) < data.index(b"#") + 3:
            more = await stream.receive_some()
            assert more, data
            data += bytes(more)
    return data[data.index(b"$") + 1 : data.index(b"#")]


async def test_question_while_the_guest_runs_holds_up_nobody(place: Path) -> None:
    halting = "cli\n1: hlt\n jmp 1b"
    async with running(place, *debugged(place, halting)) as vmm:
        await vmm.wait_for_state("Running", SECONDS)
        async with await trio.open_unix_socket(str(place / "gdb")) as stream:
            await stream.send_all(encode(b"c") + encode(b"g") + encode(b"c"))
            with trio.fail_after(SECONDS):
                answer = b""
                while answer.count(b"+") < 3:
                    answer += await stream.receive_some(4096)
            assert (await vmm.info())["state"] == "Running"

            await stream.send_all(b"\x03")
            with trio.fail_after(SECONDS):
                while b"T02" not in answer:
                    answer += await stream.receive_some(4096)


PLACE = ENTRY + 2
SAYS_WHAT_IS_IN_ITS_MEMORY = f"""
    jmp 1f
    nop
1:  cmpb $0xcc, {PLACE:#x}
    je 2f
    {say("n")}
    jmp 1b
2:  {say("B")}
    jmp 1b
"""
"""PLACE is never executed: a breakpoint may be there, and the guest sees it."""


async def break_in_memory(vmm: VmmProcess, stream: trio.SocketStream) -> None:
    """Have the guest run with more breakpoints than there are debug registers."""
    for address in (*range(0x8000, 0x8004), PLACE):
        await stream.send_all(encode(b"Z0,%x,1" % address))
        assert await reply(stream) == b"OK"
    await stream.send_all(encode(b"c"))
    await vmm.wait_for("B", SECONDS)


async def test_breakpoint_in_memory_does_not_move(place: Path) -> None:
    vmm_with_debugger = running(place, *debugged(place, SAYS_WHAT_IS_IN_ITS_MEMORY))
    async with vmm_with_debugger as vmm, host(place, "other") as other:
        await vmm.wait_for_state("Running", SECONDS)
        async with await trio.open_unix_socket(str(place / "gdb")) as stream:
            await break_in_memory(vmm, stream)

            await move(Host(vmm, place / "log"), other, f"unix:{place}/m")

            await other.vmm.wait_for("nnn", SECONDS)
            # What the guest says first it may have looked at before it moved.
            assert b"B" not in other.vmm.output[1:]


async def test_breakpoint_in_memory_is_not_there_while_the_vm_is_paused(place: Path) -> None:
    folder = place / "snapshot"
    folder.mkdir()
    async with running(place, *debugged(place, SAYS_WHAT_IS_IN_ITS_MEMORY)) as vmm:
        async with await trio.open_unix_socket(str(place / "gdb")) as stream:
            await break_in_memory(vmm, stream)

            await vmm.put("vm.pause")
            await vmm.put("vm.snapshot", {"destination_url": f"file://{folder}"})
            await vmm.put("vm.resume")
            await vmm.wait_for("B", SECONDS, after=len(vmm.output))

        await vmm.wait_for("n", SECONDS)
        assert b"n" not in vmm.output[: vmm.output.index(b"B")]

    with (folder / "memory-ranges").open("rb") as file:
        file.seek(ENTRY)
        code = file.read(16)
    assert code[2:3] == b"\x90"
    assert b"\xcc" not in code.replace(b"\x80\x3d" + PLACE.to_bytes(4, "little") + b"\xcc", b"")


MAKES_STEPS = f"""
    {take_interrupt(1, "debug")}
1:  mov ${STACK:#x}, %esp
    pushf
    orl $0x100, (%esp)
    popf
    nop
    {say("not stepped")}
debug:
    mov %dr6, %eax
    shr $14, %eax
    and $1, %eax
    add $'0', %eax
    mov $0xe9, %dx
    out %al, %dx
    mov $0xffff0ff0, %eax
    mov %eax, %dr6
    jmp 1b
"""
"""Says of each exception what DR6 says of a step: 1, it was one."""


async def test_steps_that_the_guest_makes_are_its_own_beside_a_debuggers(place: Path) -> None:
    async with running(place, *debugged(place, MAKES_STEPS)) as vmm:
        async with await trio.open_unix_socket(str(place / "gdb")) as stream:
            await stream.send_all(encode(b"Z1,8000,1"))
            assert await reply(stream) == b"OK"
            await stream.send_all(encode(b"c"))
            await vmm.wait_for("1111", SECONDS)
        await vmm.wait_for("1111", SECONDS, after=len(vmm.output))
