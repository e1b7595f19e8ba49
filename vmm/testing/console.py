"""A guest's serial console on a unix socket, for tests: wait for text, run shell commands."""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from vmm.testing.stall import Stalled

READ_SIZE = 65536


class GuestConsole:
    """One client of a serial console in Socket mode; ``text`` is all the guest has printed."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._commands = 0
        self.text = ""

    @classmethod
    @asynccontextmanager
    async def connect(cls, path: Path) -> AsyncIterator[GuestConsole]:
        """Connect to the socket of a serial console. Raises: OSError."""
        stream = await trio.open_unix_socket(str(path))
        async with stream:
            yield cls(stream)

    async def wait_for(self, text: str, seconds: float, *, after: int = 0) -> int:
        """Wait until the guest has printed a text; returns the position behind it.

        Raises: AssertionError, with all that was printed, when it does not come in time.
        """
        with trio.move_on_after(seconds):
            while (at := self.text.find(text, after)) < 0:
                data = await self._stream.receive_some(READ_SIZE)
                if not data:
                    raise AssertionError(f"The console ended before {text!r} came:\n{self.text}")
                self.text += self._decoder.decode(data).replace("\r", "")
            return at + len(text)
        raise Stalled(f"{text!r} did not come within {seconds} s:\n{self.text}")

    async def type(self, text: str) -> None:
        """Type into the console."""
        await self._stream.send_all(text.encode())

    async def run(self, command: str, seconds: float = 60) -> str:
        """Run a command in the guest's shell and return what it prints.

        Raises: AssertionError when it fails or takes longer.
        """
        self._commands += 1
        start = len(self.text)
        # The echo of what is typed must not look like the answer: the quotes tell them apart.
        number = self._commands
        await self.type(f"echo '<''<'{number}; {command}; echo '>''>'{number}=$?.\n")
        begin, end = f"<<{number}\n", f">>{number}="
        at = await self.wait_for(begin, seconds, after=start)
        stop = await self.wait_for(end, seconds, after=at)
        # The status ends in a full stop: what the kernel prints meanwhile is not part of it.
        status_end = await self.wait_for(".", seconds, after=stop)
        status = self.text[stop : status_end - 1]
        output = self.text[at : stop - len(end)]
        assert status == "0", f"{command!r} ended with {status}:\n{output}"
        return output
