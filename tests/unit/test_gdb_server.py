"""Where debuggers come: who is there when a machine begins, and who has left before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import trio
import trio.testing

from tests.unit.test_gdb_debuggee import Bench
from vmm.gdb.debuggee import Debuggee
from vmm.gdb.packets import encode
from vmm.gdb.server import DebugServer
from vmm.listener import listening

QUESTION = b"+" + encode(b"qSupported")


async def until_answered(stream: trio.SocketStream) -> None:
    answer = b""
    with trio.fail_after(20):
        while b"$PacketSize=" not in answer:
            answer += await stream.receive_some(4096)
    assert answer.startswith(b"+")


@asynccontextmanager
async def served(path: str) -> AsyncIterator[tuple[Bench, AbstractContextManager[Debuggee]]]:
    """Where debuggers come, without a machine: that shows itself for the length of a block."""
    bench = Bench()
    vcpus: Any = bench.vcpus
    memory: Any = bench.ram
    lifecycle: Any = None
    with listening(path, "debugger") as listener:
        server = DebugServer(listener)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run)
            yield bench, server.showing(vcpus, memory, lifecycle)
            nursery.cancel_scope.cancel()


async def test_debugger_that_left_before_there_was_a_machine_lets_none_run(tmp_path: Path) -> None:
    path = str(tmp_path / "gdb")
    async with served(path) as (bench, machine):
        async with await trio.open_unix_socket(path) as early:
            await early.send_all(QUESTION)
        await trio.testing.wait_all_tasks_blocked()
        assert bench.vcpus.let_run == ()
        with machine:
            await trio.testing.wait_all_tasks_blocked()
            assert bench.vcpus.let_run == ()

            async with await trio.open_unix_socket(path) as patient:
                await patient.send_all(QUESTION)
                await until_answered(patient)


async def test_what_a_debugger_says_before_there_is_a_machine_is_answered_then(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "gdb")
    async with served(path) as (_, machine), await trio.open_unix_socket(path) as patient:
        await patient.send_all(QUESTION[:7])
        await trio.testing.wait_all_tasks_blocked()
        with machine:
            await patient.send_all(QUESTION[7:])
            await until_answered(patient)
