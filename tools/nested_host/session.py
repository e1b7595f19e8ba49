"""A session with the agent inside, on a stream of frames: commands by channel."""

from __future__ import annotations

import itertools
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from tools.nested_host import serial_log
from tools.nested_host.errors import NestedHostDied, NestedHostError
from tools.nested_host.inside.frames import (
    CHUNK_BYTES,
    SESSION,
    Frame,
    FrameDecoder,
    Kind,
    encode,
    encode_json,
)
from tools.nested_host.processes import OwnedProcess

QUEUED_FRAMES = 64
WAKE_INTERVAL_S = 1.0


class RemoteCommand:
    """A command that runs inside; its frames end with EXIT or FAILED."""

    def __init__(
        self, session: Session, channel: int, frames: trio.MemoryReceiveChannel[Frame]
    ) -> None:
        self._session = session
        self._channel = channel
        self._frames = frames

    async def receive(self) -> Frame:
        """Return the next frame. Raises NestedHostDied: the host ended before the command did."""
        try:
            return await self._frames.receive()
        except trio.EndOfChannel:
            raise self._session.died() from None

    def receive_nowait(self) -> Frame | None:
        """Return the next frame, if one has come."""
        try:
            return self._frames.receive_nowait()
        except (trio.WouldBlock, trio.EndOfChannel):
            return None

    async def send(self, kind: Kind, payload: bytes = b"") -> None:
        """Send it input, its end, or a raw payload of another kind."""
        view = memoryview(payload)
        for start in range(0, max(len(payload), 1), CHUNK_BYTES):
            piece = bytes(view[start : start + CHUNK_BYTES])
            await self._session.send(encode(Frame(self._channel, kind, piece)))

    async def send_json(self, kind: Kind, value: object) -> None:
        """Send it a signal or a window size."""
        await self._session.send(encode_json(self._channel, kind, value))


class Session:
    """The host's end of the stream, made by `open_session`; `closed` is set when it ends."""

    def __init__(
        self, stream: trio.abc.Stream, run_dir: Path, emulator: OwnedProcess | None
    ) -> None:
        self._stream = stream
        self._run_dir = run_dir
        self._emulator = emulator
        self._outgoing, self._to_send = trio.open_memory_channel[bytes](QUEUED_FRAMES)
        self._channels = itertools.count(SESSION + 1)
        self._commands: dict[int, trio.MemorySendChannel[Frame]] = {}
        self._events, self._received_events = trio.open_memory_channel[Frame](math.inf)
        self.closed = trio.Event()

    async def send(self, data: bytes) -> None:
        """Send encoded frames."""
        if self.closed.is_set():
            raise self.died()
        await self._outgoing.send(data)

    async def expect(self, kind: Kind) -> Any:  # noqa: ANN401 - JSON
        """Wait for a frame about the session itself; returns its JSON payload, or None.

        Raises: NestedHostError: the agent refused (host); NestedHostDied: the stream ended.
        """
        async for frame in self._received_events:
            if frame.kind is Kind.FAILED:
                raise NestedHostError(f"The nested host refused: {frame.json()}")
            if frame.kind is kind:
                return frame.json() if frame.payload else None
        raise self.died()

    def died(self) -> NestedHostDied:
        """Return the error that says why the host is gone."""
        is_oops = serial_log.has_oops(self._run_dir)
        what = "Its kernel broke" if is_oops else "It ended"
        if self._emulator is not None and self._emulator.exit_code is not None:
            what += f" (QEMU: exit code {self._emulator.exit_code})"
        last = serial_log.tail(self._run_dir)
        message = f"The nested host is gone. {what}; its serial port said last:\n{last}"
        return NestedHostDied(message, is_oops=is_oops)

    @asynccontextmanager
    async def command(self, request: dict[str, Any]) -> AsyncIterator[RemoteCommand]:
        """Start a command; it is killed if the block ends before it does."""
        channel = next(self._channels)
        # Unbounded: a consumer that lags must not hold up the frames of other commands.
        send, receive = trio.open_memory_channel[Frame](math.inf)
        self._commands[channel] = send
        try:
            await self.send(encode_json(channel, Kind.RUN, request))
            yield RemoteCommand(self, channel, receive)
        finally:
            if self._commands.pop(channel, None) is not None and not self.closed.is_set():
                with trio.move_on_after(1, shield=True):
                    await self._outgoing.send(encode_json(channel, Kind.SIGNAL, 9))

    async def keep_awake(self) -> None:
        """Wake every processor inside once in a while, until cancelled or the stream ends.

        The emulator now and then loses an interrupt for a processor that sleeps, which then sleeps
        until the next: see docs/decisions/0004.
        """
        while not self.closed.is_set():
            await self._outgoing.send(encode(Frame(SESSION, Kind.WAKE)))
            with trio.move_on_after(WAKE_INTERVAL_S):
                await self.closed.wait()

    async def write_frames(self) -> None:
        """Carry frames to the stream; a task of the session."""
        try:
            async for data in self._to_send:
                await self._stream.send_all(data)
        except trio.BrokenResourceError:
            self.closed.set()

    async def read_frames(self) -> None:
        """Carry frames from the stream to whom they concern; a task of the session."""
        decoder = FrameDecoder()
        try:
            while data := await self._stream.receive_some(CHUNK_BYTES):
                for frame in decoder.feed(bytes(data)):
                    self._dispatch(frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self.closed.set()
        self._events.close()
        for send in self._commands.values():
            send.close()

    def _dispatch(self, frame: Frame) -> None:
        if frame.channel == SESSION:
            self._events.send_nowait(frame)
            return
        send = self._commands.get(frame.channel)
        if send is None:
            return  # the rest of a command whose caller has left
        send.send_nowait(frame)
        if frame.kind in (Kind.EXIT, Kind.FAILED):
            del self._commands[frame.channel]
            send.close()


@asynccontextmanager
async def open_session(
    stream: trio.abc.Stream, run_dir: Path, emulator: OwnedProcess | None = None
) -> AsyncIterator[Session]:
    """Speak frames on a stream for the length of a block; the logs are in `run_dir`."""
    session = Session(stream, run_dir, emulator)
    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(session.read_frames)
        nursery.start_soon(session.write_frames)
        yield session
        nursery.cancel_scope.cancel()
