"""Running a command inside as if it ran here: our streams, our terminal, our signals, its end."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import termios
import tty
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import trio

from tools.nested_host.host import NestedHost, collect
from tools.nested_host.inside.frames import CHUNK_BYTES, Kind
from tools.nested_host.session import RemoteCommand

PASSED_ON: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def run_attached(
    host: NestedHost,
    argv: Sequence[str],
    cwd: Path,
    env: Mapping[str, str],
    *,
    wants_terminal: bool = False,
) -> int:
    """Run a command with our streams; returns its exit code as a shell would give it."""
    window = None
    if wants_terminal:
        columns, rows = shutil.get_terminal_size()
        window = (rows, columns)
        env = {"TERM": os.environ.get("TERM", "dumb"), **env}
    async with host.start(argv, cwd=cwd, env=env, window=window) as command:
        with raw_terminal(wants_terminal):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(feed_stdin, command)
                nursery.start_soon(pass_signals_on, command)
                completed = await collect(command, write_output)
                nursery.cancel_scope.cancel()
    return completed.code if completed.code >= 0 else 128 - completed.code


async def write_output(kind: Kind, data: bytes) -> None:
    """Write what the command wrote to the same stream of ours."""
    stream = sys.stdout.buffer if kind is Kind.STDOUT else sys.stderr.buffer
    stream.write(data)
    stream.flush()


async def feed_stdin(command: RemoteCommand) -> None:
    """Carry our standard input to the command until it ends."""
    async for data in read_stdin():
        await command.send(Kind.STDIN, data)
    await command.send(Kind.STDIN)


async def read_stdin() -> AsyncIterator[bytes]:
    """Yield our standard input in pieces; a file cannot be waited for, and need not be."""
    fd = sys.stdin.fileno()
    while True:
        with suppress(PermissionError):  # what epoll says of a plain file
            await trio.lowlevel.wait_readable(fd)
        data = os.read(fd, CHUNK_BYTES)
        if not data:
            return
        yield data


async def pass_signals_on(command: RemoteCommand) -> None:
    """Send the command the signals meant for it, and the size of the window as it changes."""
    with trio.open_signal_receiver(*PASSED_ON, signal.SIGWINCH) as signals:
        async for number in signals:
            if number == signal.SIGWINCH:
                columns, rows = shutil.get_terminal_size()
                await command.send_json(Kind.RESIZE, [rows, columns])
            else:
                await command.send_json(Kind.SIGNAL, int(number))


@contextmanager
def raw_terminal(wanted: bool) -> Iterator[None]:
    """Leave the keys to the terminal inside while the block runs."""
    if not wanted or not sys.stdin.isatty():
        yield
        return
    fd = sys.stdin.fileno()
    saved = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, saved)
