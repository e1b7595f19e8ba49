"""The nested host as Python code uses it: restore it, run commands in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from tools.nested_host.cable import Plug
from tools.nested_host.errors import NestedHostError
from tools.nested_host.inside.frames import SESSION, Frame, Kind, encode
from tools.nested_host.launch import restored
from tools.nested_host.machine import Machine
from tools.nested_host.session import RemoteCommand, Session
from tools.nested_host.shares import Shares

POWER_OFF_S: Final = 3

Output = Callable[[Kind, bytes], Awaitable[None]]


@dataclass(frozen=True)
class Completed:
    """How a command ended: an exit code, or minus the signal that killed it; and what it wrote."""

    code: int
    stdout: bytes
    stderr: bytes


class NestedHost:
    """A nested host with its shares mounted, reached by a session."""

    def __init__(self, session: Session, shares: Shares) -> None:
        self.session = session
        self._shares = shares

    @classmethod
    @asynccontextmanager
    async def restore(
        cls, built: Machine, shares: Shares, run_dir: Path, plug: Plug | None = None
    ) -> AsyncIterator[NestedHost]:
        """Restore what `build` made, for the length of a block; logs and sockets are in `run_dir`.

        With a `plug` it has a network card on that end of a cable.

        Raises: NestedHostError: it could not be started (host); NestedHostDied: it ended while
            the block used it. Cancel: every process is ended.
        """
        async with restored(built, shares, run_dir, plug) as launched:
            yield cls(launched.session, shares)
            if launched.session.closed.is_set():
                return
            with trio.move_on_after(POWER_OFF_S):
                await launched.session.send(encode(Frame(SESSION, Kind.POWER_OFF)))
                await launched.process.wait()

    @asynccontextmanager
    async def start(
        self,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        window: tuple[int, int] | None = None,
    ) -> AsyncIterator[RemoteCommand]:
        """Start a command inside; with a `window` (rows, columns) it has a terminal.

        Cancel: the command is killed.
        """
        request = {
            "argv": list(argv),
            "cwd": str(cwd or self._shares.checkout),
            "environment": {**self._shares.environment(), **(env or {})},
            "window": window,
        }
        async with self.session.command(request) as command:
            yield command

    async def run(
        self,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        output: Output | None = None,
    ) -> Completed:
        """Run a command to its end; `output`, if given, gets what it writes as it writes it.

        Raises: NestedHostDied: the host ended before the command did.
        """
        async with self.start(argv, cwd=cwd, env=env) as command:
            if stdin:
                await command.send(Kind.STDIN, stdin)
            await command.send(Kind.STDIN)
            return await collect(command, output)


async def collect(command: RemoteCommand, output: Output | None = None) -> Completed:
    """Gather a command's output, or hand it on, until the command ends."""
    stdout, stderr = bytearray(), bytearray()
    while True:
        frame = await command.receive()
        if frame.kind in (Kind.STDOUT, Kind.STDERR):
            if output is not None:
                await output(frame.kind, frame.payload)
            elif frame.kind is Kind.STDOUT:
                stdout += frame.payload
            else:
                stderr += frame.payload
        elif frame.kind is Kind.EXIT:
            return Completed(frame.json(), bytes(stdout), bytes(stderr))
        elif frame.kind is Kind.FAILED:
            raise NestedHostError(str(frame.json()))
