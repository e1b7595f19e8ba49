"""A program in a nested host: what it says as it says it, what it is told, and how it ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from tools.nested_host.cli import flatten
from tools.nested_host.errors import NestedHostError
from tools.nested_host.host import NestedHost
from tools.nested_host.inside.frames import Frame, Kind
from tools.nested_host.session import RemoteCommand
from vmm.testing.stall import Stalled

LAST = 1500
"""So many characters of what a program has said are told with an error."""


class Program(trio.abc.Stream):
    """A stream of a program's standard input and output; what it says on stderr is kept."""

    def __init__(self, command: RemoteCommand, words: tuple[str, ...]) -> None:
        self._command = command
        self._words = words
        self._unread = b""
        self._said = bytearray()
        self.code: int | None = None

    @classmethod
    @asynccontextmanager
    async def started(cls, host: NestedHost, *words: str) -> AsyncIterator[Program]:
        """Start it; it is killed if it has not ended by the end of the block.

        An error in the block is told what the program said last.
        """
        async with host.start(words) as command:
            program = cls(command, words)
            try:
                yield program
            except Exception as error:
                last = program.transcript()[-LAST:]
                for each in flatten(error) if isinstance(error, ExceptionGroup) else [error]:
                    each.add_note(f"{program} (exit code {program.code}) said last:\n{last}")
                raise

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write to its standard input."""
        await self._command.send(Kind.STDIN, bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        """Do nothing: what is sent waits in the session."""
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Read its standard output; nothing when it has ended.

        Raises: NestedHostDied: its host has.
        """
        while not self._unread and self.code is None:
            frame = await self._command.receive()
            if frame.kind is Kind.FAILED:
                raise NestedHostError(str(frame.json()))
            self._take(frame)
        data, self._unread = self._unread[:max_bytes], self._unread[len(self._unread[:max_bytes]) :]
        return data

    def _take(self, frame: Frame) -> None:
        if frame.kind is Kind.STDOUT:
            self._unread += frame.payload
        if frame.kind in (Kind.STDOUT, Kind.STDERR):
            self._said += frame.payload
        elif frame.kind is Kind.EXIT:
            self.code = frame.json()

    async def end_input(self) -> None:
        """Let it read the end of its standard input."""
        await self._command.send(Kind.STDIN)

    async def aclose(self) -> None:
        """Do nothing: the block that started it ends it."""
        await trio.lowlevel.checkpoint()

    async def until(self, text: str, seconds: float) -> str:
        """Read until a text has come, and return what came before it. Raises: Stalled."""
        data = b""
        with trio.move_on_after(seconds):
            while text.encode() not in data:
                piece = await self.receive_some()
                assert piece, f"{self} ended before {text!r} came:\n{self.transcript()}"
                data += piece
            before, _, after = data.partition(text.encode())
            self._unread = after + self._unread
            return before.decode(errors="replace")
        raise Stalled(f"{text!r} of {self} did not come within {seconds} s:\n{self.transcript()}")

    async def end(self, seconds: float) -> str:
        """Wait for its end, which must be a good one, and return the rest of its output."""
        data = b""
        with trio.move_on_after(seconds):
            while piece := await self.receive_some():
                data += piece
            assert self.code == 0, f"{self} ended with {self.code}:\n{self.transcript()}"
            return data.decode(errors="replace")
        raise Stalled(f"{self} still runs after {seconds} s:\n{self.transcript()}")

    def transcript(self) -> str:
        """All that it has said."""
        while (frame := self._command.receive_nowait()) is not None:
            self._take(frame)
        return self._said.decode(errors="replace")

    def __str__(self) -> str:
        return " ".join(self._words)
