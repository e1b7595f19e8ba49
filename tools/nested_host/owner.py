"""The process that owns a host which stays up, and carries its clients' commands to it."""

from __future__ import annotations

import os
import socket
from typing import Final

import trio

from tools.nested_host.host import NestedHost
from tools.nested_host.inside.frames import (
    CHUNK_BYTES,
    SESSION,
    Frame,
    FrameDecoder,
    Kind,
    encode,
)
from tools.nested_host.instance import Instance
from tools.nested_host.machine import Machine
from tools.nested_host.session import RemoteCommand, Session

READY: Final = b"ready\n"
QUEUED_FRAMES: Final = 64


async def serve(built: Machine, instance: Instance, ready_fd: int) -> None:
    """Keep a host up until a client says power off or the host ends.

    `ready_fd` is told when commands can come, and closed. Cancel: the host is ended.
    """
    async with NestedHost.restore(built, instance.shares(), instance.run_dir) as host:
        with trio.socket.socket(socket.AF_UNIX) as listening:
            await listening.bind(str(instance.control))
            listening.listen(16)
            os.write(ready_fd, READY)
            os.close(ready_fd)
            async with trio.open_nursery() as nursery:

                async def serve_client(stream: trio.SocketStream) -> None:
                    if await Client(stream, host.session).serve():
                        nursery.cancel_scope.cancel()

                nursery.start_soon(
                    trio.serve_listeners, serve_client, [trio.SocketListener(listening)]
                )
                await host.session.closed.wait()
                raise host.session.died()


class Client:
    """A connection that commands come on; they end with it."""

    def __init__(self, stream: trio.SocketStream, session: Session) -> None:
        self._stream = stream
        self._session = session
        self._outgoing, self._to_send = trio.open_memory_channel[bytes](QUEUED_FRAMES)
        self._commands: dict[int, RemoteCommand] = {}

    async def serve(self) -> bool:
        """Serve it until it leaves; tells whether it asked for the power to go off."""
        is_off = False
        async with self._stream, trio.open_nursery() as nursery:
            nursery.start_soon(self._write_frames)
            decoder = FrameDecoder()
            while not is_off and (data := await self._receive()):
                for frame in decoder.feed(data):
                    if frame.kind is Kind.RUN:
                        await nursery.start(self._carry, frame)
                    elif frame == Frame(SESSION, Kind.POWER_OFF):
                        is_off = True
                    elif frame.channel in self._commands:
                        await self._commands[frame.channel].send(frame.kind, frame.payload)
            nursery.cancel_scope.cancel()
        return is_off

    async def _receive(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(CHUNK_BYTES))
        except trio.BrokenResourceError:
            return b""

    async def _write_frames(self) -> None:
        try:
            async for data in self._to_send:
                await self._stream.send_all(data)
        except trio.BrokenResourceError:
            pass  # it left without waiting for its command's output

    async def _carry(
        self, request: Frame, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run one command in the host's session, under the client's number for it."""
        async with self._session.command(request.json()) as command:
            self._commands[request.channel] = command
            task_status.started()
            while True:
                frame = await command.receive()
                if frame.kind in (Kind.EXIT, Kind.FAILED):
                    del self._commands[request.channel]
                await self._outgoing.send(encode(frame._replace(channel=request.channel)))
                if frame.kind in (Kind.EXIT, Kind.FAILED):
                    return
