"""The socket that debuggers connect to, and the machine that they find there.

One debugger at a time. A machine begins with its vCPUs standing, until a debugger has come and lets
them run; when its machine ends, a session does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import trio

from vmm.errors import VmmError, chain, first_error
from vmm.gdb.debuggee import Debuggee
from vmm.gdb.packets import MOST_BYTES
from vmm.gdb.session import READ_BYTES, Session

if TYPE_CHECKING:
    import socket

    from vmm.machine.bus import Lifecycle
    from vmm.machine.memory import GuestMemory
    from vmm.machine.vcpus import Vcpus

logger = logging.getLogger(__name__)

RETRY_S = 1.0


class DebugServer:
    """Leads debuggers, who come to ``listener``, to the machine that there is."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._debuggee: Debuggee | None = None
        self._session: Session | None = None
        self._changed = trio.Event()

    @contextmanager
    def showing(
        self, vcpus: Vcpus, memory: GuestMemory, lifecycle: Lifecycle
    ) -> Iterator[Debuggee]:
        """Show a machine to debuggers until the end of the block; its vCPUs must be there."""
        self._debuggee = Debuggee(vcpus, memory, lifecycle)
        self._changed.set()
        try:
            yield self._debuggee
        finally:
            self._debuggee = None
            self._changed = trio.Event()
            if self._session is not None:
                self._session.machine_is_gone()

    async def run(self) -> None:
        """Serve one debugger after the other, for ever."""
        accepting = trio.SocketListener(trio.socket.from_stdlib_socket(self._listener))
        while True:
            try:
                stream = await accepting.accept()
            except OSError as error:
                logger.warning("No debugger can be accepted: %s", error.strerror)
                await trio.sleep(RETRY_S)
                continue
            async with stream:
                await self._serve(stream)

    async def _serve(self, stream: trio.abc.Stream) -> None:
        said = bytearray()
        while self._debuggee is None:
            if not await self._changes_while_there_is(stream, said):
                return
        self._session = Session(stream, self._debuggee, bytes(said))
        logger.info("A debugger has come")
        try:
            ended = await self._session.run()
            logger.info("The debugger is gone: %s", ended.value)
        except* VmmError as group:
            for line in chain(first_error(group)):
                logger.error("The debugger's session failed: %s", line)
        finally:
            self._session = None

    async def _changes_while_there_is(self, stream: trio.abc.Stream, said: bytearray) -> bool:
        """Wait for a machine, and take what a debugger says before; False when it has left."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_listen, stream, said, nursery.cancel_scope)
            await self._changed.wait()
            nursery.cancel_scope.cancel()
            return True
        return False


async def _listen(stream: trio.abc.Stream, said: bytearray, scope: trio.CancelScope) -> None:
    with suppress(trio.BrokenResourceError):
        while data := await stream.receive_some(READ_BYTES):
            said += data
            if len(said) > MOST_BYTES:
                return  # It may go on once somebody listens.
    scope.cancel()
