"""The agent: carries commands and their output between the virtio-serial port and the processes.

It is forked from the warm interpreter, and asks that same interpreter for each command, as the
`python` of the nested host does.
"""

from __future__ import annotations

import contextlib
import fcntl
import marshal
import os
import signal
import socket
import struct
import termios
import time
from pathlib import Path
from typing import Any, Final

import trio

from .frames import CHUNK_BYTES, SESSION, Frame, FrameDecoder, Kind, encode, encode_json
from .mounts import MountError, UeventSocket, apply_mounts
from .warm import WARM_SOCKET

PORT_NAME: Final = "nested-host"
QUEUED_FRAMES: Final = 64


def main() -> int:
    """Serve the port until the host says power off."""
    trio.run(serve)
    return 0


async def serve() -> None:
    """Be the agent."""
    await Agent(open_port(PORT_NAME)).serve()


def open_port(name: str) -> int:
    """Open the virtio-serial port of a name."""
    for entry in Path("/sys/class/virtio-ports").iterdir():
        if (entry / "name").read_text().strip() == name:
            return os.open(f"/dev/{entry.name}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    raise FileNotFoundError(f"No virtio-serial port is called {name}.")


class Agent:
    """One session with the host, and its running commands by channel."""

    def __init__(self, port: int) -> None:
        self._port = trio.lowlevel.FdStream(port)
        self._send, self._to_send = trio.open_memory_channel[bytes](QUEUED_FRAMES)
        self._running: dict[int, RunningCommand] = {}
        self._uevents = UeventSocket()

    async def serve(self) -> None:
        """Answer frames until the power goes off."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_frames)
            facts = {"kernel": os.uname().release, "boot_s": time.monotonic()}
            await self._send.send(encode_json(SESSION, Kind.READY, facts))
            decoder = FrameDecoder()
            while data := await self._port.receive_some(CHUNK_BYTES):
                for frame in decoder.feed(data):
                    await self._handle(frame, nursery)

    async def _write_frames(self) -> None:
        async for data in self._to_send:
            await self._port.send_all(data)

    async def _handle(self, frame: Frame, nursery: trio.Nursery) -> None:
        if frame.kind is Kind.MOUNT:
            nursery.start_soon(self._mount, frame)
        elif frame.kind is Kind.POWER_OFF:
            power_off()
        elif frame.kind is Kind.WAKE:
            visit_processors()
        elif frame.kind is Kind.RUN:
            command = RunningCommand(frame.channel, frame.json(), self._send.clone())
            self._running[frame.channel] = command
            nursery.start_soon(self._run, command)
        elif frame.channel in self._running:
            self._running[frame.channel].handle(frame)

    async def _mount(self, frame: Frame) -> None:
        request = frame.json()
        time.clock_settime(time.CLOCK_REALTIME, request["time_of_day"])
        try:
            await apply_mounts(request["mounts"], self._uevents)
        except MountError as error:
            await self._send.send(encode_json(SESSION, Kind.FAILED, str(error)))
        else:
            await self._send.send(encode(Frame(SESSION, Kind.MOUNTED)))

    async def _run(self, command: RunningCommand) -> None:
        try:
            await command.run()
        finally:
            del self._running[command.channel]


class RunningCommand:
    """One command: its process, its streams, its end."""

    def __init__(
        self, channel: int, request: dict[str, Any], send: trio.MemorySendChannel[bytes]
    ) -> None:
        self.channel = channel
        self._request = request
        self._send = send
        self._warm: trio.SocketStream | None = None
        self._stdin, self._to_stdin = trio.open_memory_channel[bytes](1 << 20)
        self._signals: list[int] = []
        self._terminal: int | None = None

    def handle(self, frame: Frame) -> None:
        """Take a frame about this command."""
        if frame.kind is Kind.STDIN:
            self._stdin.send_nowait(frame.payload)
        elif frame.kind is Kind.SIGNAL:
            self._signal(frame.json())
        elif frame.kind is Kind.RESIZE and self._terminal is not None:
            set_window_size(self._terminal, frame.json())

    def _signal(self, number: int) -> None:
        if self._warm is None:
            self._signals.append(number)
        else:
            with contextlib.suppress(OSError):
                self._warm.socket._sock.send(bytes((number,)))  # type: ignore[attr-defined]

    async def run(self) -> None:
        """Run it to its end, and say how it ended after the last of its output."""
        async with self._send:
            if self._request.get("window") is not None:
                ours, theirs = self._open_terminal(self._request["window"])
            else:
                ours, theirs = open_pipes()
            stdin, *outputs = ours
            self._warm = await start(self._request, theirs)
            for number in self._signals:
                self._signal(number)
            streams = [trio.lowlevel.FdStream(fd) for fd in outputs]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._feed, trio.lowlevel.FdStream(stdin))
                for kind, stream in zip((Kind.STDOUT, Kind.STDERR), streams, strict=False):
                    nursery.start_soon(self._pump, kind, stream)
                status = await receive_status(self._warm)
                nursery.cancel_scope.cancel()
            # Whatever the command wrote is in the pipes now; a child of it that lives on and
            # holds them is not waited for.
            for kind, stream in zip((Kind.STDOUT, Kind.STDERR), streams, strict=False):
                await self._drain(kind, stream)
            await self._send.send(encode_json(self.channel, Kind.EXIT, status))

    def _open_terminal(self, window: list[int]) -> tuple[list[int], list[int]]:
        controller, terminal = os.openpty()
        set_window_size(controller, window)
        self._terminal = controller
        return [os.dup(controller), controller], [terminal]

    async def _feed(self, stream: trio.lowlevel.FdStream) -> None:
        async with stream:
            async for data in self._to_stdin:
                if not data:
                    if self._terminal is None:
                        return
                    data = b"\x04"  # a terminal is told of the end by its own end-of-file key
                with contextlib.suppress(trio.BrokenResourceError):
                    await stream.send_all(data)

    async def _pump(self, kind: Kind, stream: trio.lowlevel.FdStream) -> None:
        # A terminal whose last user is gone reads as an error, not as an end.
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await stream.receive_some(CHUNK_BYTES):
                await self._send.send(encode(Frame(self.channel, kind, data)))

    async def _drain(self, kind: Kind, stream: trio.lowlevel.FdStream) -> None:
        async with stream:
            while True:
                try:
                    data = os.read(stream.fileno(), CHUNK_BYTES)
                except OSError:  # nothing left, or the terminal's last user is gone
                    return
                if not data:
                    return
                await self._send.send(encode(Frame(self.channel, kind, data)))


def visit_processors() -> None:
    """Run on each processor for a moment: the interrupt that this takes ends its sleep."""
    everywhere = os.sched_getaffinity(0)
    for processor in sorted(everywhere):
        os.sched_setaffinity(0, {processor})
    os.sched_setaffinity(0, everywhere)


def power_off() -> None:
    """Turn the machine off; nothing of it is worth keeping."""
    Path("/proc/sysrq-trigger").write_text("o")


def set_window_size(terminal: int, window: list[int]) -> None:
    """Set a terminal's rows and columns."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", *window, 0, 0))


def open_pipes() -> tuple[list[int], list[int]]:
    """Make pipes for the three streams; returns our ends and the command's."""
    stdin_read, stdin_write = os.pipe()
    stdout_read, stdout_write = os.pipe()
    stderr_read, stderr_write = os.pipe()
    return [stdin_write, stdout_read, stderr_read], [stdin_read, stdout_write, stderr_write]


async def start(request: dict[str, Any], fds: list[int]) -> trio.SocketStream:
    """Ask the warm interpreter for the command; takes over the descriptors."""
    connection = trio.socket.socket(socket.AF_UNIX)
    await connection.connect(WARM_SOCKET)
    is_terminal = len(fds) == 1
    body = marshal.dumps(
        (request["argv"], request["cwd"], request["environment"], [0, 1, 2], 0o022, os.getpid(),
         is_terminal)
    )  # fmt: skip
    passed = struct.pack("3i", *(fds * 3 if is_terminal else fds))
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)
    await connection.sendmsg([len(body).to_bytes(4, "big")], [rights])
    for fd in fds:
        os.close(fd)
    stream = trio.SocketStream(connection)
    await stream.send_all(body)
    return stream


async def receive_status(warm: trio.SocketStream) -> int:
    """Wait for the end of a command; minus a signal's number when that ended it."""
    answer = b""
    async with warm:
        while not answer.endswith(b"\n"):
            piece = await warm.receive_some(64)
            if not piece:
                return -signal.SIGKILL
            answer += piece
    return int(answer)
