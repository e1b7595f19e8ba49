"""A connection over which a guest gives back what it is sent.

Run as ``python -m tests.guest.echoes ADDRESS`` it listens there, answers each byte of its standard
input with a line that has the number of blocks so far, and ends the connection when that ends.
"""

from __future__ import annotations

import os
import random
import sys

import trio

PORT = 5000
PATIENCE_S = 240.0


class Echoes:
    """One connection over which the guest gives back, byte by byte, what it is sent."""

    def __init__(self, address: str) -> None:
        self.count = 0
        self._address = address
        self._is_enough = trio.Event()

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        (listener,) = await trio.open_tcp_listeners(PORT, host=self._address)
        async with listener:
            task_status.started()
            stream = await listener.accept()
        source = random.Random(8)
        async with stream:
            while not self._is_enough.is_set():
                await self._exchange(stream, source.randbytes(8192))
                await trio.sleep(0.02)  # The guest needs time for its disk, too.

    async def _exchange(self, stream: trio.SocketStream, sent: bytes) -> None:
        await stream.send_all(sent)
        got = b""
        while len(got) < len(sent):
            data = await stream.receive_some(len(sent) - len(got))
            assert data, "the guest ended the connection"
            got += data
        assert got == sent
        self.count += 1

    async def until(self, count: int) -> None:
        """Wait until so many blocks have come back."""
        with trio.fail_after(PATIENCE_S):
            while self.count < count:  # noqa: ASYNC110  they come in another task
                await trio.sleep(0.05)

    def end(self) -> None:
        self._is_enough.set()


async def main(address: str) -> None:
    """Exchange blocks with the guest for as long as there is standard input."""
    echoes = Echoes(address)
    async with trio.open_nursery() as nursery:
        await nursery.start(echoes.serve)
        print("listening", flush=True)
        async with trio.lowlevel.FdStream(os.dup(0)) as asked:
            async for _ in asked:
                print(echoes.count, flush=True)
        echoes.end()


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
