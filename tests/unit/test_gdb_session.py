"""A debugger's session: damaged packets, packets without end, and a debugger that does not read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.unit.test_gdb_debuggee import Bench
from vmm.gdb.packets import encode
from vmm.gdb.session import ALL_BYTES, MOST_WAITING, SEND_PATIENCE_S, Ended, Session
from vmm.kvm_cffi.structs import Regs


class Talk:
    """A session, and the debugger's end of its stream; ``ended`` says how it ended."""

    def __init__(self) -> None:
        self.bench = Bench()
        self.stream, self.theirs = trio.testing.memory_stream_pair()
        self.session = Session(self.theirs, self.bench.debuggee)
        self.ended: Ended | None = None
        self.done = trio.Event()

    async def run(self) -> None:
        """Be the session."""
        self.ended = await self.session.run()
        self.done.set()

    async def answer(self, sent: bytes) -> bytes:
        """What comes back to some bytes."""
        await self.stream.send_all(sent)
        await trio.testing.wait_all_tasks_blocked()
        return bytes(await self.stream.receive_some())


@asynccontextmanager
async def talking() -> AsyncIterator[Talk]:
    talk = Talk()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk.run)
        yield talk
        nursery.cancel_scope.cancel()


async def test_damaged_packet_is_asked_for_again_as_long_as_packets_are_acknowledged() -> None:
    async with talking() as talk:
        assert await talk.answer(b"$?#00") == b"-"
        assert await talk.answer(encode(b"QStartNoAckMode")) == b"+" + encode(b"OK")
        assert await talk.answer(b"$?#00" + encode(b"?")) == encode(b"T05thread:1;")


@pytest.mark.parametrize("size", [0, 8, ALL_BYTES - 1, ALL_BYTES + 1])
async def test_registers_that_are_not_all_of_them_change_none(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Regs] = []
    async with talking() as talk:
        monkeypatch.setattr(talk.bench.vcpus.made[0], "set_regs", written.append)

        refused = await talk.answer(encode(b"G" + b"11" * size))
        taken = await talk.answer(encode(b"G" + b"11" * ALL_BYTES))

    assert (refused, taken) == (b"+" + encode(b"E01"), b"+" + encode(b"OK"))
    assert [regs.rax for regs in written] == [0x1111_1111_1111_1111]


async def test_debugger_that_reads_no_answer_is_read_no_further_and_let_go(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def never(*_: object) -> None:
        await trio.sleep_forever()

    async with talking() as talk:
        await trio.testing.wait_all_tasks_blocked()
        assert talk.bench.vcpus.let_run == ()
        talk.theirs.send_stream.send_all_hook = never

        for _ in range(2 * MOST_WAITING):
            await talk.stream.send_all(encode(b"?"))
            await trio.testing.wait_all_tasks_blocked()
        statistics = talk.session._receive.statistics()
        assert statistics.current_buffer_used <= MOST_WAITING
        began = trio.current_time()
        await talk.done.wait()

    assert talk.ended is Ended.CLOSED
    assert trio.current_time() - began <= SEND_PATIENCE_S + 1
    assert talk.bench.vcpus.let_run is None
