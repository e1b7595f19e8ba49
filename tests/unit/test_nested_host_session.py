"""Commands over a session, against an agent played by the test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from tools.nested_host.errors import NestedHostDied, NestedHostError
from tools.nested_host.host import NestedHost
from tools.nested_host.inside.frames import (
    SESSION,
    Frame,
    FrameDecoder,
    Kind,
    encode,
    encode_json,
)
from tools.nested_host.session import Session, open_session
from tools.nested_host.shares import Shares

Stream = trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]


class Agent:
    """The other end of the session."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._decoder = FrameDecoder()
        self._frames: list[Frame] = []

    async def receive(self) -> Frame:
        while not self._frames:
            self._frames += self._decoder.feed(bytes(await self.stream.receive_some()))
        return self._frames.pop(0)

    async def send(self, *data: bytes) -> None:
        await self.stream.send_all(b"".join(data))


@asynccontextmanager
async def connected(run_dir: Path) -> AsyncIterator[tuple[NestedHost, Session, Agent]]:
    ours, theirs = trio.testing.memory_stream_pair()
    async with open_session(ours, run_dir) as session:
        yield NestedHost(session, Shares(run_dir, run_dir)), session, Agent(theirs)


async def test_command_gives_its_output_and_exit_code(tmp_path: Path) -> None:
    async with connected(tmp_path) as (host, _, agent), trio.open_nursery() as nursery:

        async def serve() -> None:
            run = await agent.receive()
            assert run.json()["argv"] == ["true"]
            assert (await agent.receive()).payload == b"in"
            assert (await agent.receive()) == Frame(run.channel, Kind.STDIN)
            await agent.send(
                encode(Frame(run.channel, Kind.STDOUT, b"out")),
                encode(Frame(run.channel, Kind.STDERR, b"err")),
                encode_json(run.channel, Kind.EXIT, 3),
            )

        nursery.start_soon(serve)
        completed = await host.run(["true"], stdin=b"in")

    assert (completed.code, completed.stdout, completed.stderr) == (3, b"out", b"err")


async def test_two_commands_at_once_do_not_mix(tmp_path: Path) -> None:
    codes = {}
    async with connected(tmp_path) as (host, _, agent), trio.open_nursery() as nursery:

        async def run(name: str) -> None:
            codes[name] = (await host.run([name])).code

        nursery.start_soon(run, "one")
        nursery.start_soon(run, "two")
        channels: dict[str, int] = {}
        while len(channels) < 2:
            frame = await agent.receive()
            if frame.kind is Kind.RUN:
                channels[frame.json()["argv"][0]] = frame.channel
        await agent.send(encode_json(channels["two"], Kind.EXIT, 2))
        await agent.send(encode_json(channels["one"], Kind.EXIT, 1))

    assert codes == {"one": 1, "two": 2}


async def test_host_that_dies_ends_its_commands_with_the_end_of_the_log(tmp_path: Path) -> None:
    (tmp_path / "serial.log").write_text("Kernel panic - not syncing: boom\n")
    async with connected(tmp_path) as (host, _, agent), trio.open_nursery() as nursery:

        async def die() -> None:
            await agent.receive()
            await agent.stream.aclose()

        nursery.start_soon(die)
        with pytest.raises(NestedHostDied, match="boom") as caught:
            await host.run(["true"])

    assert caught.value.is_oops


async def test_command_whose_block_is_left_is_killed(tmp_path: Path) -> None:
    async with connected(tmp_path) as (host, _, agent):
        async with host.start(["sleep"]) as command:
            run = await agent.receive()
            await command.send(Kind.STDIN)

        assert await agent.receive() == Frame(run.channel, Kind.STDIN)
        kill = await agent.receive()
        assert (kill.channel, kill.kind, kill.json()) == (run.channel, Kind.SIGNAL, 9)


async def test_refusal_of_the_agent_is_an_error(tmp_path: Path) -> None:
    async with connected(tmp_path) as (_, session, agent):
        await agent.send(encode_json(0, Kind.FAILED, "no such share"))

        with pytest.raises(NestedHostError, match="no such share"):
            await session.expect(Kind.MOUNTED)


async def test_host_is_kept_awake_until_its_stream_ends(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with connected(tmp_path) as (_, session, agent), trio.open_nursery() as nursery:
        nursery.start_soon(session.keep_awake)
        assert [await agent.receive() for _ in range(3)] == [Frame(SESSION, Kind.WAKE)] * 3
        await agent.stream.aclose()
        await session.closed.wait()
